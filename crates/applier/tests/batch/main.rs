// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Batches of layers, written below a snapshotter's root with the layout of containerd. The tests need root.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests report failures by panics"
)]

mod asked;
mod bed;
mod copies;
mod ends;
mod hostile;
mod left;
mod many;
mod places;
mod torn;

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bed::{Bed, TAR, tar};
use resnap_applier::Differ;
use resnap_core::{ApplyMonitor, ApplyPermit, Kind, Mount, Scope, Stage, StageTiming};

/// Returns layers that all write the same file.
fn layers(bed: &Bed, of: &str, count: usize) -> Vec<resnap_core::Descriptor> {
    let layer = |index| {
        let data = format!("{of} {index}");
        bed.layer(TAR, tar(&[("etc/file", data.as_bytes())]))
    };
    (0..count).map(layer).collect()
}

fn text(bed: &Bed, snapshot: usize) -> String {
    fs::read_to_string(bed.fs(snapshot).join("etc/file")).unwrap()
}

/// Counts the permits that are held.
#[derive(Default)]
struct Gate(Arc<AtomicUsize>, AtomicUsize);

/// A permit.
struct Permit(Arc<AtomicUsize>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[async_trait]
impl ApplyMonitor for Gate {
    async fn admit(&self, _: usize) -> ApplyPermit {
        self.0.fetch_add(1, Ordering::SeqCst);
        ApplyPermit::new(Permit(Arc::clone(&self.0)))
    }

    fn read(&self, _: usize, _: u64) {}

    fn record_stage(&self, _: usize, stage: Stage, _: StageTiming) {
        // The permit is still held.
        if stage == Stage::Place && self.0.load(Ordering::SeqCst) > 0 {
            self.1.fetch_add(1, Ordering::SeqCst);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn layers_are_put_in_place_by_admission() {
    let gate = Arc::new(Gate::default());
    let mut bed = Bed::new();
    bed.monitor = Arc::clone(&gate) as _;
    let layers = layers(&bed, "a", 3);
    let batch = bed.batch(&layers);
    let mut snapshots = Vec::new();
    for index in 0..3 {
        let (snapshot, mounts) = bed.prepare(&snapshots, &[]);
        // Wait until all are built and their permits are dropped.
        while index > 0 && gate.0.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let scope = Scope::new("default");
        batch.apply(&scope, index, &mounts).await.unwrap();
        snapshots.push(snapshot);
        assert_eq!(gate.1.load(Ordering::SeqCst), index + 1);
    }
    batch.end().await;
    assert_eq!(gate.0.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn images_at_once_do_not_mix() {
    let bed = Bed::new();
    let images = ["a", "b", "c", "d"].map(|of| (of, layers(&bed, of, 5)));
    let unpack = async |(of, layers): &(&str, Vec<_>)| {
        let batch = bed.batch(layers);
        let snapshots = bed.apply_all(&*batch, layers.len(), &[]).await;
        batch.end().await;
        for (index, snapshot) in snapshots.into_iter().enumerate() {
            assert_eq!(text(&bed, snapshot), format!("{of} {index}"));
        }
    };
    futures::future::join_all(images.iter().map(unpack)).await;
    assert!(bed.staged().is_empty(), "{:?}", bed.staged());
    assert!(bed.left().is_empty());
}

#[tokio::test]
#[ignore = "needs root: make test runs it"]
async fn unknown_media_types_are_left_to_containerd() {
    let scope = Scope::new("default");
    let bed = Bed::new();
    let mut layers = layers(&bed, "a", 3);
    layers[1].media_type = format!("{TAR}+gzip+encrypted");
    let batch = bed.batch(&layers);
    let snapshots = bed.apply_all(&*batch, 3, &[]).await;
    batch.end().await;
    assert_eq!(bed.left(), [layers[1].digest.clone()]);
    assert!(!bed.fs(snapshots[1]).join("etc").exists());
    assert_eq!(text(&bed, snapshots[2]), "a 2");

    // With `differ = "resnap"` it is an error.
    let batch = bed.batch_by(Differ::Resnap, &layers, false);
    let (_, mounts) = bed.prepare(&[], &[]);
    let error = batch.apply(&scope, 1, &mounts).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    batch.end().await;
    assert_eq!(bed.left().len(), 1);
    assert!(bed.staged().is_empty(), "{:?}", bed.staged());
}

#[tokio::test]
#[ignore = "needs root: make test runs it"]
async fn unknown_mounts_are_left_to_containerd() {
    let scope = Scope::new("default");
    let (bed, other) = (Bed::new(), Bed::new());
    let layers = layers(&bed, "a", 1);
    let (lower, _) = bed.prepare(&[], &[]);
    let changed = |change: fn(&mut Mount)| {
        let (_, mut mounts) = bed.prepare(&[lower], &[]);
        change(&mut mounts[0]);
        mounts
    };
    let link = bed.root.join("overlayfs/snapshots/link");
    std::os::unix::fs::symlink(other.fs(1).parent().unwrap(), &link).unwrap();
    let (_, elsewhere) = other.prepare(&[], &[]);
    let mut through = elsewhere.clone();
    through[0].source = link.join("fs").display().to_string();
    let (full, occupied) = bed.prepare(&[], &[]);
    fs::write(bed.fs(full).join("file"), "").unwrap();
    for (what, mounts) in [
        ("another directory", elsewhere),
        ("a link to another directory", through),
        ("a directory with files", occupied),
        ("no mount", Vec::new()),
        ("a type", changed(|mount| mount.kind = "fuse".to_owned())),
        (
            "an option",
            changed(|mount| mount.options.push("redirect_dir=on".to_owned())),
        ),
        (
            "attributes of a user namespace",
            changed(|mount| mount.options.push("userxattr".to_owned())),
        ),
        (
            "a lower directory",
            changed(|mount| {
                mount
                    .options
                    .iter_mut()
                    .filter(|option| option.starts_with("lowerdir="))
                    .for_each(|option| option.push_str(":/etc"));
            }),
        ),
    ] {
        let before = bed.left().len();
        let batch = bed.batch(&layers);
        batch.apply(&scope, 0, &mounts).await.unwrap();
        batch.end().await;
        assert_eq!(bed.left().len(), before + 1, "{what}");
    }
    assert!(other.fs(1).read_dir().unwrap().next().is_none());
}

#[tokio::test]
#[ignore = "needs root: make test runs it"]
async fn blobs_without_files_are_streamed() {
    for (what, says_root, change) in [
        ("as a file", true, None),
        ("no root", false, None),
        ("not there", true, Some(false)),
        ("of another size", true, Some(true)),
    ] {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let bed = Bed::at(dir.path(), says_root);
        let layers = layers(&bed, "a", 2);
        let file = bed.file(&layers[1].digest);
        match change {
            Some(true) => fs::write(file, "torn").unwrap(),
            Some(false) => fs::remove_file(file).unwrap(),
            None => {}
        }
        let batch = bed.batch(&layers);
        let snapshots = bed.apply_all(&*batch, 2, &[]).await;
        batch.end().await;
        assert_eq!(text(&bed, snapshots[1]), "a 1", "{what}");
        let mut sent = bed.sent();
        sent.sort();
        let mut want: Vec<_> = layers.iter().map(|layer| layer.digest.clone()).collect();
        match (says_root, change) {
            (true, None) => want.clear(),
            (true, Some(_)) => drop(want.remove(0)),
            (false, _) => want.sort(),
        }
        assert_eq!(sent, want, "{what}");
    }
}

#[tokio::test]
#[ignore = "needs root: make test runs it"]
async fn blobs_of_other_namespaces_are_not_read() {
    let bed = Bed::new();
    let layers = layers(&bed, "a", 1);
    bed.forget(&layers[0]);
    let batch = bed.batch(&layers);
    let (snapshot, mounts) = bed.prepare(&[], &[]);
    let scope = Scope::new("default");
    let error = batch.apply(&scope, 0, &mounts).await.unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
    batch.end().await;
    assert!(bed.fs(snapshot).read_dir().unwrap().next().is_none());
}
