// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The implementation of the applier port.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use resnap_core::{
    Applied, Batch, BatchApplier, ChainView, Descriptor, Inspection, Mount, Ports, Result, Scope,
};

use crate::batch::StagedBatch;
use crate::memory::MemoryBudget;
use crate::settings::{ApplierSettings, Differ};
use crate::shared::Shared;
use crate::sibling;

/// The snapshotters whose layers are written in this process by default.
const KNOWN: [&str; 3] = ["erofs", "native", "overlayfs"];

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
            memory: MemoryBudget::new(settings.memory),
            settings,
        }))
    }
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
        inspected.map_err(|error| {
            resnap_core::Error::new(error.kind(), "copy layers of", &*chain.snapshotter)
                .with_source(error)
        })
    }

    fn batch(&self, batch: &Batch) -> Option<Arc<dyn BatchApplier>> {
        let differ = self.0.settings.differ(&batch.snapshotter);
        match differ {
            Differ::Containerd => None,
            Differ::Auto if !KNOWN.contains(&batch.snapshotter.as_str()) => None,
            Differ::Auto | Differ::Resnap => Some(Arc::new(StagedBatch::new(
                Arc::clone(&self.0),
                batch.clone(),
                differ,
            ))),
        }
    }
}
