// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Batches on other file systems, in a user namespace, and before a power cut.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use resnap_applier::Differ;
use resnap_core::{Kind, Scope};
use resnap_layer::testing::{Metadata, Tar, typeflag};

use crate::bed::{Bed, METADATA, TAR, block_on, elsewhere, run, tar};
use crate::{layers, text};

fn show(path: &Path) -> String {
    path.display().to_string()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn snapshots_on_another_file_system_are_written_in_turn() {
    let name = "places::snapshots_on_another_file_system_are_written_in_turn";
    if elsewhere(name, &["--mount"]) {
        return;
    }
    let bed = Bed::new();
    let snapshots = bed.root.join("overlayfs/snapshots");
    run("mount", &["-t", "tmpfs", "none", &show(&snapshots)]);
    let layers = layers(&bed, "a", 3);
    block_on(async {
        let batch = bed.batch(&layers);
        let placed = bed.apply_all(&*batch, 3, &[]).await;
        for (index, snapshot) in placed.into_iter().enumerate() {
            assert_eq!(text(&bed, snapshot), format!("a {index}"));
            let inside: Vec<_> = fs::read_dir(snapshots.join(snapshot.to_string()))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            assert_eq!(inside.len(), 2, "{inside:?}");
        }
        batch.end().await;
    });
    assert!(bed.left().is_empty());
    assert!(bed.staged().is_empty(), "{:?}", bed.staged());
    run("umount", &[&show(&snapshots)]);
}

#[tokio::test]
#[ignore = "needs root: make test runs it"]
async fn layers_are_not_moved_to_snapshots_of_another_form() {
    let bed = Bed::new();
    let layers = layers(&bed, "a", 2);
    let batch = bed.batch_by(Differ::Resnap, &layers, false);
    let scope = Scope::new("default");
    let (first, mounts) = bed.prepare(&[], &[]);
    batch.apply(&scope, 0, &mounts).await.unwrap();
    // As that of a layer on erofs.
    let (second, mounts) = bed.prepare(&[first], &[]);
    let snapshot = bed.fs(second).with_file_name("");
    fs::write(snapshot.join(".erofslayer"), "").unwrap();
    let error = batch.apply(&scope, 1, &mounts).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error:?}");
    assert!(!snapshot.join("layer.erofs").exists());
    batch.end().await;
    assert!(bed.staged().is_empty(), "{:?}", bed.staged());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_full_file_system_is_left_as_it_was() {
    let name = "places::a_full_file_system_is_left_as_it_was";
    if elsewhere(name, &["--mount"]) {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let at = show(dir.path());
    run("mount", &["-t", "tmpfs", "-o", "size=8m", "none", &at]);
    let bed = Bed::at(dir.path(), true);
    let data = vec![b'x'; 3 << 20];
    let layer = |file| bed.layer(TAR, tar(&[(file, &data)]));
    let layers = [layer("etc/file"), layer("etc/other")];
    block_on(async {
        let batch = bed.batch(&layers);
        let (snapshot, mounts) = bed.prepare(&[], &[]);
        let scope = Scope::new("default");
        let error = batch.apply(&scope, 0, &mounts).await.unwrap_err();
        assert_eq!(error.kind(), Kind::ResourceExhausted, "{error:?}");
        batch.end().await;
        assert!(bed.fs(snapshot).read_dir().unwrap().next().is_none());
    });
    assert!(bed.staged().is_empty(), "{:?}", bed.staged());
    run("umount", &[&at]);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_user_namespace_gets_attributes_of_its_own() {
    let name = "places::a_user_namespace_gets_attributes_of_its_own";
    if elsewhere(name, &["--user", "--map-root-user", "--mount"]) {
        return;
    }
    let bed = Bed::new();
    let lower = tar(&[("d/old", b""), ("o/old", b""), ("gone", b""), ("kept", b"")]);
    let upper = Tar::new(Metadata {
        device: (1, 3),
        ..METADATA
    })
    .file("d/new", "")
    .file("o/new", "")
    .file("o/.wh..wh..opq", "")
    .file(".wh.gone", "")
    .with(typeflag::CHARACTER, "device", b"", &[])
    .end();
    let layers = [lower, upper].map(|tar| bed.layer(TAR, tar));
    let mut placed = Vec::new();
    block_on(async {
        let batch = bed.batch(&layers);
        placed = bed.apply_all(&*batch, 2, &["userxattr"]).await;
        batch.end().await;
    });
    assert!(bed.left().is_empty());
    // The tree as the kernel shows it.
    let at = bed.root.join("merged");
    fs::create_dir(&at).unwrap();
    let dirs = format!(
        "userxattr,lowerdir={}:{}",
        show(&bed.fs(placed[1])),
        show(&bed.fs(placed[0]))
    );
    run("mount", &["-t", "overlay", "-o", &dirs, "none", &show(&at)]);
    for (path, is_there) in [
        ("d/old", true),
        ("d/new", true),
        ("o/old", false),
        ("o/new", true),
        ("gone", false),
        ("kept", true),
        ("device", false),
    ] {
        assert_eq!(at.join(path).exists(), is_there, "{path}");
    }
    run("umount", &[&show(&at)]);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn synced_layers_survive_a_power_cut() {
    let name = "places::synced_layers_survive_a_power_cut";
    if elsewhere(name, &["--mount"]) {
        return;
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let [disk, later, at] = ["disk", "later", "at"].map(|name| dir.path().join(name));
    fs::File::create(&disk).unwrap().set_len(32 << 20).unwrap();
    fs::create_dir(&at).unwrap();
    run("mkfs.ext4", &["-q", &show(&disk)]);
    // Without a sync it writes after this many seconds.
    let options = ["-o", "loop,commit=300"];
    run(
        "mount",
        &[&options[..], &[&show(&disk), &show(&at)]].concat(),
    );
    let bed = Bed::at(&at, true);
    let data = vec![b'x'; 1 << 20];
    let layer = bed.layer(TAR, tar(&[("etc/file", &data)]));
    let (snapshot, mounts) = bed.prepare(&[], &[]);
    run("sync", &["--file-system", &show(&at)]);
    block_on(async {
        let batch = bed.batch_by(Differ::Auto, &[layer], true);
        let scope = Scope::new("default");
        batch.apply(&scope, 0, &mounts).await.unwrap();
        // The power cut: only what is on the disk now is left.
        fs::copy(&disk, &later).unwrap();
        batch.end().await;
    });
    run("umount", &[&show(&at)]);
    run("mount", &["-o", "loop", &show(&later), &show(&at)]);
    let file = bed.fs(snapshot).join("etc/file");
    let found = fs::read(&file).unwrap();
    assert!(found == data, "{} bytes", found.len());
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o644);
    run("umount", &[&show(&at)]);
}
