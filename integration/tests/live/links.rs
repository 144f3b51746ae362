// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that are EROFS images, which are the files of their blobs.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{Built, Form, forms, hello};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

use crate::node::Node;
use crate::suite::live_tests;

live_tests! {
    ErofsAlone: links_are_the_files_of_blobs,
}

/// Returns the files of an image's blobs.
fn blobs(node: &Node, image: &Built) -> Vec<PathBuf> {
    let root = node.containerd.root();
    let blobs = root.join("io.containerd.content.v1.content/blobs/sha256");
    let layers = image.layers.iter();
    let names = layers.map(|layer| layer.digest.trim_start_matches("sha256:"));
    names.map(|name| blobs.join(name)).collect()
}

/// Returns the images of a snapshotter's layers, the newest last.
fn layers(node: &Node) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for snapshot in fs::read_dir(node.snapshotter_root("erofs").join("snapshots"))? {
        let snapshot = snapshot?;
        let path = snapshot.path().join("layer.erofs");
        if path.exists() {
            let id: u64 = snapshot.file_name().to_string_lossy().parse()?;
            found.push((id, path));
        }
    }
    found.sort();
    Ok(found.into_iter().map(|(_, path)| path).collect())
}

fn links_are_the_files_of_blobs(node: &Node) -> Result<()> {
    // The CRI would keep images that are removed, under their IDs.
    let node = &node.in_new_namespace();
    let (first, image) = (hello()?, forms(&[Form::Erofs])?);
    let blobs = blobs(node, &image);
    let unpack = |node: &Node| {
        node.import(&image)?;
        node.unpack("erofs", &image.reference)?;
        let says = node.run("erofs", &image.reference)?;
        ensure!(says.trim() == Form::Erofs.name(), "{says:?}");
        let layers = layers(node)?;
        let newest = layers.len().checked_sub(blobs.len()).context("no layers")?;
        let mut pairs = layers[newest..].iter().zip(&blobs);
        let are_linked = |(layer, blob): (&PathBuf, &PathBuf)| {
            Ok(fs::metadata(layer)?.ino() == fs::metadata(blob)?.ino())
        };
        let linked: Vec<bool> = pairs.by_ref().map(are_linked).collect::<Result<_>>()?;
        for (layer, blob) in layers[newest..].iter().zip(&blobs) {
            ensure!(fs::read(layer)? == fs::read(blob)?, "{layer:?} differs");
        }
        Ok(linked)
    };
    // Whether images are made immutable is not known yet.
    let linked = unpack(node)?;
    ensure!(linked == [false, false], "{linked:?}");
    node.ctr(&["images", "rm", "--sync", &image.reference])?;

    node.import(&first)?;
    node.unpack("erofs", &first.reference)?;
    let linked = unpack(node)?;
    ensure!(linked == [true, true], "{linked:?}");
    let modes: Vec<u32> = blobs
        .iter()
        .map(|blob| Ok(fs::metadata(blob)?.mode() & 0o777))
        .collect::<Result<_>>()?;
    ensure!(modes == [0o444, 0o444], "{modes:?}");
    // Either side may go first.
    node.ctr(&["content", "rm", &image.layers[0].digest])?;
    node.collect_garbage()?;
    ensure!(!blobs[0].exists(), "the blob is still there");
    let says = node.run("erofs", &image.reference)?;
    ensure!(says.trim() == Form::Erofs.name(), "{says:?}");
    let upper = fs::read(&blobs[1])?;
    let on = ["snapshots", "--snapshotter", "erofs", "rm"];
    node.ctr(&[&on[..], &[image.chain_id()]].concat())?;
    node.collect_garbage()?;
    ensure!(fs::read(&blobs[1])? == upper, "another blob");
    node.ctr(&["images", "rm", "--sync", &image.reference])?;

    let newest = layers(node)?.pop().context("no layers")?;
    let file = File::open(&newest)?;
    let flags = ioctl_getflags(&file)?;
    ioctl_setflags(&file, flags | IFlags::IMMUTABLE)?;
    let linked = unpack(node);
    ioctl_setflags(&file, flags)?;
    ensure!(linked? == [false, false]);
    node.assert_nothing_left("erofs")
}
