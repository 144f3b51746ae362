// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Settings of the applier.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use resnap_core::{Descriptor, ErofsMode};
use resnap_verity::Trust;

use crate::erofs::SNAPSHOTTER;
use crate::memory::MemoryUse;

/// The snapshotters whose layers are written in this process by default.
pub(crate) const KNOWN: [&str; 3] = [SNAPSHOTTER, "native", "overlayfs"];

/// The program that writes layers to a snapshotter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Differ {
    /// This process for `overlayfs`, `native` and `erofs`, where it can; otherwise containerd.
    #[default]
    Auto,
    /// This process. A layer that it cannot write is an error.
    Resnap,
    /// containerd.
    Containerd,
}

/// Settings of an [`InProcessApplier`](crate::InProcessApplier).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ApplierSettings {
    /// The differ of each snapshotter, by name.
    pub differs: BTreeMap<String, Differ>,
    /// The form of the EROFS images of each snapshotter, by name. A layer that is copied from another
    /// snapshotter has no tar, and is always a whole image.
    pub erofs_modes: BTreeMap<String, ErofsMode>,
    /// The most bytes that a layer may have when decompressed. By default 1 GiB and a thousand times the
    /// size of the blob, which is more than any gzip stream expands to.
    pub max_layer_bytes: Option<u64>,
    /// Bytes of memory for all layers that are being written, or are written ahead of their turn: for
    /// directories, names, attributes, and the windows of zstd. [`MEMORY`] by default. One layer may
    /// take ten sixteenths of it.
    pub memory: u64,
    /// Set to the bytes of it that are taken.
    pub memory_use: MemoryUse,
    /// The longest time that writing a layer may take without progress. [`STALL`] by default.
    pub stall: Duration,
    /// The certificates by which signatures of root hashes are verified, if there are any.
    pub trust: Option<Arc<Trust>>,
    /// Whether layers are mounted on this machine, so that its kernel must be able to. True by default.
    pub mounts_here: bool,
    /// The number of layers of a batch that are written at once. The number of cores by default.
    pub parallel: Option<NonZeroUsize>,
}

/// The default of [`ApplierSettings::memory`]: 256 MiB.
pub const MEMORY: u64 = 256 << 20;

/// The default of [`ApplierSettings::stall`]: ten minutes.
pub const STALL: Duration = Duration::from_secs(600);

impl Default for ApplierSettings {
    fn default() -> Self {
        Self {
            differs: BTreeMap::new(),
            erofs_modes: BTreeMap::new(),
            max_layer_bytes: None,
            memory: MEMORY,
            memory_use: MemoryUse::default(),
            stall: STALL,
            trust: None,
            mounts_here: true,
            parallel: None,
        }
    }
}

impl ApplierSettings {
    /// Returns the differ of the snapshotter with this name.
    pub fn differ(&self, snapshotter: &str) -> Differ {
        self.differs.get(snapshotter).copied().unwrap_or_default()
    }

    /// Returns whether layers of the snapshotter with this name are written in this process.
    pub fn writes(&self, snapshotter: &str) -> bool {
        match self.differ(snapshotter) {
            Differ::Containerd => false,
            Differ::Auto => KNOWN.contains(&snapshotter),
            Differ::Resnap => true,
        }
    }

    /// Returns the form of the EROFS images of the snapshotter with this name.
    pub fn erofs_mode(&self, snapshotter: &str) -> ErofsMode {
        let mode = self.erofs_modes.get(snapshotter);
        mode.copied().unwrap_or_default()
    }

    pub(crate) fn parallel(&self) -> usize {
        let cores = || std::thread::available_parallelism().ok();
        self.parallel.or_else(cores).map_or(1, NonZeroUsize::get)
    }

    pub(crate) fn limit(&self, layer: &Descriptor) -> u64 {
        let default = || layer.size.saturating_mul(1000).saturating_add(1 << 30);
        self.max_layer_bytes.unwrap_or_else(default)
    }
}
