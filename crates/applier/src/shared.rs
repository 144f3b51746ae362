// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! State that all batches of an applier share.

use std::sync::Arc;

use resnap_core::{
    Applied, Applier, ContentReader, Descriptor, Introspection, Mount, Result, Scope,
};

use crate::memory::MemoryBudget;
use crate::settings::ApplierSettings;
use crate::watch;

/// State that all batches of an applier share.
pub(crate) struct Shared {
    pub(crate) fallback: Arc<dyn Applier>,
    pub(crate) content: Arc<dyn ContentReader>,
    pub(crate) introspection: Arc<dyn Introspection>,
    pub(crate) settings: ApplierSettings,
    pub(crate) memory: Arc<MemoryBudget>,
}

impl Shared {
    /// Applies a layer with the fallback, and gives up if that makes no progress.
    pub(crate) async fn apply_with_fallback(
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
