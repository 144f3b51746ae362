// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A job reports its progress, to all in the same way, and through layers of any size.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use resnap_core::testing::{Behaviour, Simulated, SimulatedImage, SimulatedLayer};
use resnap_core::{Applied, Applier, Batch, BatchApplier, Descriptor, Mount, Result, Scope};
use resnap_unpacker::{Engine, EngineSettings, Phase, Progress, Request};

/// Applies as another does, and says that it reads the blob bit by bit, for 100 s.
#[derive(Clone)]
struct Slow {
    inner: Arc<dyn Applier>,
    batch: Option<Batch>,
}

#[async_trait]
impl Applier for Slow {
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied> {
        self.inner.apply(scope, layer, mounts, sync_fs).await
    }

    fn batch(&self, batch: &Batch) -> Option<Arc<dyn BatchApplier>> {
        let batch = Some(batch.clone());
        Some(Arc::new(Self {
            batch,
            ..self.clone()
        }))
    }
}

#[async_trait]
impl BatchApplier for Slow {
    async fn apply(&self, scope: &Scope, index: usize, mounts: &[Mount]) -> Result<Applied> {
        let Batch {
            layers, monitor, ..
        } = self.batch.as_ref().unwrap();
        let _admission = monitor.admit(index).await;
        let layer = &layers[index];
        for thousandth in 0..1000 {
            monitor.read(index, layer.descriptor.size * thousandth / 1000);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.inner
            .apply(scope, &layer.descriptor, mounts, false)
            .await
    }

    async fn end(&self) {}
}

fn engine() -> Engine {
    let simulated = Simulated::new();
    simulated.add_snapshotter("sn", Behaviour::Ordinary);
    let layers = ["a", "b"].map(|text| SimulatedLayer::new(&text.repeat(10_000)));
    simulated.add_image("ns", "web", &SimulatedImage::new(layers));
    let mut ports = simulated.ports();
    ports.applier = Arc::new(Slow {
        inner: ports.applier,
        batch: None,
    });
    Engine::new(ports, "ns", EngineSettings::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_job_moves_through_a_large_layer() {
    let engine = engine();
    let job = engine.unpack(Request::new("web").on("sn"));
    let mut events = job.events();
    let mut watch = engine.watch_jobs();
    let watching = tokio::spawn(async move {
        let mut told = 0;
        loop {
            let news = watch.next().await.unwrap();
            told += news.len();
            if news.iter().any(|job| job.ready_layers == 2) {
                return told;
            }
        }
    });
    let mut far = Progress::default();
    let mut percents = Vec::new();
    while let Some(event) = events.next().await {
        far.record(&event);
        if event.phase == Phase::Progress {
            let status = &engine.jobs()[0];
            assert_eq!(status.percent(), far.percent(), "{status:?}");
            assert_eq!(status.read_bytes, far.read_bytes());
            percents.push(far.percent());
        }
    }
    assert!(percents.is_sorted());
    percents.dedup();
    assert!(percents.len() >= 99, "{percents:?}");
    let told = watching.await.unwrap();
    assert!((99..130).contains(&told), "{told} times");
    assert_eq!((far.percent(), far.ready_layers()), (100, 2));
}

#[tokio::test(start_paused = true)]
async fn late_callers_get_the_latest_event_only() {
    let engine = engine();
    let _first = engine.unpack(Request::new("web").on("sn"));
    tokio::time::sleep(Duration::from_secs(150)).await;
    let mut late = engine.unpack(Request::new("web").on("sn")).events();
    let (mut events, mut far) = (0, Progress::default());
    while far.percent() < 74 {
        far.record(&late.next().await.unwrap());
        events += 1;
    }
    assert!(events < 20, "{events} events for half of the second layer");
}
