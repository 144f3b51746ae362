// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A layer changes the ones below as it says, whichever of containerd's differs writes it.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use resnap_integration::image::{Built, Compression, Entry, ImageBuilder, Layer, hello};
use resnap_integration::tap::{Method, Point};
use resnap_integration::tree::Tree;

use crate::command::run_to_end;
use crate::node::{Node, unique};
use crate::suite::live_tests;
use crate::unpack::assert_labels;

live_tests! {
    Containerd: layers_change_those_below_on_overlayfs,
    Erofs: layers_change_those_below_by_the_erofs_differ,
    WalkingOnly: layers_change_those_below_by_walking_alone,
    Containerd: differ_gets_sync_fs,
}

fn layers_change_those_below_on_overlayfs(node: &Node) -> Result<()> {
    changes_those_below(node, "overlayfs", Differ::Walking, &[])
}

fn layers_change_those_below_by_the_erofs_differ(node: &Node) -> Result<()> {
    changes_those_below(node, "erofs", Differ::Erofs, MKFS)
}

fn layers_change_those_below_by_walking_alone(node: &Node) -> Result<()> {
    changes_those_below(node, "overlayfs", Differ::Walking, &[])?;
    changes_those_below(node, "erofs", Differ::Walking, &[])
}

/// The differ that writes a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Differ {
    /// Into the directory of the snapshot.
    Walking,
    /// Into `layer.erofs` beside that directory.
    Erofs,
}

/// A known fault of a differ, and its reason.
type Known = (Change, &'static str);

/// mkfs.erofs 1.8, by which containerd 2.1 writes a layer, sees nothing of the layers below.
const MKFS: &[Known] = &[(
    Change::Unstated,
    "mkfs.erofs makes a directory that the layer does not state root's, mode 0777",
)];

/// A change that a layer makes to the ones below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    /// A deleted path is gone.
    Deleted,
    /// A directory that it does not state, but writes to, is as it was.
    Unstated,
}

/// Returns the lowest layer of [`hello`], which has the programs, and two on it: what is to be changed, and
/// the changes.
fn image(node: &Node) -> Result<Built> {
    let hello = hello()?;
    let mut programs = Vec::new();
    GzDecoder::new(&*hello.blob(&hello.layers[0].digest)?).read_to_end(&mut programs)?;
    let kept = |path: &str| {
        let dir = Entry::dir(path).mode(0o2750).owner(1000, 1001);
        dir.xattr("user.lower", "1")
    };
    let lower = [
        Entry::dir("./"),
        Entry::dir("t"),
        Entry::file("t/file", ""),
        Entry::dir("t/dir"),
        Entry::file("t/dir/file", ""),
        Entry::dir("t/opaque"),
        Entry::file("t/opaque/file", ""),
        kept("t/kept"),
        kept("t/kept/sub"),
        Entry::file("t/kept/file", ""),
        kept("t/emptied"),
        Entry::file("t/emptied/file", ""),
    ];
    let upper = [
        Entry::dir("./"),
        Entry::dir("t"),
        Entry::whiteout("t/file"),
        Entry::whiteout("t/dir"),
        Entry::dir("t/opaque"),
        Entry::opaque("t/opaque"),
        Entry::file("t/kept/sub/new", ""),
        Entry::whiteout("t/emptied/file"),
    ];
    let archive = node.containerd.scratch().join(unique("differ"));
    let image = ImageBuilder::new("docker.io/library/differ:1")
        .layer(Layer::new(&programs, Compression::Gzip)?)
        .layer(Layer::of(&lower)?)
        .layer(Layer::of(&upper)?)
        .write(&archive)?;
    node.import(&image)?;
    Ok(image)
}

/// Returns the faults of a tree.
fn faults(tree: &Tree) -> Vec<(Change, String)> {
    let mut faults = Vec::new();
    for path in ["t/file", "t/dir", "t/opaque/file", "t/emptied/file"] {
        if tree.nodes.contains_key(path.as_bytes()) {
            faults.push((Change::Deleted, format!("{path} is there")));
        }
    }
    for path in ["t/kept/file", "t/kept/sub/new", "t/opaque"] {
        if !tree.nodes.contains_key(path.as_bytes()) {
            faults.push((Change::Deleted, format!("{path} is not there")));
        }
    }
    for path in ["t/kept", "t/kept/sub", "t/emptied"] {
        let node = tree.nodes.get(path.as_bytes());
        let is_kept = node.is_some_and(|node| {
            (node.mode, node.uid, node.gid) == (0o2750, 1000, 1001)
                && node.xattrs.get(&b"user.lower"[..]) == Some(&b"1".to_vec())
        });
        if !is_kept {
            faults.push((Change::Unstated, format!("{path}: {node:?}")));
        }
    }
    faults
}

fn differ_gets_sync_fs(node: &Node) -> Result<()> {
    for sync_fs in [true, false] {
        let image = image(node)?;
        let config =
            format!("snapshotters.native = {{ differ = \"containerd\", sync_fs = {sync_fs} }}");
        let tap = node.containerd.tap()?;
        let applied = tap.hold(Method::APPLY, 1, Point::Before);
        let mut command = node.configured_command(&config)?;
        command.env("CONTAINERD_ADDRESS", tap.socket());
        command.args(["unpack", &image.reference, "--snapshotter", "native"]);
        let caller = std::thread::spawn(move || run_to_end(&mut command));
        let request: ApplyRequest = applied.wait()?.decode()?;
        applied.release();
        let output = caller.join().ok().context("the test panicked")??;
        output.ok()?;
        tap.finish()?;
        let told = request.sync_fs;
        ensure!(told == sync_fs, "sync_fs is {told}, not {sync_fs}");
        node.ctr(&["images", "rm", "--sync", &image.reference])?;
    }
    Ok(())
}

/// The part of containerd's `ApplyRequest` that is looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct ApplyRequest {
    #[prost(message, repeated, tag = "2")]
    mounts: Vec<Mount>,
    #[prost(bool, tag = "4")]
    sync_fs: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Mount {
    #[prost(string, tag = "2")]
    source: String,
}

fn changes_those_below(
    node: &Node,
    snapshotter: &str,
    differ: Differ,
    known: &[Known],
) -> Result<()> {
    let image = image(node)?;
    let tap = node.containerd.tap()?;
    let applied = tap.hold(Method::APPLY, 1, Point::After);
    let mut command = node.tapped_command(&tap)?;
    command.args(["unpack", &image.reference, "--snapshotter", snapshotter]);
    let caller = std::thread::spawn(move || run_to_end(&mut command));
    let request: ApplyRequest = applied.wait()?.decode()?;
    let source = &request.mounts.first().context("no mount")?.source;
    let snapshot = Path::new(source).parent().context("no snapshot")?;
    let writer = match snapshot.join("layer.erofs").exists() {
        true => Differ::Erofs,
        false => Differ::Walking,
    };
    applied.release();
    let output = caller.join().ok().context("the test panicked")??;
    ensure!(writer == differ, "{writer:?} wrote to {source}");
    output.ok()?;
    tap.finish()?;
    node.assert_nothing_left(snapshotter)?;
    assert_labels(node, snapshotter, &image, &[])?;

    let faults = faults(&node.tree(snapshotter, &image.reference)?);
    for (change, fault) in &faults {
        let is_known = known.iter().any(|(known, _)| known == change);
        ensure!(is_known, "on {snapshotter} by {differ:?}: {fault}");
    }
    for (change, reason) in known {
        let is_so = faults.iter().any(|(fault, _)| fault == change);
        ensure!(is_so, "{change:?} is right, so this is gone: {reason}");
    }
    Ok(())
}
