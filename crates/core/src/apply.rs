// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Applying layers to snapshots: one by one, or all missing layers of an image as a batch.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::Serialize;

use crate::{Descriptor, Digest, Mount, Result, Scope};

/// What an Apply wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The digest of the uncompressed tar that was written.
    pub diff_id: Digest,
    /// Its size in bytes.
    pub size: u64,
}

/// Writing a layer to a snapshot.
#[async_trait]
pub trait Applier: Send + Sync {
    /// Writes the layer through the mounts of its active snapshot; with `sync_fs` to the disk.
    /// [`Kind::NotFound`](crate::Kind::NotFound) if the blob is not there.
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied>;

    /// Begins to write several layers, if the applier can make more of that than of one after the
    /// other; see [`in_batch`]. It must be called within a tokio runtime.
    fn batch(&self, batch: &Batch) -> Option<Arc<dyn BatchApplier>> {
        let _ = batch;
        None
    }
}

/// Layers that will be applied one after the other, and may be built before their turn.
#[derive(Clone)]
pub struct Batch {
    /// Where their blobs are.
    pub scope: Scope,
    /// The snapshotter that they are for.
    pub snapshotter: String,
    /// The layers, each standing on the one before.
    pub layers: Vec<Descriptor>,
    /// Whether each is on the disk once it is applied.
    pub sync_fs: bool,
    /// Who is asked and told.
    pub monitor: Arc<dyn ApplyMonitor>,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("scope", &self.scope)
            .field("snapshotter", &self.snapshotter)
            .field("layers", &self.layers.len())
            .finish_non_exhaustive()
    }
}

/// Applies the layers of a [`Batch`].
///
/// Dropping it gives up what was built and not applied; what that left is removed some time later.
#[async_trait]
pub trait BatchApplier: Send + Sync {
    /// Writes the layer at `index` through the mounts of its active snapshot, after those before it
    /// were committed by whomever. A layer may be left out, and may be applied again to another
    /// snapshot. [`Kind::NotFound`](crate::Kind::NotFound) if the blob is not there.
    async fn apply(&self, scope: &Scope, index: usize, mounts: &[Mount]) -> Result<Applied>;

    /// Stops all work and waits until it has stopped: nothing is written to a snapshot any more, and
    /// what was built and not applied is gone.
    async fn end(&self);
}

/// Who may say when a layer is written, and is told how it goes. Layers go by their index in the
/// [`Batch`].
#[async_trait]
pub trait ApplyMonitor: Send + Sync {
    /// Waits until the layer may be written, in its snapshot or ahead. It is being written until the
    /// answer is dropped.
    async fn admit(&self, index: usize) -> ApplyPermit;
    /// So many bytes of the layer's blob have been read.
    fn read(&self, index: usize, bytes: u64);
    /// Writing the layer has gone through this stage.
    fn record_stage(&self, index: usize, stage: Stage, span: StageTiming);
}

/// The right to write a layer, given back when it is dropped.
pub struct ApplyPermit {
    _permit: Box<dyn Any + Send>,
}

impl ApplyPermit {
    /// A right that is given back by dropping `permit`.
    pub fn new(permit: impl Send + 'static) -> Self {
        Self {
            _permit: Box::new(permit),
        }
    }
}

impl fmt::Debug for ApplyPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApplyPermit").finish_non_exhaustive()
    }
}

/// What making a layer consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Waiting for who makes the layer, too, and for others to be written.
    Wait,
    /// Reading its blob.
    Read,
    /// Decompressing it.
    Inflate,
    /// Computing the diff ID.
    Hash,
    /// Writing what is in it, to the snapshot or ahead.
    Write,
    /// Putting what was written ahead in its place.
    Place,
    /// Committing the snapshot.
    Commit,
}

/// When something was done. Stages of one layer go on at the same time, each waiting for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageTiming {
    /// When it began.
    pub start: Instant,
    /// When it ended.
    pub end: Instant,
    /// How long it was at work between.
    pub busy: Duration,
}

impl StageTiming {
    /// All the time from `start` to now.
    pub fn since(start: Instant) -> Self {
        let end = Instant::now();
        Self {
            start,
            end,
            busy: end - start,
        }
    }
}

/// The layers of `batch`, to be applied as `applier` does best, or else one after the other.
pub fn in_batch(applier: &Arc<dyn Applier>, batch: Batch) -> Arc<dyn BatchApplier> {
    applier.batch(&batch).unwrap_or_else(|| {
        Arc::new(Sequential {
            applier: Arc::clone(applier),
            batch,
        })
    })
}

/// One layer after the other.
struct Sequential {
    applier: Arc<dyn Applier>,
    batch: Batch,
}

#[async_trait]
impl BatchApplier for Sequential {
    async fn apply(&self, scope: &Scope, index: usize, mounts: &[Mount]) -> Result<Applied> {
        let Batch {
            layers,
            sync_fs,
            monitor,
            ..
        } = &self.batch;
        let _permit = monitor.admit(index).await;
        let start = Instant::now();
        let layer = &layers[index];
        let applied = self.applier.apply(scope, layer, mounts, *sync_fs).await;
        monitor.record_stage(index, Stage::Write, StageTiming::since(start));
        applied
    }

    async fn end(&self) {}
}
