// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The chain of an image's snapshots on a snapshotter, as a job sees it: look-ups, locks and checks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use resnap_core::{Error, Integrity, Kind, SnapshotInfo, SnapshotKey, Snapshotter, labels};
use tokio::time::Instant;

use crate::backend::Backend;
use crate::chain_lock::ChainLocks;
use crate::event::{LayerOutcome, LayerReport};
use crate::lease::JobLease;
use crate::locks::Lock;
use crate::plan::PlannedLayer;
use crate::running::RunningJob;
use crate::signatures::Signatures;
use crate::slots::LockClaim;
use crate::sources::Tried;
use crate::{UnpackError, missing};

/// The attempts to make a layer while the snapshotter and containerd's metadata disagree, and to
/// repair a chain while other clients interfere.
pub(crate) const ATTEMPTS: usize = 3;

/// One image on one snapshotter, and the job that unpacks it.
pub(crate) struct Chain {
    pub(crate) backend: Arc<Backend>,
    pub(crate) job: Arc<RunningJob>,
    pub(crate) lease: Arc<JobLease>,
    pub(crate) snapshotter: Arc<dyn Snapshotter>,
    locks: Arc<ChainLocks>,
    pub(crate) signatures: Signatures,
    /// Whether the job had to wait for another one that made a layer.
    waited: AtomicBool,
}

/// The exclusive right on this machine to make a layer.
pub(crate) struct Exclusive {
    // In this order: the urgency that waiters lend to the holder ends after they can go on.
    _lock: Lock,
    _claim: LockClaim,
}

impl Chain {
    pub(crate) fn new(
        backend: Arc<Backend>,
        locks: Arc<ChainLocks>,
        job: Arc<RunningJob>,
        lease: Arc<JobLease>,
    ) -> Self {
        Self {
            snapshotter: backend.snapshotter(&job.spec.snapshotter),
            backend,
            job,
            lease,
            locks,
            signatures: Signatures::default(),
            waited: AtomicBool::new(false),
        }
    }

    pub(crate) fn layers(&self) -> &[PlannedLayer] {
        &self.job.spec.plan.layers
    }

    /// Returns whether the job had to wait for another one that made a layer.
    pub(crate) fn has_waited(&self) -> bool {
        self.waited.load(Ordering::Relaxed)
    }

    /// Returns the committed snapshot of a layer, if it exists.
    pub(crate) async fn find(
        &self,
        layer: &PlannedLayer,
    ) -> Result<Option<SnapshotInfo>, UnpackError> {
        let snapshotter = self.snapshotter.as_ref();
        let found = self.backend.committed(snapshotter, &layer.chain_id).await;
        found.map_err(|error| self.failed(error))
    }

    /// Adds a committed layer that another client made to the lease; `None` if there is none.
    pub(crate) async fn adopt(
        &self,
        index: usize,
        layer: &PlannedLayer,
    ) -> Result<Option<SnapshotInfo>, UnpackError> {
        let key = SnapshotKey::from(&layer.chain_id);
        let added = self.lease.add_snapshot(key).await;
        added.map_err(|error| self.failed_layer(index, error))?;
        self.find(layer).await
    }

    /// Waits for the exclusive right to fetch the blob of the layer.
    pub(crate) async fn lock_blob(&self, index: usize) -> Result<Lock, UnpackError> {
        let digest = self.layers()[index].descriptor.digest.as_str();
        let failed = |error| self.failed_layer(index, error);
        let name = self.locks.name("", digest).await.map_err(failed)?;
        let purpose = format!("{digest} of {}", self.job.spec.title);
        let lock = self.locks.locks.lock(&name, &purpose, |holder| {
            self.job.emit_waiting(index, holder);
        });
        lock.await.map_err(|error| {
            let error = Error::new(Kind::FailedPrecondition, "lock", digest).with_source(error);
            failed(error)
        })
    }

    /// Waits for the exclusive right to make the layer.
    pub(crate) async fn lock(&self, index: usize) -> Result<Exclusive, UnpackError> {
        let spec = &self.job.spec;
        let key = spec.plan.layers[index].chain_id.as_str();
        let name = self.locks.name(&spec.snapshotter, key).await;
        let name = name.map_err(|error| self.failed_layer(index, error))?;
        let purpose = format!("{} on {}", spec.title, spec.snapshotter);
        let claim = spec.share.claim_lock(&name);
        let lock = self.locks.locks.lock(&name, &purpose, |holder| {
            self.waited.store(true, Ordering::Relaxed);
            self.job.emit_waiting(index, holder);
        });
        let lock = tokio::select! {
            lock = lock => lock.map_err(|error| {
                let error = Error::new(Kind::FailedPrecondition, "lock", key).with_source(error);
                self.failed_layer(index, error)
            })?,
            () = self.job.cancelled() => return Err(self.job.cancelled_error()),
        };
        claim.set_held();
        Ok(Exclusive {
            _lock: lock,
            _claim: claim,
        })
    }

    /// Returns the error for a layer whose blob is missing and needed, and which the sources `tried` did
    /// not have.
    pub(crate) async fn missing_blob(
        &self,
        layer: &PlannedLayer,
        tried: Vec<Tried>,
    ) -> UnpackError {
        let (backend, spec) = (&self.backend, &self.job.spec);
        let (title, snapshotter) = (&spec.title, &spec.snapshotter);
        missing::blob(backend, &spec.plan, title, layer, snapshotter, tried).await
    }

    /// Returns the proof that layers need on the snapshotter.
    pub(crate) fn integrity(&self) -> Integrity {
        let profiles = &self.backend.profiles;
        profiles.get(&self.job.spec.snapshotter).integrity
    }

    /// Checks that the lowest `count` layers have the labels and proofs that the snapshotter needs.
    /// Returns whether these layers exist: a repair may be removing them.
    pub(crate) async fn require_complete(&self, count: usize) -> Result<bool, UnpackError> {
        let (spec, layers, integrity) = (&self.job.spec, self.layers(), self.integrity());
        for (index, layer) in layers[..count].iter().enumerate() {
            let backend = &self.backend;
            let needs_labels = backend.needs_labels(&spec.snapshotter, index, layers.len());
            if !needs_labels && !integrity.is_on() {
                continue;
            }
            let Some(info) = self.find(layer).await? else {
                return Ok(false);
            };
            if let Some(why) = integrity.missing(&info.labels) {
                return Err(UnpackError::Unproven {
                    image: spec.title.clone(),
                    chain_id: layer.chain_id.clone(),
                    snapshotter: spec.snapshotter.clone(),
                    integrity: integrity.as_str(),
                    why,
                });
            }
            let missing = labels::missing(&info.labels);
            if needs_labels && !missing.is_empty() {
                return Err(UnpackError::Unlabelled {
                    image: spec.title.clone(),
                    chain_id: layer.chain_id.clone(),
                    snapshotter: spec.snapshotter.clone(),
                    missing,
                });
            }
        }
        Ok(true)
    }

    pub(crate) fn failed(&self, source: Error) -> UnpackError {
        UnpackError::Image {
            image: self.job.spec.title.clone(),
            source,
        }
    }

    pub(crate) fn failed_layer(&self, index: usize, source: Error) -> UnpackError {
        let (spec, layers) = (&self.job.spec, self.layers());
        UnpackError::Layer {
            image: spec.title.clone(),
            number: index + 1,
            of: layers.len(),
            digest: layers[index].descriptor.digest.clone(),
            snapshotter: spec.snapshotter.clone(),
            source,
        }
    }

    /// Returns the report of the layer at `index`.
    pub(crate) fn report(
        &self,
        index: usize,
        outcome: LayerOutcome,
        started: Instant,
    ) -> LayerReport {
        let layer = &self.layers()[index];
        LayerReport {
            digest: layer.descriptor.digest.clone(),
            diff_id: layer.diff_id.clone(),
            chain_id: layer.chain_id.clone(),
            bytes: layer.descriptor.size,
            outcome,
            seconds: started.elapsed().as_secs_f64(),
            stages: self.job.stages(index),
        }
    }
}
