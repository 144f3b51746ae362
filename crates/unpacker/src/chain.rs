// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The chain of an image's snapshots: what is there is kept, the rest is made, in order
//! (containerd `core/unpack/unpacker.go` does the same for a pull).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use resnap_core::{
    Batch, BatchApplier, Error, Kind, Mount, SnapshotInfo, SnapshotKey, SnapshotKind, Snapshotter,
    Stage, StageTiming, in_batch, labels,
};
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::backoff::is_limit;
use crate::engine::Shared;
use crate::event::{LayerOutcome, LayerReport, Phase};
use crate::flight::Flight;
use crate::lease::{Left, Tenure};
use crate::locks::{Lock, unique};
use crate::monitor::JobMonitor;
use crate::plan::PlannedLayer;
use crate::slots::Claim;
use crate::{UnpackError, missing};

/// Tries for a layer of which the snapshotter says it is there, and containerd knows nothing; and for
/// a repair that others come in the way of.
pub(crate) const TRIES: usize = 3;

/// One image on one snapshotter, and the job that makes it.
pub(crate) struct Chain {
    pub(crate) shared: Shared,
    pub(crate) flight: Arc<Flight>,
    pub(crate) snapshotter: Arc<dyn Snapshotter>,
    tenure: Arc<Tenure>,
    /// Whether somebody else was at work on one of the layers.
    waited: AtomicBool,
}

/// The layers that are missing, from `first` on.
struct Missing {
    first: usize,
    batch: Arc<dyn BatchApplier>,
}

/// The right to make a layer, that nobody else on this machine has.
pub(crate) struct Exclusive {
    // In this order: who is urgent for the sake of others is so until they can go on.
    _lock: Lock,
    _claim: Claim,
}

/// How a try to make a layer ended.
enum Try {
    Made(LayerOutcome),
    /// It is there, one says, and another that it is not.
    Again,
}

impl Chain {
    pub(crate) fn new(shared: Shared, flight: Arc<Flight>, tenure: Arc<Tenure>) -> Self {
        let snapshotters = &shared.ports.snapshotters;
        Self {
            snapshotter: snapshotters.snapshotter(&flight.snapshotter),
            shared,
            flight,
            tenure,
            waited: AtomicBool::new(false),
        }
    }

    /// Makes the chain, roots it at the config blob, and tells what was done.
    pub(crate) async fn make(&self) -> Result<Vec<LayerReport>, UnpackError> {
        let layers = &self.flight.plan.layers;
        let Some(top) = layers.last() else {
            // Nobody will ask the snapshotter for anything.
            self.shared
                .require_snapshotter(&self.flight.snapshotter)
                .await?;
            return Ok(Vec::new());
        };
        if self.flight.repair {
            self.repair().await?;
        }
        if self.is_rooted().await?
            && self.find(top).await?.is_some()
            && self.require_labels(layers.len()).await?
        {
            self.take_over(top).await;
            return Ok(self.existed(layers.len()));
        }
        let begun = self.tenure.begin().await;
        begun.map_err(|error| self.failed(error))?;
        let mut present = self.keep_present().await?;
        while !self.require_labels(present).await? {
            present = self.keep_present().await?;
        }
        self.take_over(top).await;
        let mut reports = self.existed(present);
        let missing = self.missing(present);
        let made = self.make_missing(&missing, &mut reports).await;
        // Before the snapshot that a failed layer is being written to goes.
        missing.batch.end().await;
        made?;
        self.root().await?;
        if self.waited.load(Ordering::Relaxed) {
            // Whoever we waited for lived when we looked for the dead, and may have died since.
            self.take_over(top).await;
        }
        Ok(reports)
    }

    fn missing(&self, first: usize) -> Missing {
        let layers = self.flight.plan.layers.iter().skip(first);
        let batch = Batch {
            scope: self.shared.scope.clone(),
            snapshotter: self.flight.snapshotter.clone(),
            layers: layers.map(|layer| layer.descriptor.clone()).collect(),
            sync_fs: self.shared.profiles.get(&self.flight.snapshotter).sync_fs,
            monitor: Arc::new(JobMonitor::new(Arc::clone(&self.flight), first)),
        };
        Missing {
            first,
            batch: in_batch(&self.shared.ports.applier, batch),
        }
    }

    async fn make_missing(
        &self,
        missing: &Missing,
        reports: &mut Vec<LayerReport>,
    ) -> Result<(), UnpackError> {
        let layers = self.flight.plan.layers.iter().enumerate();
        for (index, layer) in layers.skip(missing.first) {
            let started = Instant::now();
            let span = tracing::info_span!("layer", index, chain_id = %layer.chain_id);
            let outcome = self.layer(missing, index, layer).instrument(span).await;
            let outcome = outcome.inspect_err(|_| self.flight.tell(index, Phase::Failed))?;
            self.flight.tell(index, outcome.into());
            reports.push(LayerReport {
                stages: self.flight.stages(index),
                ..report(layer, outcome, started)
            });
        }
        Ok(())
    }

    /// Cleans up behind the dead; the layers they made are this job's to keep then.
    async fn take_over(&self, top: &PlannedLayer) {
        let snapshotter = &self.flight.snapshotter;
        if self.shared.take_over(snapshotter, &top.chain_id).await {
            self.tenure.made();
        }
    }

    /// Looks from the top down for the first layer that is there and puts it on the lease; answers
    /// with the number of layers that need not be made. A committed snapshot's parents are there.
    async fn keep_present(&self) -> Result<usize, UnpackError> {
        for (index, layer) in self.flight.plan.layers.iter().enumerate().rev() {
            if self.find(layer).await?.is_some() && self.adopt(index, layer).await?.is_some() {
                return Ok(index + 1);
            }
        }
        Ok(0)
    }

    /// Makes one layer on its committed parent, unless somebody else is faster.
    async fn layer(
        &self,
        missing: &Missing,
        index: usize,
        layer: &PlannedLayer,
    ) -> Result<LayerOutcome, UnpackError> {
        self.flight.go_on()?;
        let began = std::time::Instant::now();
        let _lock = self.lock(index).await?;
        self.flight
            .record_stage(index, Stage::Wait, StageTiming::since(began));
        for _ in 0..TRIES {
            self.flight.go_on()?;
            // While we waited, whoever held the lock made it.
            if self.find(layer).await?.is_some() && self.adopt(index, layer).await?.is_some() {
                return self.joined(index).await;
            }
            if let Try::Made(outcome) = self.prepare(missing, index, layer).await? {
                return Ok(outcome);
            }
        }
        Err(UnpackError::Disagreement {
            image: self.flight.title.clone(),
            chain_id: layer.chain_id.clone(),
            snapshotter: self.flight.snapshotter.clone(),
        })
    }

    /// Waits until nobody else on this machine makes the layer.
    pub(crate) async fn lock(&self, index: usize) -> Result<Exclusive, UnpackError> {
        let layer = &self.flight.plan.layers[index];
        let key = layer.chain_id.as_str();
        let name = self.shared.chain_lock(&self.flight.snapshotter, key).await;
        let name = name.map_err(|error| self.failed_layer(index, error))?;
        let (image, snapshotter) = (&self.flight.title, &self.flight.snapshotter);
        let purpose = format!("{image} on {snapshotter}");
        let claim = self.flight.share.claim(&name);
        let lock = self.shared.locks.lock(&name, &purpose, |holder| {
            self.waited.store(true, Ordering::Relaxed);
            self.flight.tell_waiting(index, holder);
        });
        let lock = tokio::select! {
            lock = lock => lock.map_err(|error| {
                let error = Error::new(Kind::FailedPrecondition, "lock", key).with_source(error);
                self.failed_layer(index, error)
            })?,
            () = self.flight.cancelled() => return Err(self.flight.cancellation()),
        };
        claim.hold();
        Ok(Exclusive {
            _lock: lock,
            _claim: claim,
        })
    }

    async fn prepare(
        &self,
        missing: &Missing,
        index: usize,
        layer: &PlannedLayer,
    ) -> Result<Try, UnpackError> {
        let key = SnapshotKey::extraction(&unique(), &layer.chain_id);
        // Before the call: its answer may be lost.
        self.tenure.fill(&key);
        let prepared = {
            let scope = self.tenure.scope().await;
            let scope = scope.map_err(|error| self.failed_layer(index, error))?;
            let parent = layer.parent.as_ref();
            let (snapshotter, labels) = (&self.snapshotter, &layer.labels);
            snapshotter.prepare(&scope, &key, parent, labels).await
        };
        match prepared {
            Ok(mounts) => {
                self.flight.tell(index, Phase::Prepared);
                self.fill(missing, index, &key, &mounts).await
            }
            Err(error) if error.is_already_exists() => {
                self.tenure.filled();
                let Some(info) = self.adopt(index, layer).await? else {
                    return Ok(Try::Again);
                };
                // What has our labels was made by our call: the snapshotter did it, remotely.
                let ours = |(key, value)| info.labels.get(key) == Some(value);
                if layer.labels.iter().all(ours) {
                    self.tenure.made();
                    return Ok(Try::Made(LayerOutcome::Remote));
                }
                self.joined(index).await.map(Try::Made)
            }
            Err(error) => Err(self.failed_layer(index, error)),
        }
    }

    /// Fills and commits the active snapshot `key`.
    async fn fill(
        &self,
        missing: &Missing,
        index: usize,
        key: &SnapshotKey,
        mounts: &[Mount],
    ) -> Result<Try, UnpackError> {
        let layer = &self.flight.plan.layers[index];
        let staged = mounts.last().is_some_and(Mount::is_read_only);
        if !staged {
            self.apply(missing, index, mounts).await?;
        }
        self.flight.go_on()?;
        let committed = {
            let scope = self.tenure.scope().await;
            let scope = scope.map_err(|error| self.failed_layer(index, error))?;
            let (name, labels) = (&layer.chain_id, &layer.labels);
            let began = std::time::Instant::now();
            let committed = self.snapshotter.commit(&scope, name, key, labels).await;
            self.flight
                .record_stage(index, Stage::Commit, StageTiming::since(began));
            committed
        };
        let made = if staged {
            LayerOutcome::Staged
        } else {
            LayerOutcome::Applied
        };
        let error = match committed {
            Ok(()) => {
                self.tenure.filled();
                self.tenure.made();
                return Ok(Try::Made(made));
            }
            Err(error) => error,
        };
        // Somebody was faster, or the answer was lost: what counts is what is there.
        let removed = self.tenure.remove_active().await;
        removed.map_err(|(Left::Snapshot(_, error) | Left::Lease(error))| {
            self.failed_layer(index, error)
        })?;
        let found = self.adopt(index, layer).await;
        if error.is_already_exists() {
            return match found? {
                Some(_) => self.joined(index).await.map(Try::Made),
                // Garbage collection was faster still.
                None => Ok(Try::Again),
            };
        }
        match found {
            Ok(Some(_)) => {
                self.tenure.made();
                Ok(Try::Made(made))
            }
            // Without an answer to this either it may be there.
            Err(_) => {
                self.tenure.made();
                Err(self.failed_layer(index, error))
            }
            Ok(None) => Err(self.failed_layer(index, error)),
        }
    }

    async fn apply(
        &self,
        missing: &Missing,
        index: usize,
        mounts: &[Mount],
    ) -> Result<(), UnpackError> {
        let layer = &self.flight.plan.layers[index];
        let digest = &layer.descriptor.digest;
        let work = async {
            // Not held: a lease must be succeeded during a long Apply, which adds nothing to it.
            let scope = self.tenure.scope().await?.clone();
            missing
                .batch
                .apply(&scope, index - missing.first, mounts)
                .await
        };
        let applied = tokio::select! {
            applied = work => applied,
            () = self.flight.cancelled() => return Err(self.flight.cancellation()),
        };
        let applied = match applied {
            Ok(applied) => applied,
            Err(error) => {
                self.require_blob(layer).await?;
                if is_limit(&error) {
                    self.flight.reach_limit();
                }
                return Err(self.failed_layer(index, error));
            }
        };
        if applied.diff_id == layer.diff_id.0 {
            return Ok(());
        }
        Err(UnpackError::WrongDiffId {
            image: self.flight.title.clone(),
            digest: digest.clone(),
            expected: layer.diff_id.0.clone(),
            computed: applied.diff_id,
        })
    }

    /// That a layer's blob is there.
    pub(crate) async fn require_blob(&self, layer: &PlannedLayer) -> Result<(), UnpackError> {
        let digest = &layer.descriptor.digest;
        let info = self.shared.ports.content.info(&self.shared.scope, digest);
        match info.await {
            Err(error) if error.is_not_found() => {
                let Flight {
                    plan,
                    title,
                    snapshotter,
                    ..
                } = &*self.flight;
                Err(missing::blob(&self.shared, plan, title, layer, snapshotter).await)
            }
            // Whatever else is wrong shows when it is read.
            _ => Ok(()),
        }
    }

    /// Puts a committed layer that somebody else made on the lease; `None` if there is none.
    async fn adopt(
        &self,
        index: usize,
        layer: &PlannedLayer,
    ) -> Result<Option<SnapshotInfo>, UnpackError> {
        let added = self.tenure.keep(SnapshotKey::from(&layer.chain_id)).await;
        added.map_err(|error| self.failed_layer(index, error))?;
        self.find(layer).await
    }

    /// What to say of a layer that somebody else made.
    async fn joined(&self, index: usize) -> Result<LayerOutcome, UnpackError> {
        self.require_labels(index + 1).await?;
        Ok(LayerOutcome::Joined)
    }

    /// The committed snapshot of a layer, if it is there.
    pub(crate) async fn find(
        &self,
        layer: &PlannedLayer,
    ) -> Result<Option<SnapshotInfo>, UnpackError> {
        let key = SnapshotKey::from(&layer.chain_id);
        match self.snapshotter.stat(&self.shared.scope, &key).await {
            Ok(info) => Ok(Some(info).filter(|info| info.kind == SnapshotKind::Committed)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn gc_label(&self) -> String {
        format!("{}{}", labels::GC_SNAPSHOT_PREFIX, self.flight.snapshotter)
    }

    /// Whether garbage collection already keeps the whole chain for the image's sake.
    async fn is_rooted(&self) -> Result<bool, UnpackError> {
        let (content, plan) = (&self.shared.ports.content, &self.flight.plan);
        let info = content.info(&self.shared.scope, &plan.config.digest).await;
        let info = info.map_err(|error| self.failed(error))?;
        let root = info.labels.get(&self.gc_label()).map(String::as_str);
        Ok(root.is_some() && root == plan.top().map(|top| top.as_str()))
    }

    async fn root(&self) -> Result<(), UnpackError> {
        let plan = &self.flight.plan;
        let Some(top) = plan.top() else {
            return Ok(());
        };
        let (labeler, config) = (&self.shared.ports.labeler, &plan.config.digest);
        let (scope, label) = (&self.shared.scope, self.gc_label());
        let labelled = labeler.set_label(scope, config, &label, top.as_str());
        labelled.await.map_err(|error| self.failed(error))
    }

    fn existed(&self, count: usize) -> Vec<LayerReport> {
        let started = Instant::now();
        let layers = self.flight.plan.layers[..count].iter().enumerate();
        layers
            .map(|(index, layer)| {
                self.flight.tell(index, Phase::Existed);
                report(layer, LayerOutcome::Existed, started)
            })
            .collect()
    }

    pub(crate) fn failed(&self, source: Error) -> UnpackError {
        UnpackError::Image {
            image: self.flight.title.clone(),
            source,
        }
    }

    pub(crate) fn failed_layer(&self, index: usize, source: Error) -> UnpackError {
        let layers = &self.flight.plan.layers;
        UnpackError::Layer {
            image: self.flight.title.clone(),
            number: index + 1,
            of: layers.len(),
            digest: layers[index].descriptor.digest.clone(),
            snapshotter: self.flight.snapshotter.clone(),
            source,
        }
    }
}

fn report(layer: &PlannedLayer, outcome: LayerOutcome, started: Instant) -> LayerReport {
    LayerReport {
        digest: layer.descriptor.digest.clone(),
        diff_id: layer.diff_id.clone(),
        chain_id: layer.chain_id.clone(),
        bytes: layer.descriptor.size,
        outcome,
        seconds: started.elapsed().as_secs_f64(),
        stages: Vec::new(),
    }
}
