// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Making one layer: Prepare, Apply and Commit
//! (containerd `core/unpack/unpacker.go` does the same for a pull).

use std::sync::Arc;
use std::time::Instant;

use resnap_core::{
    Applied, Batch, BatchApplier, BatchLayer, Error, Kind, Labels, Mount, Preparer, Proof, Scope,
    SnapshotInfo, SnapshotKey, Stage, StageTiming, in_batch, labels as names,
};
use uuid::Uuid;

use crate::UnpackError;
use crate::artifacts::{find_signatures, reject_artifact};
use crate::backoff::is_limit;
use crate::chain::{ATTEMPTS, Chain};
use crate::event::{LayerOutcome, Phase};
use crate::intact::read;
use crate::monitor::JobMonitor;
use crate::plan::PlannedLayer;
use crate::supply::Supply;

/// The missing layers of a chain, from `first` on.
pub(crate) struct MissingLayers {
    pub(crate) first: usize,
    pub(crate) batch: Arc<dyn BatchApplier>,
    pub(crate) supply: Arc<Supply>,
}

/// Starts to write these layers, the first of which has the index `first` in the chain.
pub(crate) fn start_batch(
    chain: &Chain,
    supply: &Arc<Supply>,
    first: usize,
    mut layers: Vec<BatchLayer>,
) -> Arc<dyn BatchApplier> {
    for (index, layer) in (first..).zip(&mut layers) {
        layer.signed = chain.signatures.get(index);
    }
    let (backend, job) = (&chain.backend, &chain.job);
    let snapshotter = &job.spec.snapshotter;
    let profile = backend.profiles.get(snapshotter);
    let monitor = JobMonitor::new(Arc::clone(job), first, Arc::clone(supply));
    let batch = Batch {
        scope: backend.scope.clone(),
        snapshotter: snapshotter.clone(),
        layers,
        sync_fs: profile.sync_fs,
        integrity: profile.integrity,
        preparer: Preparer::Caller,
        monitor: Arc::new(monitor),
    };
    in_batch(&backend.ports.applier, batch)
}

/// A missing layer of a chain.
pub(crate) struct MissingLayer<'a> {
    pub(crate) chain: &'a Chain,
    pub(crate) batch: &'a MissingLayers,
    pub(crate) index: usize,
}

/// Returns the labels that tell how the content of a layer was made. `origin` is the snapshotter that it
/// was copied from.
fn added_labels(origin: Option<String>, applied: &Applied) -> Labels {
    let mut labels = applied
        .proof
        .as_ref()
        .map(Proof::labels)
        .unwrap_or_default();
    if let Some(origin) = origin {
        labels.insert(names::COPIED_FROM.to_owned(), origin);
    }
    if applied.is_own_image {
        labels.insert(names::IMAGE_WRITER.to_owned(), "resnap".to_owned());
    }
    labels
}

/// The result of an attempt to make a layer.
enum Attempt {
    Ready(LayerOutcome),
    /// The content comes from another source now; try again with a new key.
    OtherSource,
    /// The snapshotter and containerd's metadata disagree about the snapshot; try again with a new
    /// key.
    Retry,
}

impl MissingLayer<'_> {
    /// Makes the layer on its committed parent, unless another client is faster.
    pub(crate) async fn make(&self) -> Result<LayerOutcome, UnpackError> {
        let (chain, job, layer) = (self.chain, &self.chain.job, self.layer());
        job.check_cancelled()?;
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            let obtained = async {
                // Again, if an artifact was rejected. Others may wait for the chain lock.
                find_signatures(chain, self.index).await?;
                self.batch.supply.obtain(chain, self.index).await
            };
            let obtained = tokio::select! {
                obtained = obtained => obtained,
                () = job.cancelled() => return Err(job.cancelled_error()),
            };
            if let Err(error) = obtained
                && chain.find(layer).await?.is_none()
            {
                return Err(error);
            }
            let started = Instant::now();
            let _lock = chain.lock(self.index).await?;
            job.record_stage(self.index, Stage::Wait, StageTiming::since(started));
            job.check_cancelled()?;
            // The previous holder of the lock may have made the layer.
            if chain.find(layer).await?.is_some() && self.adopt().await?.is_some() {
                return self.joined().await;
            }
            match self.prepare().await? {
                Attempt::Ready(outcome) => return Ok(outcome),
                // There are only so many sources.
                Attempt::OtherSource => {}
                Attempt::Retry => attempts += 1,
            }
        }
        Err(UnpackError::Disagreement {
            image: job.spec.title.clone(),
            chain_id: layer.chain_id.clone(),
            snapshotter: job.spec.snapshotter.clone(),
        })
    }

    fn layer(&self) -> &PlannedLayer {
        &self.chain.layers()[self.index]
    }

    fn failed(&self, error: Error) -> UnpackError {
        self.chain.failed_layer(self.index, error)
    }

    async fn adopt(&self) -> Result<Option<SnapshotInfo>, UnpackError> {
        self.chain.adopt(self.index, self.layer()).await
    }

    /// Checks a layer that another client made.
    async fn joined(&self) -> Result<LayerOutcome, UnpackError> {
        self.chain.require_complete(self.index + 1).await?;
        Ok(LayerOutcome::Joined)
    }

    async fn prepare(&self) -> Result<Attempt, UnpackError> {
        let (chain, layer) = (self.chain, self.layer());
        let unique = Uuid::new_v4().simple().to_string();
        let key = SnapshotKey::extraction(&unique, &layer.chain_id);
        // Before the call, as its reply may be lost.
        chain.lease.set_active(&key);
        let prepared = {
            let scope = chain.lease.scope().await;
            let scope = scope.map_err(|error| self.failed(error))?;
            let (parent, labels) = (layer.parent.as_ref(), &layer.labels);
            chain
                .snapshotter
                .prepare(&scope, &key, parent, labels)
                .await
        };
        match prepared {
            Ok(mounts) => {
                chain.job.emit(self.index, Phase::Prepared);
                self.fill(&key, &mounts).await
            }
            Err(error) if error.is_already_exists() => {
                chain.lease.clear_active();
                self.resolve_existing().await
            }
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Handles a Prepare answered with ALREADY_EXISTS: a remote snapshot, or a layer that another
    /// client made.
    async fn resolve_existing(&self) -> Result<Attempt, UnpackError> {
        let Some(info) = self.adopt().await? else {
            return Ok(Attempt::Retry);
        };
        // A snapshot with these labels was made by this Prepare: it is a remote snapshot. A pull by containerd
        // sets them, too, and neither gives a proof.
        let is_own = |(key, value)| info.labels.get(key) == Some(value);
        if !self.chain.integrity().is_on() && self.layer().labels.iter().all(is_own) {
            self.chain.lease.keep_on_failure();
            return Ok(Attempt::Ready(LayerOutcome::Remote));
        }
        self.joined().await.map(Attempt::Ready)
    }

    /// Applies the layer to its active snapshot, unless that is staged, and commits it.
    async fn fill(&self, key: &SnapshotKey, mounts: &[Mount]) -> Result<Attempt, UnpackError> {
        let (outcome, added) = if mounts.last().is_some_and(Mount::is_read_only) {
            (LayerOutcome::Staged, Labels::new())
        } else {
            let Some(applied) = self.apply(mounts).await? else {
                let removed = self.chain.lease.remove_active().await;
                removed.map_err(|error| self.failed(error.into_source()))?;
                return Ok(Attempt::OtherSource);
            };
            let origin = self.batch.supply.copied_from(self.index);
            let outcome = match origin {
                Some(_) => LayerOutcome::Copied,
                None => LayerOutcome::Applied,
            };
            (outcome, added_labels(origin, &applied))
        };
        self.chain.job.check_cancelled()?;
        if let Some(why) = self.chain.integrity().missing(&added) {
            let digest = self.layer().descriptor.digest.as_str();
            let error = Error::new(Kind::FailedPrecondition, "prove layer", digest);
            return Err(self.failed(error.with_source(why)));
        }
        match self.commit(key, added).await? {
            Ok(()) => {
                self.chain.lease.clear_active();
                self.chain.lease.keep_on_failure();
                Ok(Attempt::Ready(outcome))
            }
            Err(error) => self.resolve_failed_commit(outcome, error).await,
        }
    }

    /// Commits the snapshot, with labels that tell how its content was made. The inner result is that of the call.
    async fn commit(
        &self,
        key: &SnapshotKey,
        added: Labels,
    ) -> Result<Result<(), Error>, UnpackError> {
        let (chain, layer) = (self.chain, self.layer());
        let scope = chain.lease.scope().await;
        let scope = scope.map_err(|error| self.failed(error))?;
        let started = Instant::now();
        let (name, mut labels) = (&layer.chain_id, layer.labels.clone());
        labels.extend(added);
        let committed = chain.snapshotter.commit(&scope, name, key, &labels).await;
        let timing = StageTiming::since(started);
        chain.job.record_stage(self.index, Stage::Commit, timing);
        Ok(committed)
    }

    /// Handles a Commit that failed: another client was faster, or the reply was lost. The state of
    /// the snapshot decides.
    async fn resolve_failed_commit(
        &self,
        outcome: LayerOutcome,
        error: Error,
    ) -> Result<Attempt, UnpackError> {
        let lease = &self.chain.lease;
        let removed = lease.remove_active().await;
        removed.map_err(|error| self.failed(error.into_source()))?;
        let found = self.adopt().await;
        if error.is_already_exists() {
            return match found? {
                Some(_) => self.joined().await.map(Attempt::Ready),
                // Garbage collected since.
                None => Ok(Attempt::Retry),
            };
        }
        match found {
            Ok(Some(_)) => {
                lease.keep_on_failure();
                // It may be that of another client.
                let is_there = self.chain.require_complete(self.index + 1).await?;
                Ok(match is_there {
                    true => Attempt::Ready(outcome),
                    false => Attempt::Retry,
                })
            }
            // The look-up failed as well, so the snapshot may exist.
            Err(_) => {
                lease.keep_on_failure();
                Err(self.failed(error))
            }
            Ok(None) => Err(self.failed(error)),
        }
    }

    /// Writes the layer. Returns `None` if its content has to come from another source.
    async fn apply(&self, mounts: &[Mount]) -> Result<Option<Applied>, UnpackError> {
        let (chain, job, layer) = (self.chain, &self.chain.job, self.layer());
        let supply = &self.batch.supply;
        let work = async {
            // Cloned, as the lease must be renewed during a long Apply, which adds nothing to it.
            let scope = chain.lease.scope().await?.clone();
            let replacement = supply.replacement(chain, self.index);
            let plain = || BatchLayer::from(layer.descriptor.clone());
            match replacement.or_else(|| chain.signatures.rejection().map(|_| plain())) {
                None => {
                    let index = self.index - self.batch.first;
                    self.batch.batch.apply(&scope, index, mounts).await
                }
                Some(layer) => self.apply_alone(&scope, layer, mounts).await,
            }
        };
        let applied = tokio::select! {
            applied = work => applied,
            () = job.cancelled() => return Err(job.cancelled_error()),
        };
        let applied = match applied {
            Ok(applied) => applied,
            Err(error) => {
                let other = tokio::select! {
                    other = supply.fall_back(chain, self.index, &error) => other?,
                    () = job.cancelled() => return Err(job.cancelled_error()),
                };
                // In this order: bytes that came with the layer's blob may have been wrong.
                if other || reject_artifact(chain, self.index, &error) {
                    return Ok(None);
                }
                if is_limit(&error) {
                    job.set_at_limit();
                }
                return Err(self.failed(error));
            }
        };
        let is_right = tokio::select! {
            is_right = supply.confirm(self.index) => is_right,
            () = job.cancelled() => return Err(job.cancelled_error()),
        };
        if !is_right {
            return Ok(None);
        }
        self.check_diff_id(applied).await
    }

    /// Checks that a layer that was written is the image's. Returns `None` if its content has to come from another
    /// source.
    async fn check_diff_id(&self, applied: Applied) -> Result<Option<Applied>, UnpackError> {
        let (chain, job, layer) = (self.chain, &self.chain.job, self.layer());
        let supply = &self.batch.supply;
        let Some(computed) = applied
            .diff_id
            .clone()
            .filter(|computed| *computed != layer.diff_id.0)
        else {
            return Ok(Some(applied));
        };
        // The image may be right, and the blob damaged.
        let read = tokio::select! {
            read = read(chain, self.index) => read,
            () = job.cancelled() => return Err(job.cancelled_error()),
        };
        let unpacked = Error::new(Kind::DataLoss, "unpack", layer.descriptor.digest.as_str());
        let unpacked =
            unpacked.with_source(format!("its blob is damaged: it unpacks to {computed}"));
        if supply.copied_from(self.index).is_none()
            && supply.fall_back(chain, self.index, &unpacked).await?
        {
            return Ok(None);
        }
        read.map_err(|error| self.failed(error))?;
        Err(UnpackError::WrongDiffId {
            image: job.spec.title.clone(),
            digest: layer.descriptor.digest.clone(),
            expected: layer.diff_id.0.clone(),
            computed,
        })
    }

    /// Writes the layer in a batch of its own.
    async fn apply_alone(
        &self,
        scope: &Scope,
        layer: BatchLayer,
        mounts: &[Mount],
    ) -> Result<Applied, Error> {
        let batch = start_batch(self.chain, &self.batch.supply, self.index, vec![layer]);
        let applied = batch.apply(scope, 0, mounts).await;
        batch.end().await;
        applied
    }
}
