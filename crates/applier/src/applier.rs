// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The implementation of the applier port.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use async_trait::async_trait;
use resnap_core::{
    Applied, Batch, BatchApplier, ChainView, Descriptor, Inspection, Integrity, LayerToSeal,
    LayerToVerify, Mount, Ports, Proof, ProofSignature, Result, Scope, Verified, labels,
};

use crate::batch::StagedBatch;
use crate::erofs;
use crate::error::Error;
use crate::memory::MemoryBudget;
use crate::proof;
use crate::seal::seal;
use crate::settings::{ApplierSettings, Differ, KNOWN};
use crate::shared::Shared;
use crate::sibling::{self, snapshots_of_images};
use crate::target::has_mounts;
use crate::verify::verify;

/// An applier that writes layers in this process, and leaves to a fallback what it cannot write. It asks
/// containerd for the roots of snapshotters and of the content store, and accesses their files directly.
#[derive(Clone)]
pub struct InProcessApplier(Arc<Shared>);

impl std::fmt::Debug for InProcessApplier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcessApplier")
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
    }
}

impl InProcessApplier {
    /// Returns an applier whose fallback is the applier of `ports`.
    pub fn new(ports: &Ports, settings: ApplierSettings) -> Self {
        Self(Arc::new(Shared {
            fallback: Arc::clone(&ports.applier),
            content: Arc::clone(&ports.content),
            introspection: Arc::clone(&ports.introspection),
            memory: MemoryBudget::new(settings.memory, settings.memory_use.clone()),
            no_links: AtomicBool::new(false),
            settings,
        }))
    }
}

fn failed(operation: &'static str, subject: &str, error: Error) -> resnap_core::Error {
    resnap_core::Error::new(error.kind(), operation, subject).with_source(error)
}

#[async_trait]
impl resnap_core::Applier for InProcessApplier {
    /// Uses the fallback: without a batch the snapshotter of the layer is not known.
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied> {
        let shared = &self.0;
        shared
            .apply_with_fallback(scope, layer, mounts, sync_fs)
            .await
    }

    fn can_copy_from(&self, snapshotter: &str) -> bool {
        sibling::can_copy_from(snapshotter)
    }

    async fn inspect(
        &self,
        chain: &ChainView,
        layers: Range<usize>,
        inspection: Inspection,
    ) -> Result<()> {
        let inspected = sibling::inspect(&self.0, chain, layers, inspection).await;
        inspected.map_err(|error| failed("copy layers of", &chain.snapshotter, error))
    }

    async fn require_integrity(&self, snapshotter: &str, integrity: Integrity) -> Result<()> {
        let required = match (integrity, self.0.settings.differ(snapshotter)) {
            (Integrity::Off, _) => Ok(()),
            (_, Differ::Containerd) => Err(Error::Unproven(
                "containerd writes its layers (differ = \"containerd\")".to_owned(),
            )),
            (_, Differ::Auto) if !KNOWN.contains(&snapshotter) => Err(Error::Unproven(
                "containerd writes its layers, unless differ = \"resnap\"".to_owned(),
            )),
            _ if KNOWN.contains(&snapshotter) && snapshotter != erofs::SNAPSHOTTER => {
                Err(Error::Unproven(format!(
                    "its layers are directories; those on {} are images, which can have a dm-verity tree",
                    erofs::SNAPSHOTTER
                )))
            }
            (Integrity::Signed, _) => self.0.trust().and_then(|_| self.0.require_kernel()),
            (Integrity::Verity, _) => self.0.require_kernel(),
        };
        if required.is_ok() && integrity.is_on() && self.0.settings.mounts_here {
            proof::warn_of_required_signatures();
        }
        required.map_err(|error| failed("prove layers of", snapshotter, error))
    }

    async fn seal(&self, scope: &Scope, layer: LayerToSeal<'_>) -> Result<Proof> {
        let digest = layer.descriptor.digest.as_str();
        let sealed = seal(&self.0, scope, layer).await;
        sealed.map_err(|error| failed("prove layer", digest, error))
    }

    fn verify_signature(&self, root_hash: &str, signature: &[u8]) -> Result<ProofSignature> {
        let verified = self
            .0
            .trust()
            .and_then(|trust| proof::verify_signature(trust, root_hash, signature));
        verified.map_err(|error| failed("trust a signature of", root_hash, error))
    }

    fn trusts_signers(&self) -> bool {
        self.0.settings.trust.is_some()
    }

    async fn verify_signed(&self, chain: &ChainView) -> Result<()> {
        let failed = |error| failed("verify layers of", &chain.snapshotter, error);
        let root = self.0.root(&chain.snapshotter).await.map_err(failed)?;
        let trust = self.0.trust().map(Arc::clone).map_err(failed)?;
        let viewed = chain.clone();
        let verified = self.0.guarded(move |_| {
            let snapshots = snapshots_of_images(&viewed, &root);
            let snapshots = snapshots.map_err(|fault| Error::Unproven(fault.to_string()))?;
            let mut layers = snapshots.iter().zip(&viewed.snapshots);
            layers.try_for_each(|(snapshot, layer)| {
                let root_hash = layer.labels.get(labels::ROOT_HASH).map(String::as_str);
                proof::verify_snapshot(&trust, snapshot, root_hash).map_err(|error| match error {
                    Error::Unproven(why) => Error::Unproven(format!("layer {}: {why}", layer.key)),
                    error => error,
                })
            })
        });
        verified.await.map_err(failed)
    }

    async fn verify(&self, scope: &Scope, layer: &LayerToVerify) -> Result<Verified> {
        let verified = verify(&self.0, scope, layer).await;
        verified.map_err(|error| failed("verify layer", layer.descriptor.digest.as_str(), error))
    }

    async fn snapshotter_of(&self, mounts: &[Mount]) -> Result<Option<String>> {
        let all = self.0.introspection.snapshotters().await?.into_iter();
        let written =
            all.filter(|found| self.0.settings.writes(&found.name) && found.failure.is_none());
        let mut roots = written.filter_map(|found| Some((found.name, found.root?)));
        let of = roots.find(|(_, root)| has_mounts(Path::new(root), mounts));
        Ok(of.map(|(name, _)| name))
    }

    fn batch(&self, batch: &Batch) -> Option<Arc<dyn BatchApplier>> {
        let differ = self.0.settings.differ(&batch.snapshotter);
        let new = || StagedBatch::new(Arc::clone(&self.0), batch.clone(), differ);
        self.0
            .settings
            .writes(&batch.snapshotter)
            .then(|| Arc::new(new()) as _)
    }
}
