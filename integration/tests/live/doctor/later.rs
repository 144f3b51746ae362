// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults that only later containerds have than those of the suite, on one that says it is later.

use std::fs;

use anyhow::{Result, ensure};
use resnap_integration::daemon::Options;
use resnap_integration::image::{Entry, ImageBuilder, Layer, host_platform};

use super::{Bed, edit};
use crate::node::{Node, unique};
use crate::suite::live_tests;

live_tests! {
    Erofs: doctor_finds_faults_of_later_containerds,
}

fn doctor_finds_faults_of_later_containerds(shared: &Node) -> Result<()> {
    let scratch = shared.containerd.scratch();
    let dist = shared
        .containerd
        .dist()
        .saying("2.3.9", &scratch.join(unique("later")))?;
    let options = Options {
        pull_for_handlers: true,
        ..crate::suite::options()
    };
    let bed = Bed::of(&dist, options, "")?;
    let node = &bed.node;
    let image = ImageBuilder::new("docker.io/library/parents:1")
        .layer(Layer::of(&[
            Entry::dir("./"),
            Entry::dir("own").mode(0o700),
        ])?)
        .layer(Layer::of(&[Entry::file("own/file", "")])?)
        .write(&node.containerd.scratch().join(unique("parents")))?;
    node.import(&image)?;
    node.unpack("overlayfs", &image.reference)?;
    bed.assert_well()?;
    // As it is where the layer below was not mounted.
    let mut made = 0;
    for snapshot in fs::read_dir(node.snapshotter_root("overlayfs").join("snapshots"))? {
        let dir = snapshot?.path().join("fs/own");
        if dir.join("file").exists() {
            fs::remove_dir_all(&dir)?;
            fs::create_dir(&dir)?;
            fs::write(dir.join("file"), "")?;
            made += 1;
        }
    }
    ensure!(made == 1, "{made} layers have the file");
    let found = bed.doctor(&[])?;
    found.assert_found(&["snapshots.parents"])?;
    let steps = ["resnap evict", "resnap unpack", "--snapshotter overlayfs"];
    found.assert_way_out(
        "snapshots.parents",
        &[&image.reference, "without its parents"],
        &steps,
    )?;
    node.resnap(&["evict", &image.reference, "--snapshotter", "overlayfs"])?
        .ok()?;
    node.unpack("overlayfs", &image.reference)?;
    bed.assert_well()?;

    let path = node.containerd.root().with_file_name("containerd.toml");
    let before = fs::read_to_string(&path)?;
    let (os, architecture) = host_platform();
    let entry = |snapshotter: &str| {
        format!(
            "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  \
             platform = \"{os}/{architecture}\"\n  snapshotter = {snapshotter:?}\n"
        )
    };
    let lines = format!("{before}{}", entry("overlayfs"));
    edit(&path, &lines)?;
    let found = bed.doctor(&[])?;
    found.assert_found(&["containerd.unpack-config"])?;
    let steps = ["snapshotter = \"erofs\""];
    found.assert_way_out("containerd.unpack-config", &["no entry for erofs"], &steps)?;
    edit(&path, format!("{lines}{}", entry("erofs")))?;
    bed.assert_well()?;
    bed.served.stop()
}
