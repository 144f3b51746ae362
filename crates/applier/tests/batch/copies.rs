// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that are copied from another chain.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use resnap_applier::{ApplierSettings, Differ};
use resnap_core::{
    ApplyMonitor, ApplyPermit, BatchApplier, BatchLayer, ChainView, Descriptor, Inspection, Kind,
    LayerCopy, Mount, Scope, Stage, StageTiming, error_chain,
};

use crate::bed::{Bed, GZIP, TAR, mount, tar};
use crate::{layers, text};

/// Returns layers that are copied from a chain.
fn copies(layers: &[Descriptor], chain: &ChainView) -> Vec<BatchLayer> {
    let chain = Arc::new(chain.clone());
    let copy = |(index, descriptor): (usize, &Descriptor)| BatchLayer {
        descriptor: descriptor.clone(),
        copy: Some(LayerCopy {
            chain: Arc::clone(&chain),
            index,
        }),
        signed: None,
    };
    layers.iter().enumerate().map(copy).collect()
}

/// Writes layers from their blobs, and returns a view of their chain. The blobs are gone then.
async fn chain(bed: &Bed, layers: &[Descriptor]) -> ChainView {
    let batch = bed.batch(layers);
    let snapshots = bed.apply_all(&*batch, layers.len(), &[]).await;
    batch.end().await;
    for layer in layers {
        fs::remove_file(bed.file(&layer.digest)).unwrap();
        bed.forget(layer);
    }
    bed.view(&snapshots)
}

fn batch(bed: &Bed, layers: Vec<BatchLayer>) -> Arc<dyn BatchApplier> {
    bed.batch_of(ApplierSettings::default(), layers, false)
}

/// Records what is read of the layers.
#[derive(Default)]
struct Reads(Mutex<BTreeMap<usize, Vec<u64>>>, Mutex<Vec<Stage>>);

#[async_trait]
impl ApplyMonitor for Reads {
    async fn admit(&self, _: usize) -> ApplyPermit {
        ApplyPermit::new(())
    }

    fn read(&self, index: usize, bytes: u64) {
        self.0.lock().unwrap().entry(index).or_default().push(bytes);
    }

    fn record_stage(&self, _: usize, stage: Stage, _: StageTiming) {
        self.1.lock().unwrap().push(stage);
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn layers_are_copied_without_their_blobs() {
    let reads = Arc::new(Reads::default());
    let mut bed = Bed::new();
    let layers = layers(&bed, "a", 12);
    let view = chain(&bed, &layers).await;
    bed.monitor = Arc::clone(&reads) as _;
    let applier = bed.applier(ApplierSettings::default());
    for inspection in [Inspection::Parents, Inspection::Full] {
        applier.inspect(&view, 0..12, inspection).await.unwrap();
    }
    let batch = batch(&bed, copies(&layers, &view));
    let mut snapshots = Vec::new();
    for index in 0..12 {
        let (snapshot, mounts) = bed.prepare(&snapshots, &[]);
        let applied = batch.apply(&Scope::new("default"), index, &mounts).await;
        let applied = applied.unwrap();
        assert_eq!(applied.diff_id, None);
        assert_eq!(applied.size, format!("a {index}").len() as u64);
        snapshots.push(snapshot);
        assert_eq!(text(&bed, snapshot), format!("a {index}"));
    }
    batch.end().await;
    assert!(bed.left().is_empty() && bed.sent().is_empty() && bed.staged().is_empty());
    assert!(!reads.1.lock().unwrap().contains(&Stage::Hash));
    for (index, reads) in &*reads.0.lock().unwrap() {
        assert!(reads.is_sorted(), "{reads:?}");
        assert_eq!(reads.last(), Some(&layers[*index].size));
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn layers_are_copied_to_images_and_full_copies() {
    for is_image in [true, false] {
        let bed = Bed::new();
        let layers = layers(&bed, "a", 3);
        let view = chain(&bed, &layers).await;
        let batch = batch(&bed, copies(&layers, &view));
        let mut snapshots = Vec::new();
        for index in 0..3 {
            let (snapshot, mut mounts) = bed.prepare(&snapshots, &[]);
            let directory = bed.fs(snapshot).with_file_name("");
            if is_image {
                File::create(directory.join(".erofslayer")).unwrap();
            } else {
                fs::remove_dir_all(&directory).unwrap();
                fs::create_dir(&directory).unwrap();
                let source = directory.display().to_string();
                let source = source.trim_end_matches('/');
                mounts = vec![mount("bind", source, &["rw".into(), "rbind".into()])];
            }
            let applied = batch.apply(&Scope::new("default"), index, &mounts).await;
            assert_eq!(applied.unwrap().diff_id, None);
            match is_image {
                true => assert!(directory.join("layer.erofs").exists()),
                false => {
                    let file = fs::read_to_string(directory.join("etc/file")).unwrap();
                    assert_eq!(file, format!("a {index}"));
                }
            }
            snapshots.push(snapshot);
        }
        batch.end().await;
        assert!(bed.left().is_empty() && bed.sent().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn layers_from_blobs_and_copies_are_mixed() {
    let bed = Bed::new();
    let all = layers(&bed, "a", 4);
    let view = chain(&bed, &all).await;
    let mut mixed = copies(&all, &view);
    for index in [1, 3] {
        let blob = tar(&[("etc/file", format!("a {index}").as_bytes())]);
        mixed[index] = bed.layer(TAR, blob).into();
    }
    let batch = batch(&bed, mixed);
    let snapshots = bed.apply_all(&*batch, 4, &[]).await;
    for (index, snapshot) in snapshots.into_iter().enumerate() {
        assert_eq!(text(&bed, snapshot), format!("a {index}"));
    }
    batch.end().await;
    assert!(bed.left().is_empty());
}

/// Returns the error of a copy of one layer with these mounts.
async fn refused(bed: &Bed, layer: BatchLayer, mounts: &[Mount]) -> (Kind, String) {
    let batch = batch(bed, vec![layer]);
    let applied = batch.apply(&Scope::new("default"), 0, mounts).await;
    batch.end().await;
    // It is not left to containerd, and its blob is not read.
    assert!(bed.left().is_empty() && bed.sent().is_empty() && bed.staged().is_empty());
    let error = applied.unwrap_err();
    (error.kind(), error_chain(&error))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs root: make test runs it"]
async fn what_cannot_be_copied_is_not_left_to_containerd() {
    let bed = Bed::new();
    let layers = layers(&bed, "a", 1);
    let view = chain(&bed, &layers).await;
    let good = copies(&layers, &view).remove(0);
    let (_, mounts) = bed.prepare(&[], &[]);
    let ext4 = [mount("ext4", "/dev/null", &[])];
    let (kind, said) = refused(&bed, good.clone(), &ext4).await;
    assert_eq!(kind, Kind::FailedPrecondition, "{said}");
    assert!(
        said.contains("ext4") && said.contains(layers[0].digest.as_str()),
        "{said}"
    );
    let mut encrypted = good.clone();
    encrypted.descriptor.media_type = format!("{GZIP}+encrypted");
    let (kind, said) = refused(&bed, encrypted, &mounts).await;
    assert_eq!(kind, Kind::FailedPrecondition, "{said}");
    let mut other = view.clone();
    other.snapshotter = "native".to_owned();
    let applier = bed.applier(ApplierSettings::default());
    let error = applier
        .inspect(&other, 0..1, Inspection::Parents)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), Kind::Unimplemented);
    let mut no_layer = good.clone();
    no_layer.copy.as_mut().unwrap().index = 1;
    let (kind, said) = refused(&bed, no_layer, &mounts).await;
    assert_eq!(kind, Kind::FailedPrecondition, "{said}");
    // It is not that of a chain without its parents, but of a name that no layer has.
    fs::write(bed.fs(1).join("etc/.wh.x"), "").unwrap();
    let (kind, said) = refused(&bed, good.clone(), &mounts).await;
    assert_eq!(kind, Kind::FailedPrecondition, "{said}");
    assert!(
        said.contains("etc/.wh.x") && said.contains("layer 0"),
        "{said}"
    );
    let inspect = |inspection| applier.inspect(&view, 0..1, inspection);
    inspect(Inspection::Parents).await.unwrap();
    let error = inspect(Inspection::Full).await.unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition);
    assert!(error_chain(&error).contains("etc/.wh.x"), "{error}");
    // The differ of containerd alone cannot copy.
    let mut settings = ApplierSettings::default();
    settings
        .differs
        .insert("overlayfs".to_owned(), Differ::Resnap);
    fs::remove_file(bed.fs(1).join("etc/.wh.x")).unwrap();
    let batch = bed.batch_of(settings, vec![good], false);
    let applied = batch
        .apply(&Scope::new("default"), 0, &mounts)
        .await
        .unwrap();
    assert_eq!(applied.diff_id, None);
    batch.end().await;
}
