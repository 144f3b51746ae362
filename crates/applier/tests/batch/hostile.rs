// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Hostile layers that try to exhaust memory or time.

use std::fs::{self, File};
use std::io::Write as _;
use std::time::{Duration, Instant};

use flate2::write::GzEncoder;
use resnap_applier::ApplierSettings;
use resnap_core::{Descriptor, Error, Kind, Scope, error_chain};
use resnap_layer::testing::{Metadata, Tar};
use tokio::time::timeout;

use crate::bed::{Bed, GZIP, METADATA, TAR, block_on, elsewhere, tar};
use crate::many::peak;
use crate::{layers, text};

const MIB: u64 = 1 << 20;

/// MiB besides the memory of layers: for threads, and buffers of layers that are being written.
const OVERHEAD: u64 = 48;

/// Returns an empty layer whose entries are of root.
fn empty() -> Tar {
    Tar::new(Metadata {
        mode: 0o755,
        ..METADATA
    })
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns a layer of directories with an extended attribute each: `own` values, or all the same.
fn bomb(count: usize, name: &str, bytes: usize, own: bool) -> Vec<u8> {
    let mut tar = empty();
    let key = format!("SCHILY.xattr.{name}");
    for number in 0..count {
        let value: Vec<u8> = match own {
            true => number.to_string().bytes().cycle().take(bytes).collect(),
            false => vec![b'x'; bytes],
        };
        tar = tar.pax(&[(&key, &value)]).directory(format!("d{number}/"));
    }
    gzip(&tar.end())
}

fn settings(memory: u64) -> ApplierSettings {
    let mut settings = ApplierSettings::default();
    settings.memory = memory;
    settings
}

/// Builds layers ahead of one that never ends. Returns how many MiB that takes.
fn takes_beside_a_slow_one(memory: u64, bomb: Vec<u8>, is_image: bool) -> u64 {
    let bed = Bed::new();
    let slow = layers(&bed, "a", 1).remove(0);
    bed.stick(&slow, true);
    let mut layers = vec![slow];
    layers.extend((0..20).map(|_| bed.layer(GZIP, bomb.clone())));
    let (snapshot, mounts) = bed.prepare(&[], &[]);
    if is_image {
        File::create(bed.fs(snapshot).with_file_name(".erofslayer")).unwrap();
    }
    let before = peak();
    block_on(async {
        let batch = bed.batch_with(settings(memory), &layers, false);
        let scope = Scope::new("default");
        let apply = batch.apply(&scope, 0, &mounts);
        assert!(timeout(Duration::from_secs(8), apply).await.is_err());
        batch.end().await;
    });
    peak() - before
}

/// Measures in a process of its own. Each layer takes less than its limit.
fn bombs_are_bounded(test: &str, is_image: bool, name: &str, bytes: usize) {
    if elsewhere(&format!("hostile::{test}"), &["--mount"]) {
        return;
    }
    let memory = 32;
    let bomb = bomb(18_000_000 / bytes, name, bytes, true);
    let took = takes_beside_a_slow_one(memory * MIB, bomb, is_image);
    assert!(took < memory + OVERHEAD, "{took} MiB");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn attributes_that_are_not_set_take_no_memory() {
    let test = "attributes_that_are_not_set_take_no_memory";
    bombs_are_bounded(test, false, "trusted.x", 200_000);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn attributes_ahead_are_bounded() {
    bombs_are_bounded("attributes_ahead_are_bounded", false, "user.x", 3000);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn attributes_of_images_ahead_are_bounded() {
    let test = "attributes_of_images_ahead_are_bounded";
    bombs_are_bounded(test, true, "security.x", 60_000);
}

/// A regression: 0.7 MB of each layer took 512 MiB.
#[test]
#[ignore = "takes minutes"]
fn bombs_take_no_more_than_the_default() {
    if elsewhere("hostile::bombs_take_no_more_than_the_default", &["--mount"]) {
        return;
    }
    for (name, own) in [("trusted.x", false), ("user.x", true)] {
        let bomb = bomb(2040, name, 262_000, own);
        let took = takes_beside_a_slow_one(resnap_applier::MEMORY, bomb, false);
        assert!(
            took < resnap_applier::MEMORY / MIB + OVERHEAD,
            "{name}: {took} MiB"
        );
    }
}

/// Returns the error of a batch of one layer.
async fn refused(bed: &Bed, settings: ApplierSettings, layer: Descriptor) -> Error {
    let batch = bed.batch_with(settings, &[layer], false);
    let (_, mounts) = bed.prepare(&[], &[]);
    let applied = batch.apply(&Scope::new("default"), 0, &mounts).await;
    batch.end().await;
    assert!(bed.left().is_empty() && bed.staged().is_empty());
    applied.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn a_layer_that_takes_too_much_is_refused_by_name() {
    let bed = Bed::new();
    let layer = bed.layer(GZIP, bomb(50, "user.x", 200_000, true));
    let error = refused(&bed, settings(8 * MIB), layer.clone()).await;
    assert_eq!(error.kind(), Kind::ResourceExhausted);
    let text = error_chain(&error);
    assert!(text.contains(layer.digest.as_str()), "{text}");
    assert!(
        text.contains("more than 5242880 bytes") && text.contains("raise memory"),
        "{text}"
    );
    // The same attributes are stored once. Longer ones would exceed the limit of the file system.
    let layer = bed.layer(GZIP, bomb(50, "user.x", 3000, false));
    let batch = bed.batch_with(settings(MIB / 4), &[layer], false);
    bed.apply_all(&*batch, 1, &[]).await;
    batch.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn layers_without_memory_ahead_are_written_in_their_turn() {
    let bed = Bed::new();
    let many = |layer: usize| {
        let names = (0..500).map(|at| (format!("d{layer}-{at}/file"), &b"x"[..]));
        let names: Vec<_> = names.collect();
        let files: Vec<_> = names
            .iter()
            .map(|(name, data)| (&name[..], *data))
            .collect();
        bed.layer(TAR, tar(&files))
    };
    let layers: Vec<_> = (0..6).map(many).collect();
    // The 500 directories of a layer take more than three sixteenths, and less than ten.
    let batch = bed.batch_with(settings(400_000), &layers, false);
    let snapshots = bed.apply_all(&*batch, 6, &[]).await;
    for (layer, snapshot) in snapshots.into_iter().enumerate() {
        let at = bed.fs(snapshot).join(format!("d{layer}-499/file"));
        assert_eq!(fs::read(at).unwrap(), b"x");
    }
    batch.end().await;
    assert!(bed.left().is_empty() && bed.staged().is_empty());
}

/// Returns a layer with two chains of links, and directories at their ends in turns.
fn links() -> Vec<u8> {
    let mut tar = empty();
    for chain in 0..2 {
        for at in 0..254 {
            let target = format!("{}L{chain}-{}", "a/../".repeat(15), at + 1);
            tar = tar.symlink(format!("L{chain}-{at}"), target);
        }
    }
    for number in 0..100_000 {
        tar = tar.directory(format!("L{}-0/x", number % 2));
    }
    gzip(&tar.end())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn links_that_only_take_time_are_refused_soon() {
    for is_image in [false, true] {
        let bed = Bed::new();
        let layer = bed.layer(GZIP, links());
        let batch = bed.batch(std::slice::from_ref(&layer));
        let (snapshot, mounts) = bed.prepare(&[], &[]);
        if is_image {
            File::create(bed.fs(snapshot).with_file_name(".erofslayer")).unwrap();
        }
        let begin = Instant::now();
        let applied = batch.apply(&Scope::new("default"), 0, &mounts).await;
        let error = applied.unwrap_err();
        assert_eq!(
            error.kind(),
            Kind::ResourceExhausted,
            "{}",
            error_chain(&error)
        );
        assert!(
            begin.elapsed() < Duration::from_secs(30),
            "{:?}",
            begin.elapsed()
        );
        batch.end().await;
        assert!(bed.left().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn stalled_layers_fail() {
    for begins in [false, true] {
        let bed = Bed::new();
        let layers = layers(&bed, "a", 3);
        bed.stick(&layers[1], begins);
        let mut settings = ApplierSettings::default();
        settings.stall = Duration::from_secs(1);
        let batch = bed.batch_with(settings, &layers, false);
        let snapshots = bed.apply_all(&*batch, 1, &[]).await;
        let (_, mounts) = bed.prepare(&snapshots, &[]);
        let scope = Scope::new("default");
        let apply = batch.apply(&scope, 1, &mounts);
        let applied = timeout(Duration::from_secs(20), apply).await.unwrap();
        let error = applied.unwrap_err();
        assert_eq!(error.kind(), Kind::DeadlineExceeded);
        let said = error_chain(&error);
        assert!(said.contains(layers[1].digest.as_str()), "{said}");
        assert!(
            said.contains("for 1s") && said.contains("raise stall"),
            "{said}"
        );
        batch.end().await;
        assert!(bed.staged().is_empty(), "{:?}", bed.staged());
        assert_eq!(text(&bed, snapshots[0]), "a 0");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn malformed_layers_fail_while_containerd_is_stuck() {
    let bed = Bed::new();
    let data = vec![0; 2000];
    let names: Vec<_> = (0..1000).map(|at| at.to_string()).collect();
    let files: Vec<_> = names.iter().map(|name| (&name[..], &data[..])).collect();
    let mut archive = tar(&files);
    // A header in the middle of the bytes that are sent.
    archive[2560 * 100] ^= 1;
    let layer = bed.layer(TAR, archive);
    bed.stick_after(&layer, Some(600));
    let (_, mounts) = bed.prepare(&[], &[]);
    let batch = bed.batch(std::slice::from_ref(&layer));
    let scope = Scope::new("default");
    let apply = batch.apply(&scope, 0, &mounts);
    let applied = timeout(Duration::from_secs(20), apply).await.unwrap();
    assert_eq!(applied.unwrap_err().kind(), Kind::InvalidArgument);
    batch.end().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn stalled_differs_fail() {
    let bed = Bed::new();
    let layer = bed.layer(&format!("{TAR}+gzip+encrypted"), b"secret".to_vec());
    bed.stick(&layer, true);
    let mut settings = ApplierSettings::default();
    settings.stall = Duration::from_secs(1);
    let batch = bed.batch_with(settings, std::slice::from_ref(&layer), false);
    let (snapshot, mounts) = bed.prepare(&[], &[]);
    let scope = Scope::new("default");
    let apply = batch.apply(&scope, 0, &mounts);
    let applied = timeout(Duration::from_secs(20), apply).await.unwrap();
    let error = applied.unwrap_err();
    assert_eq!(error.kind(), Kind::DeadlineExceeded);
    let said = error_chain(&error);
    assert!(
        said.contains(layer.digest.as_str()) && said.contains("raise stall"),
        "{said}"
    );
    // It was not interrupted while it wrote.
    assert_eq!(fs::read(bed.fs(snapshot).join("file")).unwrap(), b"19");
    batch.end().await;
}
