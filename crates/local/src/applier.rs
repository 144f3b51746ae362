// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The differ: the applier of `resnap-applier`, without a containerd to fall back on.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use resnap_applier::{ApplierSettings, InProcessApplier};
use resnap_core::{
    Applied, Applier, ApplyMonitor, ApplyPermit, Batch, BatchApplier, ChainView, Descriptor, Error,
    Inspection, Integrity, Kind, LayerToSeal, LayerToVerify, Mount, Ports, Preparer, Proof,
    ProofSignature, Result, Scope, Stage, StageTiming, Verified,
};

/// Writes nothing: what the applier leaves to its fallback cannot be written.
pub(crate) struct NoFallback;

#[async_trait]
impl Applier for NoFallback {
    async fn apply(&self, _: &Scope, layer: &Descriptor, _: &[Mount], _: bool) -> Result<Applied> {
        let error = Error::new(Kind::Unimplemented, "apply layer", layer.digest.as_str());
        Err(error.with_source(format!(
            "a local store cannot write layers of type {:?} to this snapshotter",
            layer.media_type
        )))
    }
}

/// The applier. A single layer is a batch of one, since only a batch is written in this process.
pub(crate) struct LayerByLayer(InProcessApplier);

impl LayerByLayer {
    pub(crate) fn new(ports: &Ports, settings: ApplierSettings) -> Self {
        Self(InProcessApplier::new(ports, settings))
    }
}

#[async_trait]
impl Applier for LayerByLayer {
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied> {
        let snapshotter = self.0.snapshotter_of(mounts).await?;
        let batch = snapshotter.and_then(|snapshotter| {
            self.0.batch(&Batch {
                scope: scope.clone(),
                snapshotter,
                layers: vec![layer.clone().into()],
                sync_fs,
                integrity: Integrity::Off,
                preparer: Preparer::Caller,
                monitor: Arc::new(Unwatched),
            })
        });
        let Some(batch) = batch else {
            return NoFallback.apply(scope, layer, mounts, sync_fs).await;
        };
        let applied = batch.apply(scope, 0, mounts).await;
        batch.end().await;
        applied
    }

    fn can_copy_from(&self, snapshotter: &str) -> bool {
        self.0.can_copy_from(snapshotter)
    }

    async fn inspect(
        &self,
        chain: &ChainView,
        layers: Range<usize>,
        inspection: Inspection,
    ) -> Result<()> {
        self.0.inspect(chain, layers, inspection).await
    }

    async fn require_integrity(&self, snapshotter: &str, integrity: Integrity) -> Result<()> {
        self.0.require_integrity(snapshotter, integrity).await
    }

    async fn seal(&self, scope: &Scope, layer: LayerToSeal<'_>) -> Result<Proof> {
        self.0.seal(scope, layer).await
    }

    fn verify_signature(&self, root_hash: &str, signature: &[u8]) -> Result<ProofSignature> {
        self.0.verify_signature(root_hash, signature)
    }

    fn trusts_signers(&self) -> bool {
        self.0.trusts_signers()
    }

    async fn verify_signed(&self, chain: &ChainView) -> Result<()> {
        self.0.verify_signed(chain).await
    }

    async fn verify(&self, scope: &Scope, layer: &LayerToVerify) -> Result<Verified> {
        self.0.verify(scope, layer).await
    }

    async fn snapshotter_of(&self, mounts: &[Mount]) -> Result<Option<String>> {
        self.0.snapshotter_of(mounts).await
    }

    fn batch(&self, batch: &Batch) -> Option<Arc<dyn BatchApplier>> {
        self.0.batch(batch)
    }
}

/// A monitor of a layer that nobody watches and that waits for no other.
struct Unwatched;

#[async_trait]
impl ApplyMonitor for Unwatched {
    async fn admit(&self, _: usize) -> ApplyPermit {
        ApplyPermit::new(())
    }

    fn read(&self, _: usize, _: u64) {}

    fn record_stage(&self, _: usize, _: Stage, _: StageTiming) {}
}
