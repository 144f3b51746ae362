// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that the backend asks for: those of its own pulls, one by one, in snapshots that its client has
//! prepared and will commit. They share the slots of the engine's own jobs.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use resnap_core::{
    Applied, ApplyMonitor, ApplyPermit, Batch, Descriptor, Error, Integrity, Kind, Mount, Preparer,
    Scope, Stage, StageTiming, error_chain, media_type,
};

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::observe::{AskedOutcome, EngineEvent};
use crate::registry::JobRegistry;
use crate::running_layer::RunningLayer;

/// The longest time that a layer waits for a slot, with nothing written. containerd has no such limit on what it
/// writes itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request of the backend to write a layer.
#[derive(Debug, Clone)]
pub struct LayerRequest {
    /// The namespace of the client; empty if it is not known.
    pub namespace: String,
    /// The blob.
    pub layer: Descriptor,
    /// The mounts of the active snapshot.
    pub mounts: Vec<Mount>,
    /// Whether the layer is flushed to disk.
    pub sync_fs: bool,
    /// The process number of the backend.
    pub backend: u32,
}

/// Writes a layer. Returns `None`, with nothing written, if it is left to the backend.
pub(crate) async fn write_layer(
    backend: &Backend,
    registry: &Arc<JobRegistry>,
    request: LayerRequest,
) -> Result<Option<Applied>, Error> {
    let mut asked = Asked {
        registry: Arc::clone(registry),
        job: Arc::default(),
        cancellation: CancellationToken::new(),
        admitted: CancellationToken::new(),
        result: None,
        began: Instant::now(),
    };
    let written = asked.write(backend, request).await;
    let result = match &written {
        Ok(_) => Ok(()),
        Err(error) => Err(error.clone()),
    };
    asked.result = Some(result);
    match written {
        Err(error) if error.kind() == Kind::Unimplemented => {
            tracing::info!(
                reason = error_chain(&error),
                "a layer is left to containerd"
            );
            Ok(None)
        }
        written => written.map(Some),
    }
}

/// The work on a request. The job of a request that is dropped is cancelled.
struct Asked {
    registry: Arc<JobRegistry>,
    job: Arc<OnceLock<Arc<RunningLayer>>>,
    cancellation: CancellationToken,
    /// Cancelled when there is a slot for the layer.
    admitted: CancellationToken,
    result: Option<Result<(), Error>>,
    began: Instant,
}

impl Asked {
    async fn write(&self, backend: &Backend, request: LayerRequest) -> Result<Applied, Error> {
        let (applier, layer) = (&backend.ports.applier, &request.layer);
        let refused = |reason: &'static str| {
            let error = Error::new(Kind::Unimplemented, "apply layer", layer.digest.as_str());
            error.with_source(reason)
        };
        if media_type::layer(&layer.media_type).is_none() {
            return Err(refused("only containerd may read layers of its type"));
        }
        // A pull must not fail because containerd is too busy to say where its snapshotters are.
        let snapshotter = applier.snapshotter_of(&request.mounts).await;
        let snapshotter = snapshotter.map_err(|error| {
            let left = Error::new(Kind::Unimplemented, "apply layer", layer.digest.as_str());
            left.with_source(error)
        })?;
        let snapshotter = snapshotter.ok_or_else(|| refused("containerd writes its layers"))?;
        let profile = backend.profiles.get(&snapshotter);
        let batch = Batch {
            scope: Scope::new(&request.namespace),
            layers: vec![layer.clone().into()],
            sync_fs: request.sync_fs,
            // What is signed is known to the engine's own jobs only, and so are labels: a layer that is written
            // here has a tree, and counts as one without a proof.
            integrity: match profile.integrity {
                Integrity::Signed => Integrity::Verity,
                integrity => integrity,
            },
            preparer: Preparer::Backend(request.backend),
            monitor: Arc::new(LayerMonitor {
                registry: Arc::clone(&self.registry),
                job: Arc::clone(&self.job),
                layer: layer.clone(),
                snapshotter: snapshotter.clone(),
                cancellation: self.cancellation.clone(),
                admitted: self.admitted.clone(),
            }),
            snapshotter,
        };
        let scope = batch.scope.clone();
        let batch = applier.batch(&batch);
        let batch = batch.ok_or_else(|| refused("containerd writes its layers"))?;
        let admitted = self.admitted.clone();
        let late = async move {
            if timeout(PATIENCE, admitted.cancelled()).await.is_ok() {
                std::future::pending::<()>().await;
            }
        };
        let applied = tokio::select! {
            applied = batch.apply(&scope, 0, &request.mounts) => applied,
            () = late => Err(refused("resnap is busy with other layers")),
            () = self.cancellation.cancelled() => {
                let error = Error::new(Kind::Cancelled, "apply layer", layer.digest.as_str());
                Err(error.with_source("its job was cancelled"))
            }
        };
        // Whoever gets the answer may remove the snapshot, or write to it.
        batch.end().await;
        applied
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let result = self.result.take();
        let (outcome, error) = match &result {
            None => (AskedOutcome::Cancelled, None),
            Some(Ok(())) => (AskedOutcome::Written, None),
            Some(Err(error)) => match error.kind() {
                Kind::Unimplemented => (AskedOutcome::Left, Some(error)),
                Kind::Cancelled => (AskedOutcome::Cancelled, Some(error)),
                _ => (AskedOutcome::Failed, Some(error)),
            },
        };
        self.registry.notify_observer(&EngineEvent::Asked(outcome));
        let Some(job) = self.job.get() else {
            return;
        };
        let (seconds, error) = (
            self.began.elapsed().as_secs_f64(),
            error.map(|error| error_chain(error)),
        );
        tracing::info!(
            outcome = outcome.as_str(),
            layer = %job.layer.digest,
            snapshotter = job.snapshotter,
            bytes = job.layer.size,
            seconds,
            error,
            "a layer that containerd asked for"
        );
        let cancelled = || {
            let error = Error::new(Kind::Cancelled, "apply layer", job.layer.digest.as_str());
            Err(error.with_source("containerd asks for it no more"))
        };
        self.registry
            .finish_layer(job, result.unwrap_or_else(cancelled));
    }
}

/// The connection of an applier to the job of a request, which starts when there is something to write.
struct LayerMonitor {
    registry: Arc<JobRegistry>,
    job: Arc<OnceLock<Arc<RunningLayer>>>,
    layer: Descriptor,
    snapshotter: String,
    cancellation: CancellationToken,
    admitted: CancellationToken,
}

#[async_trait]
impl ApplyMonitor for LayerMonitor {
    async fn admit(&self, _: usize) -> ApplyPermit {
        let start = || {
            let cancellation = self.cancellation.clone();
            self.registry
                .start_layer(&self.layer, &self.snapshotter, cancellation)
        };
        let job = self.job.get_or_init(start);
        let slot = job.share.slot().await;
        self.admitted.cancel();
        ApplyPermit::new(slot)
    }

    fn read(&self, _: usize, bytes: u64) {
        if let Some(job) = self.job.get() {
            job.record_read(bytes);
        }
    }

    fn record_stage(&self, _: usize, _: Stage, _: StageTiming) {}
}
