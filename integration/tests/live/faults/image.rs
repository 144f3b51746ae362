// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The image of the requests.

use anyhow::Result;
use resnap_integration::image::{Built, Entry, ImageBuilder, Layer, noise};

use crate::node::{Node, unique};

/// Returns an image of three layers with a bit of everything, whose blobs nothing else has.
pub(crate) fn image(node: &Node) -> Result<Built> {
    let name = unique("faults");
    let bulk = noise(u64::from(std::process::id()), 200_000);
    let lower = [
        Entry::dir("./"),
        Entry::dir("d").mode(0o2755).mtime(1_600_000_000),
        Entry::file("d/bulk", &bulk).mode(0o640).owner(7, 8),
        // As mkfs.erofs gives the file what its last name states.
        Entry::hardlink("d/link", "d/bulk").mode(0o640).owner(7, 8),
        Entry::file("d/attributed", &name).xattr("user.name", "value"),
        Entry::symlink("symlink", "d/bulk"),
        Entry::fifo("fifo"),
        Entry::char_device("null", 1, 3),
        Entry::dir("gone"),
        Entry::file("gone/file", "1"),
        Entry::dir("opaque"),
        Entry::file("opaque/file", "1"),
    ];
    let middle = [
        Entry::dir("./"),
        Entry::whiteout("gone"),
        Entry::dir("opaque"),
        Entry::opaque("opaque"),
        Entry::file("opaque/other", format!("{name} 2")),
    ];
    let upper = [
        Entry::dir("./"),
        Entry::dir("d").mode(0o755),
        Entry::file("d/attributed", format!("{name} 3")).mode(0o4711),
    ];
    ImageBuilder::new(&format!("docker.io/library/{name}:1"))
        .layers([Layer::of(&lower)?, Layer::of(&middle)?, Layer::of(&upper)?])
        .write(&node.containerd.scratch().join(&name))
}
