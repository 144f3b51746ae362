// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that containerd asks for, in snapshots that any client of it has prepared.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::time::Duration;

use resnap_applier::{ApplierSettings, Differ};
use resnap_core::{Applied, Descriptor, Digest, Error, Kind, Mount, Scope, error_chain};
use resnap_layer::testing::Tar;

use crate::bed::{Bed, METADATA, TAR, tar};
use crate::{layers, text};

async fn asked(bed: &Bed, layer: &Descriptor, mounts: &[Mount]) -> Result<Applied, Error> {
    let batch = bed.asked(layer, std::process::id());
    let applied = batch.apply(&Scope::new("default"), 0, mounts).await;
    batch.end().await;
    assert!(bed.staged().is_empty(), "{:?}", bed.staged());
    assert!(bed.left().is_empty(), "containerd would ask again");
    applied
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn old_snapshots_and_blobs_of_any_namespace_are_taken() {
    let bed = Bed::new();
    let layer = layers(&bed, "a", 1).remove(0);
    bed.forget(&layer);
    let (snapshot, mounts) = bed.prepare(&[], &[]);
    std::thread::sleep(Duration::from_secs(2));
    let applied = asked(&bed, &layer, &mounts).await.unwrap();
    assert_eq!(applied.diff_id, Some(layer.digest));
    assert_eq!(applied.size, layer.size);
    assert_eq!(text(&bed, snapshot), "a 0");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn blobs_of_other_namespaces_are_not_taken() {
    let bed = Bed::new();
    let layer = layers(&bed, "a", 1).remove(0);
    bed.forget(&layer);
    let (snapshot, mounts) = bed.prepare(&[], &[]);
    let batch = bed.asked_in("default", &layer, std::process::id());
    let error = batch.apply(&Scope::new("default"), 0, &mounts).await;
    assert_eq!(error.unwrap_err().kind(), Kind::Unimplemented);
    batch.end().await;
    assert!(bed.fs(snapshot).read_dir().unwrap().next().is_none());
}

/// Returns a layer whose second directory has an access control list for what is in it, which is not supported.
fn half_supported() -> Vec<u8> {
    let mut acl = vec![2, 0, 0, 0];
    for tag in [1, 4, 0x20] {
        acl.extend([tag, 0, 7, 0, 255, 255, 255, 255]);
    }
    Tar::new(METADATA)
        .file("app/bin/tool", "x")
        .pax(&[("SCHILY.xattr.system.posix_acl_default", &acl)])
        .directory("acl")
        .file("acl/file", "x")
        .end()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn a_layer_that_is_half_written_is_not_left_to_containerd() {
    let bed = Bed::new();
    let layer = bed.layer(TAR, half_supported());
    // In staging, nothing is left of it.
    let (snapshot, mounts) = bed.prepare(&[], &[]);
    let error = asked(&bed, &layer, &mounts).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unimplemented, "{error:?}");
    assert!(bed.fs(snapshot).read_dir().unwrap().next().is_none());
    // A full copy is written in its place.
    let (snapshot, mut mounts) = bed.prepare(&[], &[]);
    let fs = bed.fs(snapshot);
    let directory = fs.parent().unwrap();
    for name in ["fs", "work"] {
        fs::remove_dir(directory.join(name)).unwrap();
    }
    mounts[0].source = directory.display().to_string();
    let error = asked(&bed, &layer, &mounts).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error:?}");
    let why = error_chain(&error);
    assert!(why.contains("half written"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn parallel_layers_have_whiteouts_and_plain_directories() {
    let bed = Bed::new();
    let blob = tar(&[
        ("etc/.wh.gone", b""),
        ("etc/new", b"x"),
        ("opt/.wh..wh..opq", b""),
    ]);
    let layer = bed.layer(TAR, blob);
    let (snapshot, mut mounts) = bed.prepare(&[], &[]);
    let upper = format!("upperdir={}", mounts[0].source);
    mounts[0].kind = "overlay".to_owned();
    mounts[0].options = vec!["rw".to_owned(), upper];
    asked(&bed, &layer, &mounts).await.unwrap();
    let at = |path: &str| fs::symlink_metadata(bed.fs(snapshot).join(path)).unwrap();
    assert!(at("etc/gone").file_type().is_char_device());
    use std::os::unix::fs::MetadataExt as _;
    for path in ["", "etc", "opt"] {
        let is = (at(path).mode() & 0o7777, at(path).uid(), at(path).gid());
        assert_eq!(is, (0o755, 0, 0), "{path}");
    }
    let opaque = rustix::fs::getxattr(
        bed.fs(snapshot).join("opt"),
        "trusted.overlay.opaque",
        &mut [0_u8; 8],
    );
    assert_eq!(opaque, Ok(1));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn what_cannot_be_written_is_refused_with_nothing_written() {
    let bed = Bed::new();
    let plain = layers(&bed, "a", 1).remove(0);
    let encrypted = Descriptor {
        media_type: format!("{TAR}+gzip+encrypted"),
        ..plain.clone()
    };
    let missing = Descriptor {
        digest: Digest::sha256(b"missing"),
        ..plain.clone()
    };
    let other_size = Descriptor {
        size: 1,
        ..plain.clone()
    };
    for layer in [encrypted, missing, other_size] {
        let (snapshot, mounts) = bed.prepare(&[], &[]);
        let error = asked(&bed, &layer, &mounts).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unimplemented, "{layer:?}");
        assert!(bed.fs(snapshot).read_dir().unwrap().next().is_none());
    }
    // That of another containerd, of which this process knows nothing.
    let (snapshot, mounts) = bed.prepare(&[], &[]);
    let batch = bed.asked(&plain, u32::MAX);
    let error = batch.apply(&Scope::new("default"), 0, &mounts).await;
    assert_eq!(error.unwrap_err().kind(), Kind::Unimplemented);
    batch.end().await;
    assert!(bed.fs(snapshot).read_dir().unwrap().next().is_none());
}

#[tokio::test]
async fn snapshotters_are_found_by_their_mounts() {
    let (bed, other) = (Bed::new(), Bed::new());
    for (differ, is_written) in [
        (Differ::Auto, true),
        (Differ::Resnap, true),
        (Differ::Containerd, false),
    ] {
        let mut settings = ApplierSettings::default();
        settings.differs.insert("overlayfs".to_owned(), differ);
        let applier = bed.applier(settings);
        let (lower, bind) = bed.prepare(&[], &[]);
        let (_, overlay) = bed.prepare(&[lower], &[]);
        for mounts in [&bind, &overlay] {
            let found = applier.snapshotter_of(mounts).await.unwrap();
            assert_eq!(found.as_deref() == Some("overlayfs"), is_written);
        }
        let (_, elsewhere) = other.prepare(&[], &[]);
        for mounts in [&elsewhere[..], &[]] {
            assert_eq!(applier.snapshotter_of(mounts).await.unwrap(), None);
        }
    }
}
