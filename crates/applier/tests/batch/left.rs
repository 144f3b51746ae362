// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that are left to containerd, and layers that are not.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use flate2::write::GzEncoder;
use resnap_applier::ApplierSettings;
use resnap_core::{Descriptor, Mount, Scope};

use crate::bed::{Bed, GZIP, TAR, block_on, elsewhere, run, tar};
use crate::{layers, text};

/// Applies one layer. Returns whether containerd was asked to.
async fn is_left(bed: &Bed, layer: &Descriptor, mounts: &[Mount]) -> bool {
    let before = bed.left().len();
    let batch = bed.batch(std::slice::from_ref(layer));
    let applied = batch.apply(&Scope::new("default"), 0, mounts).await;
    batch.end().await;
    applied.unwrap();
    assert!(bed.staged().is_empty(), "{:?}", bed.staged());
    bed.left().len() > before
}

#[test]
#[ignore = "needs root: make test runs it"]
fn snapshots_that_cannot_be_written_to() {
    let name = "left::snapshots_that_cannot_be_written_to";
    if elsewhere(name, &["--mount"]) {
        return;
    }
    let bed = Bed::new();
    let layer = layers(&bed, "a", 1).remove(0);
    let (snapshot, mounts) = bed.prepare(&[], &[]);
    let root = bed.root.display().to_string();
    run("mount", &["--bind", &root, &root]);
    run("mount", &["-o", "remount,bind,ro", &root]);
    block_on(async {
        assert!(is_left(&bed, &layer, &mounts).await);
    });
    run("umount", &[&root]);
    let there = bed.fs(snapshot).with_file_name("").read_dir().unwrap();
    assert_eq!(there.count(), 2, "more than fs and work");
}

#[tokio::test]
#[ignore = "needs root: make test runs it"]
async fn snapshots_of_others() {
    let bed = Bed::new();
    let layer = layers(&bed, "a", 1).remove(0);
    let (old, mounts) = bed.prepare(&[], &[]);
    std::thread::sleep(Duration::from_secs(2));
    assert!(is_left(&bed, &layer, &mounts).await);
    assert!(!bed.fs(old).join("etc").exists());

    let (image, mounts) = bed.prepare(&[], &[]);
    let there = bed.fs(image).with_file_name("layer.erofs");
    File::create(bed.fs(image).with_file_name(".erofslayer")).unwrap();
    fs::write(&there, "somebody's").unwrap();
    assert!(is_left(&bed, &layer, &mounts).await);
    assert_eq!(fs::read(&there).unwrap(), b"somebody's");

    std::os::unix::fs::chown(bed.root.join("overlayfs/snapshots"), Some(1000), None).unwrap();
    let (rootless, mounts) = bed.prepare(&[], &[]);
    assert!(is_left(&bed, &layer, &mounts).await);
    assert!(!bed.fs(rootless).join("etc").exists());
}

#[tokio::test]
#[ignore = "needs root: make test runs it"]
async fn images_on_parents_of_another_kind() {
    let bed = Bed::new();
    // `etc` is looked up in the parent.
    let layer = layers(&bed, "a", 1).remove(0);
    for is_staged in [true, false] {
        if !is_staged {
            let _ = fs::remove_dir(bed.root.join("overlayfs/.resnap"));
            File::create(bed.root.join("overlayfs/.resnap")).unwrap();
        }
        let (parent, _) = bed.prepare(&[], &[]);
        fs::write(bed.fs(parent).with_file_name("layer.erofs"), [0; 8192]).unwrap();
        let (image, mounts) = bed.prepare(&[parent], &[]);
        File::create(bed.fs(image).with_file_name(".erofslayer")).unwrap();
        let batch = bed.batch(std::slice::from_ref(&layer));
        let applied = batch.apply(&Scope::new("default"), 0, &mounts).await;
        batch.end().await;
        applied.unwrap();
        assert_eq!(bed.left().pop(), Some(layer.digest.clone()));
        assert!(!bed.fs(image).with_file_name("layer.erofs").exists());
    }
}

#[tokio::test]
#[ignore = "needs root: make test runs it"]
async fn images_beside_others_with_verity() {
    let bed = Bed::new();
    let layer = layers(&bed, "a", 1).remove(0);
    let (other, _) = bed.prepare(&[], &[]);
    let (image, mounts) = bed.prepare(&[], &[]);
    File::create(bed.fs(image).with_file_name(".erofslayer")).unwrap();
    let sidecar = bed.fs(other).with_file_name("layer.erofs.dmverity");
    File::create(&sidecar).unwrap();
    // The trial file of another batch.
    File::create(bed.root.join("overlayfs/snapshots/9.resnap-trial")).unwrap();
    assert!(!is_left(&bed, &layer, &mounts).await);
    assert!(bed.fs(image).with_file_name("layer.erofs").exists());
    // containerd mounts no image with a tree without the support of the kernel.
    let has_tree = bed
        .fs(image)
        .with_file_name("layer.erofs.dmverity")
        .exists();
    assert_eq!(has_tree, Path::new("/sys/module/dm_verity").exists());
}

#[tokio::test]
#[ignore = "needs root: make test runs it"]
async fn zstd_windows_for_which_there_is_no_memory() {
    let bed = Bed::new();
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(28).unwrap();
    encoder.write_all(&tar(&[("etc/file", b"x")])).unwrap();
    let layer = bed.layer(GZIP, encoder.finish().unwrap());
    let (snapshot, mounts) = bed.prepare(&[], &[]);
    assert!(is_left(&bed, &layer, &mounts).await);
    let there = bed.fs(snapshot).with_file_name("").read_dir().unwrap();
    assert_eq!(there.count(), 2, "more than fs and work");
    assert!(bed.fs(snapshot).read_dir().unwrap().next().is_none());
    // With more memory it is written in process.
    let mut settings = ApplierSettings::default();
    settings.memory = 1 << 30;
    let batch = bed.batch_with(settings, &[layer], false);
    let snapshot = bed.apply_all(&*batch, 1, &[]).await[0];
    batch.end().await;
    assert_eq!(text(&bed, snapshot), "x");
}

/// containerd detects the compression of each of these.
#[tokio::test]
#[ignore = "needs root: make test runs it"]
async fn compression_is_detected() {
    let bed = Bed::new();
    let archive = tar(&[("etc/file", b"x")]);
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&archive).unwrap();
    let gzip = encoder.finish().unwrap();
    let docker = "application/vnd.docker.image.rootfs.diff.tar";
    for (media_type, blob) in [
        (docker, gzip.clone()),
        (GZIP, archive.clone()),
        (GZIP, zstd::encode_all(&archive[..], 1).unwrap()),
        (TAR, gzip.clone()),
        (TAR, zstd::encode_all(&archive[..], 1).unwrap()),
        (TAR, [&gzip[..], &[0; 1000]].concat()),
    ] {
        let layer = bed.layer(media_type, blob);
        let (snapshot, mounts) = bed.prepare(&[], &[]);
        assert!(!is_left(&bed, &layer, &mounts).await);
        assert_eq!(text(&bed, snapshot), "x", "{media_type}");
    }
    for media_type in [TAR, GZIP] {
        let layer = bed.layer(media_type, Vec::new());
        let (snapshot, mounts) = bed.prepare(&[], &[]);
        assert!(!is_left(&bed, &layer, &mounts).await);
        assert!(bed.fs(snapshot).read_dir().unwrap().next().is_none());
    }
}
