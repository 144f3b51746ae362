// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! However a batch ends, it leaves nothing behind.

use std::fs::{self, File};
use std::time::Duration;

use resnap_core::{Kind, Scope, error_chain};
use tokio::time::timeout;

use crate::bed::{Bed, GZIP};
use crate::{layers, text};

/// A time in which all work has stopped.
const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn a_broken_layer_spares_the_others() {
    let scope = Scope::new("default");
    let bed = Bed::new();
    let mut layers = layers(&bed, "a", 4);
    layers[2] = bed.layer(GZIP, b"not compressed at all".to_vec());
    let batch = bed.batch(&layers);
    let snapshots = bed.apply_all(&*batch, 2, &[]).await;
    let (torn, mounts) = bed.prepare(&snapshots, &[]);
    let error = batch.apply(&scope, 2, &mounts).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains(layers[2].digest.as_str()));
    assert!(error_chain(&error).contains("not a tar"), "{error:?}");
    batch.end().await;
    assert!(bed.staged().is_empty(), "{:?}", bed.staged());
    assert!(bed.fs(torn).read_dir().unwrap().next().is_none());
    assert_eq!(text(&bed, snapshots[1]), "a 1");
    // A batch that has ended starts nothing.
    let error = batch.apply(&scope, 3, &mounts).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
    assert!(bed.fs(torn).read_dir().unwrap().next().is_none());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn it_ends_while_containerd_is_stuck() {
    let scope = Scope::new("default");
    for begins in [false, true] {
        let bed = Bed::new();
        let layers = layers(&bed, "a", 3);
        bed.stick(&layers[1], begins);
        let batch = bed.batch(&layers);
        let snapshots = bed.apply_all(&*batch, 1, &[]).await;
        let (stuck, mounts) = bed.prepare(&snapshots, &[]);
        let apply = batch.apply(&scope, 1, &mounts);
        let end = async {
            while bed.sent().is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            timeout(SOON, batch.end()).await
        };
        let (applied, ended) = tokio::join!(timeout(SOON, apply), end);
        ended.unwrap();
        assert_eq!(applied.unwrap().unwrap_err().kind(), Kind::Cancelled);
        assert!(bed.staged().is_empty(), "{:?}", bed.staged());
        assert!(bed.fs(stuck).read_dir().unwrap().next().is_none());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn dropped_batches_are_cleaned_up() {
    let bed = Bed::new();
    let layers = layers(&bed, "a", 3);
    bed.stick(&layers[1], true);
    let batch = bed.batch(&layers);
    bed.apply_all(&*batch, 1, &[]).await;
    assert!(!bed.staged().is_empty());
    drop(batch);
    let gone = async {
        while !bed.staged().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, gone).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn layers_that_wait_for_their_turn_are_few() {
    let bed = Bed::new();
    // More than are built at once.
    let count = 4 * std::thread::available_parallelism().unwrap().get() + 20;
    let layers = layers(&bed, "a", count);
    bed.stick(&layers[0], true);
    let batch = bed.batch(&layers);
    let scope = Scope::new("default");
    let (_, mounts) = bed.prepare(&[], &[]);
    let apply = batch.apply(&scope, 0, &mounts);
    assert!(timeout(Duration::from_secs(1), apply).await.is_err());
    let staged = bed.staged()[0].read_dir().unwrap().count();
    assert!((2..count - 10).contains(&staged), "{staged}");
    batch.end().await;

    // Each gets its turn, also if other processes make some of them.
    let batch = bed.batch(&layers[1..]);
    let mut snapshots = Vec::new();
    for index in (0..count - 1).filter(|index| index % 3 != 1) {
        let (snapshot, mounts) = bed.prepare(&snapshots, &[]);
        let applied = timeout(SOON, batch.apply(&scope, index, &mounts)).await;
        applied.unwrap().unwrap();
        assert_eq!(text(&bed, snapshot), format!("a {}", index + 1));
        snapshots.push(snapshot);
    }
    batch.end().await;
    assert!(bed.left().is_empty());
}

#[tokio::test]
#[ignore = "needs root: make test runs it"]
async fn orphaned_staging_is_removed() {
    let bed = Bed::new();
    let staging = bed.root.join("overlayfs/.resnap");
    let (orphan, held) = (staging.join("1-0-orphan"), staging.join("1-0-held"));
    for dir in [&orphan, &held] {
        fs::create_dir_all(dir.join("0/etc")).unwrap();
        fs::write(dir.join("0/etc/file"), "half").unwrap();
    }
    let lock = File::open(&held).unwrap();
    lock.lock().unwrap();
    let layers = layers(&bed, "a", 2);
    let unpack = async || {
        let batch = bed.batch(&layers);
        bed.apply_all(&*batch, 2, &[]).await;
        batch.end().await;
    };
    unpack().await;
    assert_eq!(bed.staged(), [held]);
    drop(lock);
    unpack().await;
    assert!(bed.staged().is_empty(), "{:?}", bed.staged());
}
