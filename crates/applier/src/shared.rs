// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! State that all batches of an applier share.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use resnap_core::{
    Applied, Applier, ContentReader, Descriptor, Introspection, Mount, Result, Scope,
};
use resnap_verity::Trust;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::guard::Guard;
use crate::memory::MemoryBudget;
use crate::proof;
use crate::settings::ApplierSettings;
use crate::watch;

/// State that all batches of an applier share.
pub(crate) struct Shared {
    pub(crate) fallback: Arc<dyn Applier>,
    pub(crate) content: Arc<dyn ContentReader>,
    pub(crate) introspection: Arc<dyn Introspection>,
    pub(crate) settings: ApplierSettings,
    pub(crate) memory: Arc<MemoryBudget>,
    /// Whether containerd has made an image immutable that was the file of its blob.
    pub(crate) no_links: AtomicBool,
}

impl Shared {
    /// Returns the root of a snapshotter.
    pub(crate) async fn root(&self, name: &str) -> std::result::Result<PathBuf, Error> {
        let all = self.introspection.snapshotters().await?;
        let mut found = all
            .into_iter()
            .filter(|snapshotter| snapshotter.name == name);
        if let Some(root) = found.next().and_then(|found| found.root) {
            return Ok(PathBuf::from(root));
        }
        // Before containerd 1.7 some snapshotters do not report their root. This is the default; if it is
        // wrong, the mounts are not inside it and the layer is left to containerd.
        let content = self.content_root().await?;
        let root = content.as_deref().and_then(Path::parent);
        let root = root.map(|root| root.join(format!("io.containerd.snapshotter.v1.{name}")));
        root.ok_or_else(|| Error::Unsupported(format!("the root of {name} is not known")))
    }

    /// Returns the root of the content store.
    pub(crate) async fn content_root(&self) -> std::result::Result<Option<PathBuf>, Error> {
        let root = self.introspection.content_root().await?;
        Ok(root.map(PathBuf::from))
    }

    /// Returns the certificates by which signatures are verified.
    pub(crate) fn trust(&self) -> std::result::Result<&Arc<Trust>, Error> {
        self.settings.trust.as_ref().ok_or_else(|| {
            let text = "no certificates are configured ([integrity] authorities or signers)";
            Error::Unproven(text.to_owned())
        })
    }

    /// Checks that this machine can mount layers with a proof, if it has to.
    pub(crate) fn require_kernel(&self) -> std::result::Result<(), Error> {
        match self.settings.mounts_here {
            true => proof::require_kernel(),
            false => Ok(()),
        }
    }

    /// Does work that reads or writes snapshots, in a thread, unless it makes no progress. Dropping the
    /// future cancels the work.
    pub(crate) async fn guarded<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Guard) -> std::result::Result<T, Error> + Send + 'static,
    ) -> std::result::Result<T, Error> {
        let cancellation = CancellationToken::new();
        let _cancel_on_drop = cancellation.clone().drop_guard();
        let is_turn = Arc::new(AtomicBool::new(true));
        let memory = self.memory.layer(&Default::default(), is_turn);
        let guard = Guard::new(cancellation, memory);
        let progress = Arc::clone(&guard.progress);
        let mut done = pin!(spawn_blocking(move || work(&guard)));
        let limit = self.settings.stall;
        let done = tokio::select! {
            done = &mut done => done,
            () = progress.stalled(limit) => {
                progress.abandon();
                return Err(Error::Stalled(limit));
            }
        };
        let done = done.map_err(|_| Error::Panicked("reads or writes"))?;
        done.map_err(Error::unwrap_stop_reason)
    }

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
