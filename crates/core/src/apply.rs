// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Applying layers to snapshots: one by one, or all missing layers of an image as a batch.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::Serialize;

use crate::{
    ByteStream, ChainView, Descriptor, Digest, Error, Integrity, Kind, LayerToSeal, LayerToVerify,
    Mount, Proof, ProofSignature, Result, Scope, SignedRoot, Verified,
};

/// The result of an Apply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// The digest of the uncompressed tar that was written; `None` for a [`LayerCopy`].
    pub diff_id: Option<Digest>,
    /// Its size in bytes; that of the files' data for a [`LayerCopy`].
    pub size: u64,
    /// Whether an EROFS image was made of the layer's entries, by this program.
    pub is_own_image: bool,
    /// The proof that was written with the layer, if its batch asked for one.
    pub proof: Option<Proof>,
}

/// Writes layers to snapshots.
#[async_trait]
pub trait Applier: Send + Sync {
    /// Writes the layer through the mounts of its active snapshot, and flushes it to disk if `sync_fs`
    /// is set. [`Kind::NotFound`](crate::Kind::NotFound) if the blob does not exist.
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied>;

    /// Returns whether layers of this snapshotter's snapshots may be copied.
    fn can_copy_from(&self, snapshotter: &str) -> bool {
        let _ = snapshotter;
        false
    }

    /// Checks that the snapshots of a chain are its layers. The layers are those at these indexes of the
    /// chain, the base being 0.
    ///
    /// # Errors
    /// [`Kind::Unimplemented`](crate::Kind::Unimplemented) if the applier cannot copy layers of this
    /// snapshotter; [`Kind::DataLoss`](crate::Kind::DataLoss) if the chain itself is wrong, as it was
    /// made without the layers' parents; [`Kind::FailedPrecondition`](crate::Kind::FailedPrecondition)
    /// if a copy would not be the layer, with the reason.
    async fn inspect(
        &self,
        chain: &ChainView,
        layers: Range<usize>,
        inspection: Inspection,
    ) -> Result<()> {
        let _ = (layers, inspection);
        Err(cannot_copy(chain))
    }

    /// Checks that layers with this proof can be written on this machine, and mounted.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`](crate::Kind::FailedPrecondition) with the reason if they cannot.
    async fn require_integrity(&self, snapshotter: &str, integrity: Integrity) -> Result<()> {
        match integrity {
            Integrity::Off => Ok(()),
            Integrity::Verity | Integrity::Signed => Err(cannot_prove(snapshotter)),
        }
    }

    /// Gives a committed layer its dm-verity tree, and returns the proof. Containers that use the layer are not
    /// disturbed: those that start afterwards mount it by the tree. A layer that has a tree keeps it, if that is
    /// right. A layer for which there is a signed index is replaced by an image with that, if the files of both
    /// are the same.
    ///
    /// # Errors
    /// [`Kind::FailedPrecondition`](crate::Kind::FailedPrecondition) with the reason if the layer cannot
    /// have one; [`Kind::DataLoss`](crate::Kind::DataLoss) if it has one that is wrong;
    /// [`Kind::PermissionDenied`](crate::Kind::PermissionDenied) if the signed root hash is not that of the layer.
    async fn seal(&self, scope: &Scope, layer: LayerToSeal<'_>) -> Result<Proof> {
        let _ = scope;
        Err(cannot_prove(&layer.chain.snapshotter))
    }

    /// Verifies the detached signature, in DER, of a root hash, by the certificates that the applier trusts.
    ///
    /// # Errors
    /// [`Kind::PermissionDenied`](crate::Kind::PermissionDenied) with the reason if it is not accepted.
    fn verify_signature(&self, root_hash: &str, signature: &[u8]) -> Result<ProofSignature> {
        let _ = signature;
        Err(
            Error::new(Kind::PermissionDenied, "trust a signature of", root_hash)
                .with_source("no certificates are trusted"),
        )
    }

    /// Returns whether signatures may be accepted: whether there are certificates to verify them by.
    fn trusts_signers(&self) -> bool {
        false
    }

    /// Checks that the layers of a chain have sidecars whose root hashes are signed, by signatures that are
    /// accepted now. Reads nothing of the layers themselves.
    ///
    /// # Errors
    /// [`Kind::PermissionDenied`](crate::Kind::PermissionDenied) with the reason if one has not.
    async fn verify_signed(&self, chain: &ChainView) -> Result<()> {
        Err(cannot_prove(&chain.snapshotter))
    }

    /// Compares a committed layer with what proves it: with the dm-verity tree of its image if it has one,
    /// otherwise with its blob. Differences are a result, not an error. Dropping the future stops the work.
    ///
    /// # Errors
    /// [`Kind::NotFound`](crate::Kind::NotFound) if the layer has no tree and its blob is missing;
    /// [`Kind::DataLoss`](crate::Kind::DataLoss) if the blob itself is damaged; any other with the reason why
    /// the layer cannot be compared.
    async fn verify(&self, scope: &Scope, layer: &LayerToVerify) -> Result<Verified> {
        let _ = scope;
        let verify = Error::new(
            Kind::Unimplemented,
            "verify layers of",
            &*layer.chain.snapshotter,
        );
        Err(verify.with_source("this applier reads no committed layers"))
    }

    /// Returns the name of the snapshotter that has these mounts, if this applier may have something better
    /// than the backend's way to write its layers.
    async fn snapshotter_of(&self, mounts: &[Mount]) -> Result<Option<String>> {
        let _ = mounts;
        Ok(None)
    }

    /// Starts writing several layers. Returns `None` if the applier has no better way than one layer
    /// after the other; see [`in_batch`]. It must be called within a tokio runtime.
    fn batch(&self, batch: &Batch) -> Option<Arc<dyn BatchApplier>> {
        let _ = batch;
        None
    }
}

/// The extent of an inspection of a chain ([`Applier::inspect`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inspection {
    /// Only whether the chain was made with the layers' parents: one layer that was not shows that others
    /// may not have been. What else is refused is found when its layer is copied.
    Parents,
    /// All that a copy looks at, except for the data of files.
    Full,
}

/// A layer that is copied from a snapshot of another snapshotter. Its diff ID cannot be computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerCopy {
    /// The chain, which is held by a lease until the batch ends.
    pub chain: Arc<ChainView>,
    /// The index of the snapshot in the chain, the base being 0.
    pub index: usize,
}

/// A layer of a [`Batch`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchLayer {
    /// The blob.
    pub descriptor: Descriptor,
    /// The snapshot that it is copied from, instead of its blob.
    pub copy: Option<LayerCopy>,
    /// The signed root hash that its image must have, on a snapshotter for EROFS images.
    pub signed: Option<Arc<SignedRoot>>,
}

impl From<Descriptor> for BatchLayer {
    /// Returns a layer that is written from its blob.
    fn from(descriptor: Descriptor) -> Self {
        Self {
            descriptor,
            copy: None,
            signed: None,
        }
    }
}

/// Layers that are applied one after the other, and may be built before their turn.
#[derive(Clone)]
pub struct Batch {
    /// The scope of the layers' blobs.
    pub scope: Scope,
    /// The target snapshotter.
    pub snapshotter: String,
    /// The layers, each on top of the one before.
    pub layers: Vec<BatchLayer>,
    /// Whether each layer is flushed to disk when it is applied.
    pub sync_fs: bool,
    /// The proof that each layer needs. An applier that cannot give it returns an error, or no proof.
    pub integrity: Integrity,
    /// The preparer of the snapshots.
    pub preparer: Preparer,
    /// Decides when layers are written, and receives progress.
    pub monitor: Arc<dyn ApplyMonitor>,
}

/// The preparer of the snapshots of a [`Batch`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Preparer {
    /// The caller of the applier, after the batch has started.
    Caller,
    /// Any client of the backend, before. The backend, the process with this number, asks for its layers to be
    /// written, and writes itself what is refused with [`Kind::Unimplemented`]: there is no fallback. If the
    /// scope of the batch has no namespace, blobs are read whichever namespaces they are in.
    Backend(u32),
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
/// Dropping it abandons layers that were built and not applied. Their files are removed later.
#[async_trait]
pub trait BatchApplier: Send + Sync {
    /// Writes the layer at `index` through the mounts of its active snapshot. The layers before it must
    /// be committed, by any client. A layer may be skipped, and may be applied again to another
    /// snapshot. [`Kind::NotFound`](crate::Kind::NotFound) if the blob does not exist. A layer that
    /// cannot be copied is refused with [`Kind::FailedPrecondition`](crate::Kind::FailedPrecondition), and one whose
    /// signed root hash is another with [`Kind::PermissionDenied`](crate::Kind::PermissionDenied); its snapshot must
    /// be removed then.
    async fn apply(&self, scope: &Scope, index: usize, mounts: &[Mount]) -> Result<Applied>;

    /// Stops all work and waits for it: afterwards nothing is written to a snapshot any more, and layers
    /// that were built and not applied are removed.
    async fn end(&self);
}

/// Decides when a layer may be written, and receives progress. Layers are identified by their index in
/// the [`Batch`].
#[async_trait]
pub trait ApplyMonitor: Send + Sync {
    /// Waits until the layer may be written, in its snapshot or in advance. The permit is held while it
    /// is being written.
    async fn admit(&self, index: usize) -> ApplyPermit;
    /// Returns the bytes of the layer's blob if they are still being fetched, once after `admit`. They
    /// are unchecked, and the stream fails if they come too slowly. `None` if the blob is complete.
    fn incoming(&self, index: usize) -> Option<ByteStream> {
        let _ = index;
        None
    }
    /// Waits until the layer's blob is complete, or will never be. An applier that does not read
    /// [`ApplyMonitor::incoming`] calls it before `admit`.
    async fn complete(&self, index: usize) {
        let _ = index;
    }
    /// Called when `bytes` bytes of the layer's blob have been read.
    fn read(&self, index: usize, bytes: u64);
    /// Called when the layer has completed `stage`.
    fn record_stage(&self, index: usize, stage: Stage, span: StageTiming);
}

/// The permission to write a layer, returned on drop.
pub struct ApplyPermit {
    _permit: Box<dyn Any + Send>,
}

impl ApplyPermit {
    /// Creates a permit that is returned by dropping `permit`.
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

/// A stage of unpacking a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Waiting for another unpack of the same layer, or for other layers to be written.
    Wait,
    /// Fetching its blob.
    Fetch,
    /// Reading its blob.
    Read,
    /// Decompressing it.
    Inflate,
    /// Computing the diff ID.
    Hash,
    /// Writing its content, to the snapshot or in advance.
    Write,
    /// Moving content that was written in advance into the snapshot.
    Place,
    /// Committing the snapshot.
    Commit,
}

/// The time span of a stage. The stages of one layer run concurrently and wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StageTiming {
    /// The start.
    pub start: Instant,
    /// The end.
    pub end: Instant,
    /// The time spent working in between.
    pub busy: Duration,
}

impl StageTiming {
    /// Returns the span from `start` to now, all of it busy.
    pub fn since(start: Instant) -> Self {
        let end = Instant::now();
        Self {
            start,
            end,
            busy: end - start,
        }
    }
}

/// Starts a batch with `applier`, or one layer after the other if the applier has no batches.
pub fn in_batch(applier: &Arc<dyn Applier>, batch: Batch) -> Arc<dyn BatchApplier> {
    applier.batch(&batch).unwrap_or_else(|| {
        Arc::new(Sequential {
            applier: Arc::clone(applier),
            batch,
        })
    })
}

fn cannot_copy(chain: &ChainView) -> Error {
    Error::new(Kind::Unimplemented, "copy layers of", &*chain.snapshotter)
        .with_source("this applier writes layers from their blobs only")
}

fn cannot_prove(snapshotter: &str) -> Error {
    Error::new(Kind::FailedPrecondition, "prove layers of", snapshotter)
        .with_source("this applier gives layers no proof: `integrity` needs resnap's own for EROFS")
}

/// Applies one layer after the other.
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
        monitor.complete(index).await;
        let _permit = monitor.admit(index).await;
        let start = Instant::now();
        let layer = &layers[index];
        if let Some(copy) = &layer.copy {
            return Err(cannot_copy(&copy.chain));
        }
        let layer = &layer.descriptor;
        let applied = self.applier.apply(scope, layer, mounts, *sync_fs).await;
        monitor.record_stage(index, Stage::Write, StageTiming::since(start));
        applied
    }

    async fn end(&self) {}
}
