// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The port.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use resnap_core::{
    Applied, Batch, BatchApplier, ContentReader, Descriptor, Introspection, Mount, Ports, Result,
    Scope,
};

use crate::batch::Ahead;
use crate::memory::Memory;
use crate::watch;

/// Who writes layers to a snapshotter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Differ {
    /// This process for `overlayfs`, `native` and `erofs`, where it can; else containerd.
    #[default]
    Auto,
    /// This process; what it cannot write is an error.
    Resnap,
    /// containerd.
    Containerd,
}

/// How an [`InProcessApplier`] works.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ApplierSettings {
    /// Who writes layers, by snapshotter.
    pub differs: BTreeMap<String, Differ>,
    /// Bytes that a layer may have decompressed. By default 1 GiB and a thousand times its blob's:
    /// gzip makes no more of any, whatever it is.
    pub max_layer_bytes: Option<u64>,
    /// Bytes of memory for all layers that are written or have been written ahead of their turn: what
    /// is kept of directories, names and attributes, and the windows of zstd. [`MEMORY`] by default.
    /// One layer may take ten sixteenths of it.
    pub memory: u64,
    /// The longest time that writing a layer may take without progress. [`STALL`] by default.
    pub stall: Duration,
    /// Layers of a batch that are written at once. As many as there are cores by default.
    pub parallel: Option<NonZeroUsize>,
}

/// As [`ApplierSettings::memory`] is by default: 256 MiB.
pub const MEMORY: u64 = 256 << 20;

/// As [`ApplierSettings::stall`] is by default: ten minutes.
pub const STALL: Duration = Duration::from_secs(600);

/// Writes layers in this process, or has another applier write them. It asks for the roots of
/// snapshotters and content, and goes to their files itself.
#[derive(Clone)]
pub struct InProcessApplier(Arc<Shared>);

/// What all batches share.
pub(crate) struct Shared {
    pub(crate) fallback: Arc<dyn resnap_core::Applier>,
    pub(crate) content: Arc<dyn ContentReader>,
    pub(crate) introspection: Arc<dyn Introspection>,
    pub(crate) settings: ApplierSettings,
    pub(crate) memory: Arc<Memory>,
}

impl Shared {
    /// Has the fallback apply a layer, as long as it gets on.
    pub(crate) async fn by_fallback(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied> {
        let (fallback, limit) = (&*self.fallback, self.settings.stall);
        watch::apply(fallback, scope, layer, mounts, sync_fs, limit).await
    }
}

impl std::fmt::Debug for InProcessApplier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InProcessApplier")
            .field("settings", &self.0.settings)
            .finish_non_exhaustive()
    }
}

impl InProcessApplier {
    /// An applier before the one in `ports`.
    pub fn new(ports: &Ports, settings: ApplierSettings) -> Self {
        Self(Arc::new(Shared {
            fallback: Arc::clone(&ports.applier),
            content: Arc::clone(&ports.content),
            introspection: Arc::clone(&ports.introspection),
            memory: Memory::new(settings.memory),
            settings,
        }))
    }
}

#[async_trait]
impl resnap_core::Applier for InProcessApplier {
    /// By the fallback: a layer by itself does not say its snapshotter.
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        sync_fs: bool,
    ) -> Result<Applied> {
        self.0.by_fallback(scope, layer, mounts, sync_fs).await
    }

    fn batch(&self, batch: &Batch) -> Option<Arc<dyn BatchApplier>> {
        let differ = self.0.settings.differ(&batch.snapshotter);
        match differ {
            Differ::Containerd => None,
            Differ::Auto if !KNOWN.contains(&batch.snapshotter.as_str()) => None,
            Differ::Auto | Differ::Resnap => Some(Arc::new(Ahead::new(
                Arc::clone(&self.0),
                batch.clone(),
                differ,
            ))),
        }
    }
}

/// Whose layers are ours by default.
const KNOWN: [&str; 3] = ["erofs", "native", "overlayfs"];

impl Default for ApplierSettings {
    fn default() -> Self {
        Self {
            differs: BTreeMap::new(),
            max_layer_bytes: None,
            memory: MEMORY,
            stall: STALL,
            parallel: None,
        }
    }
}

impl ApplierSettings {
    /// Who writes layers to the snapshotter of this name.
    pub fn differ(&self, snapshotter: &str) -> Differ {
        self.differs.get(snapshotter).copied().unwrap_or_default()
    }

    pub(crate) fn parallel(&self) -> usize {
        let cores = || std::thread::available_parallelism().ok();
        self.parallel.or_else(cores).map_or(1, NonZeroUsize::get)
    }

    pub(crate) fn limit(&self, layer: &Descriptor) -> u64 {
        let usual = || layer.size.saturating_mul(1000).saturating_add(1 << 30);
        self.max_layer_bytes.unwrap_or_else(usual)
    }
}
