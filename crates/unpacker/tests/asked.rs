// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that the backend asks for are jobs, and end before they are answered.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use resnap_core::testing::Simulated;
use resnap_core::{
    Applied, Applier, Batch, BatchApplier, Descriptor, Digest, Error, Integrity, Kind, Mount,
    Preparer, Profiles, Result, Scope,
};
use resnap_unpacker::{Engine, EngineSettings, JobState, LayerRequest};

/// Ends each layer in one way, or never.
#[derive(Clone, Default)]
struct Fake {
    outcome: Option<Kind>,
    batches: Arc<Mutex<Vec<Batch>>>,
    has_ended: Arc<AtomicBool>,
}

#[async_trait]
impl Applier for Fake {
    async fn apply(&self, _: &Scope, _: &Descriptor, _: &[Mount], _: bool) -> Result<Applied> {
        panic!("the backend would ask again");
    }

    async fn snapshotter_of(&self, mounts: &[Mount]) -> Result<Option<String>> {
        Ok((!mounts.is_empty()).then(|| "sn".to_owned()))
    }

    fn batch(&self, batch: &Batch) -> Option<Arc<dyn BatchApplier>> {
        self.batches.lock().unwrap().push(batch.clone());
        Some(Arc::new(self.clone()))
    }
}

#[async_trait]
impl BatchApplier for Fake {
    async fn apply(&self, _: &Scope, index: usize, _: &[Mount]) -> Result<Applied> {
        let batch = self.batches.lock().unwrap().last().cloned();
        let monitor = batch.unwrap().monitor;
        let _permit = monitor.admit(index).await;
        monitor.read(index, 3);
        match self.outcome {
            Some(kind) => Err(Error::new(kind, "apply layer", "x")),
            None => std::future::pending().await,
        }
    }

    async fn end(&self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.has_ended.store(true, Ordering::SeqCst);
    }
}

fn engine(fake: &Fake, integrity: Integrity) -> Engine {
    let mut ports = Simulated::new().ports();
    ports.applier = Arc::new(fake.clone());
    let mut settings = EngineSettings::default();
    let mut profiles = Profiles::default();
    profiles.entry("sn").integrity = integrity;
    settings.profiles = profiles;
    Engine::new(ports, "ns", settings).unwrap()
}

fn request(media_type: &str, mounts: usize) -> LayerRequest {
    LayerRequest {
        namespace: String::new(),
        layer: Descriptor {
            media_type: media_type.to_owned(),
            digest: Digest::sha256(b"blob"),
            size: 4,
            annotations: Default::default(),
            platform: None,
        },
        mounts: vec![Mount::default(); mounts],
        sync_fs: true,
        backend: 7,
    }
}

const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

#[tokio::test(start_paused = true)]
async fn a_layer_is_a_job_and_its_work_ends_before_the_answer() {
    let fake = Fake::default();
    let engine = engine(&fake, Integrity::Off);
    let asking = engine.clone();
    let answer = tokio::spawn(async move { asking.write_layer(request(TAR, 1)).await });
    tokio::time::sleep(Duration::from_millis(1)).await;
    let jobs = engine.jobs();
    let [job] = &jobs[..] else {
        panic!("{jobs:?}");
    };
    assert_eq!(job.image, Digest::sha256(b"blob").to_string());
    assert_eq!((&*job.origin, &*job.snapshotter), ("diff", "sn"));
    assert_eq!((job.read_bytes, job.bytes, job.layers), (3, 4, 1));
    let ended = engine.cancel(job.id, false).await.unwrap();
    assert_eq!(ended.state, JobState::Cancelled);
    assert!(fake.has_ended.load(Ordering::SeqCst));
    let error = answer.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), Kind::Cancelled);
    assert!(engine.jobs().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_job_of_a_call_that_is_dropped_ends() {
    let fake = Fake::default();
    let engine = engine(&fake, Integrity::Off);
    let call = engine.write_layer(request(TAR, 1));
    let limit = Duration::from_millis(1);
    assert!(tokio::time::timeout(limit, call).await.is_err());
    assert!(engine.jobs().is_empty());
}

#[tokio::test(start_paused = true)]
async fn layers_that_would_wait_long_are_left_to_the_backend() {
    let engine = engine(&Fake::default(), Integrity::Off);
    let mut calls: Vec<_> = (0..40)
        .map(|_| {
            let engine = engine.clone();
            tokio::spawn(async move { engine.write_layer(request(TAR, 1)).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_secs(10)).await;
    calls.retain(|call| call.is_finished());
    // The others are being written, and never end.
    assert!((1..40).contains(&calls.len()), "{}", calls.len());
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap(), None);
    }
}

#[tokio::test(start_paused = true)]
async fn layers_are_left_to_the_backend_or_fail() {
    for (media_type, mounts, outcome, is_asked, failure) in [
        (TAR, 1, Kind::Unimplemented, true, None),
        (TAR, 1, Kind::DataLoss, true, Some(Kind::DataLoss)),
        (TAR, 0, Kind::DataLoss, false, None),
        (
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            1,
            Kind::DataLoss,
            false,
            None,
        ),
    ] {
        let fake = Fake {
            outcome: Some(outcome),
            ..Fake::default()
        };
        let engine = engine(&fake, Integrity::Off);
        let answer = engine.write_layer(request(media_type, mounts)).await;
        match failure {
            None => assert_eq!(answer.unwrap(), None),
            Some(kind) => assert_eq!(answer.unwrap_err().kind(), kind),
        }
        assert_eq!(fake.has_ended.load(Ordering::SeqCst), is_asked);
    }
}

#[tokio::test(start_paused = true)]
async fn no_layer_has_a_signature() {
    for (needed, given) in [
        (Integrity::Off, Integrity::Off),
        (Integrity::Verity, Integrity::Verity),
        (Integrity::Signed, Integrity::Verity),
    ] {
        let fake = Fake {
            outcome: Some(Kind::Unimplemented),
            ..Fake::default()
        };
        let answer = engine(&fake, needed).write_layer(request(TAR, 1)).await;
        assert_eq!(answer.unwrap(), None);
        let batch = fake.batches.lock().unwrap()[0].clone();
        assert_eq!(batch.integrity, given);
        assert_eq!(batch.preparer, Preparer::Backend(7));
        assert!(batch.sync_fs);
    }
}
