// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers written by resnap itself, next to those that containerd's differ wrote of the same image.

pub(crate) mod choice;
pub(crate) mod tar_index;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use resnap_integration::image::{
    Built, Compression, EDGE_CASES_CLOCK, Entry, ImageBuilder, Layer, ROOT_CLOCK, edge_cases,
    hello, noise, web,
};
use resnap_integration::tree::{Expected, Field, Kind, Surprise, Tree, compare, surprises};

use crate::command::run_to_end;
use crate::node::{Node, unique};
use crate::poll::{DEADLINE, eventually};
use crate::suite::live_tests;
use crate::unpack::assert_labels;

live_tests! {
    Alone: applier_writes_the_same_trees_as_containerd,
    ErofsAlone: applier_builds_several_layers_at_once,
    ErofsAlone: applier_files_of_a_killed_process_are_removed,
}

/// The intended differences from the walking differ on the image of edge cases, besides its times.
const KEPT: &[Expected] = &[
    kept(
        "t/before-1970/*",
        Field::Mtime,
        "times before 1970 are kept",
    ),
    kept(
        "t/deleted/remade-dir/lower",
        Field::Presence,
        "image spec: what is below a directory that is deleted and made again is gone",
    ),
    kept(
        "t/twice/dir",
        Field::Xattr,
        "the last entry of a directory says all its attributes",
    ),
];

/// The start of a container makes its mount points.
pub(crate) const RUN: Expected = kept("run", Field::Mtime, "the container runtime makes it");

const fn kept(path: &'static str, field: Field, reason: &'static str) -> Expected {
    Expected {
        path,
        field,
        reason,
    }
}

/// Returns images with the differences of their trees from what containerd writes to overlayfs.
pub(crate) fn images() -> Result<[(Built, Vec<Expected>); 3]> {
    Ok([
        (hello()?, [ROOT_CLOCK, &[RUN]].concat()),
        (web()?, ROOT_CLOCK.to_vec()),
        (edge_cases()?, edge_cases_expected()),
    ])
}

/// Returns the tree that containerd writes to overlayfs.
fn containerd_tree(node: &Node, image: &Built) -> Result<Tree> {
    let node = node.in_new_namespace();
    node.import(image)?;
    node.unpack_with_differ("containerd", "overlayfs", &image.reference)?;
    node.tree("overlayfs", &image.reference)
}

fn applier_writes_the_same_trees_as_containerd(node: &Node) -> Result<()> {
    let mut faults = Vec::new();
    for (image, expected) in images()? {
        let containerd = containerd_tree(node, &image)?;
        // The image of edge cases hides all of its root, which overlayfs ignores and a copy does not.
        let is_edge_cases = image.reference.contains("edge-cases");
        let targets = node
            .targets()
            .filter(|name| !(is_edge_cases && *name == "native"));
        for snapshotter in targets {
            let resnap = node.in_new_namespace();
            resnap.import(&image)?;
            resnap
                .unpack_with_differ("resnap", snapshotter, &image.reference)
                .with_context(|| format!("{} on {snapshotter}", image.reference))?;
            assert_labels(&resnap, snapshotter, &image, &[])?;
            resnap.assert_nothing_left(snapshotter)?;
            let staged = resnap.staged(snapshotter)?;
            ensure!(staged.is_empty(), "{staged:?} are left");
            let tree = resnap.tree(snapshotter, &image.reference)?;
            let mut differences = compare(&containerd, &tree);
            if snapshotter == "native" {
                // Its copies of directories have new times, whoever writes the layers.
                let nodes = &tree.nodes;
                differences.retain(|difference| {
                    let node = nodes.get(&difference.path);
                    difference.field != Field::Mtime
                        || node.is_none_or(|node| node.kind != Kind::Directory)
                });
            }
            for surprise in surprises(&differences, &expected) {
                if snapshotter == "native" && matches!(surprise, Surprise::Absent(_)) {
                    continue;
                }
                faults.push(format!("{} on {snapshotter}: {surprise}", image.reference));
            }
        }
    }
    if node.containerd.has_erofs() {
        for snapshot in std::fs::read_dir(node.snapshotter_root("erofs").join("snapshots"))? {
            let file = snapshot?.path().join("layer.erofs");
            if file.exists() {
                let fsck = node.containerd.dist().tools().join("fsck.erofs");
                let checked = run_to_end(Command::new(fsck).arg(&file))?;
                ensure!(checked.code == Some(0), "{file:?}: {checked:#?}");
            }
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

fn edge_cases_expected() -> Vec<Expected> {
    let clock = EDGE_CASES_CLOCK.iter().copied();
    clock.chain(KEPT.iter().copied()).collect()
}

/// Layers that take a while, of files of random bytes.
fn heavy(node: &Node, layers: u8, megabytes: usize) -> Result<Built> {
    let layers = (0..layers).map(|number| {
        let noise = noise(u64::from(number) + 1, megabytes << 20);
        let path = format!("file{number}");
        let tar = resnap_integration::image::tar_entry::pack(&[Entry::file(path, noise)])?;
        Layer::new(&tar, Compression::Gzip)
    });
    let archive = node.containerd.scratch().join(unique("heavy"));
    let image = ImageBuilder::new("docker.io/library/heavy:1")
        .layers(layers.collect::<Result<Vec<_>>>()?)
        .write(&archive)?;
    node.import(&image)?;
    Ok(image)
}

fn applier_builds_several_layers_at_once(node: &Node) -> Result<()> {
    let image = heavy(node, 4, 8)?;
    for snapshotter in node.targets().filter(|name| *name != "native") {
        let report = node.unpack_with_differ("resnap", snapshotter, &image.reference)?;
        let layers = report["layers"].as_array().context("no layers")?;
        let stage = |index: usize, name: &str, end: &str| {
            let stages = layers.get(index)?["stages"].as_array()?;
            stages.iter().find(|stage| stage["stage"] == name)?[end].as_f64()
        };
        // Others are written before the first is committed.
        let committed = stage(0, "commit", "start").context("no commit")?;
        let ahead = (1..4)
            .filter(|index| stage(*index, "write", "start").is_some_and(|begin| begin < committed));
        ensure!(ahead.count() >= 1, "none was built ahead: {report:#}");
        for index in 0..4 {
            for name in ["read", "inflate", "hash", "write", "place", "commit"] {
                stage(index, name, "busy").with_context(|| format!("no {name} of {index}"))?;
            }
        }
    }
    Ok(())
}

fn applier_files_of_a_killed_process_are_removed(node: &Node) -> Result<()> {
    let image = heavy(node, 4, 24)?;
    for snapshotter in node.targets().filter(|name| *name != "native") {
        let mut process = node
            .command_with_differ("resnap")?
            .args(["unpack", &image.reference, "--snapshotter", snapshotter])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let is_building = |path: &PathBuf| path.join("1").exists();
        eventually("a layer is built ahead", DEADLINE, || {
            let has_ended = process.try_wait()?.is_some();
            ensure!(!has_ended, "the process ended before it was killed");
            Ok(node.staged(snapshotter)?.iter().any(is_building))
        })?;
        process.kill()?;
        process.wait()?;
        let left = node.staged(snapshotter)?;
        ensure!(left.len() == 1, "{left:?}");
        node.unpack_with_differ("resnap", snapshotter, &image.reference)?;
        let left = node.staged(snapshotter)?;
        ensure!(left.is_empty(), "{left:?} are left");
        node.assert_nothing_left(snapshotter)?;
    }
    Ok(())
}
