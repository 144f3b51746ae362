// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The chain of the same image on another snapshotter, from which layers are copied.

use std::cmp::Reverse;
use std::sync::Arc;

use resnap_core::{
    ChainId, ChainView, Error, Inspection, Kind, LayerCopy, SnapshotInfo, SnapshotKey, labels,
};
use uuid::Uuid;

use crate::backend::Backend;
use crate::lease::{JobLease, LeaseKeeper, undo};
use crate::{Plan, UnpackError};

/// A chain on another snapshotter, and the view that names the directories of its layers.
pub(crate) struct Sibling {
    view: Arc<ChainView>,
    key: SnapshotKey,
}

/// The planned layers from `first` on, and the lease under which they are looked at.
#[derive(Clone, Copy)]
pub(crate) struct Layers<'a> {
    pub(crate) backend: &'a Backend,
    pub(crate) lease: &'a JobLease,
    pub(crate) plan: &'a Plan,
    pub(crate) first: usize,
}

/// Looks at all planned layers under a lease of its own.
pub(crate) async fn within_lease<T>(
    keeper: &Arc<LeaseKeeper>,
    plan: &Plan,
    snapshotter: &str,
    look: impl AsyncFnOnce(Layers<'_>) -> Result<T, Error>,
) -> Result<Result<T, Error>, UnpackError> {
    let (target, name) = (&plan.image.target.digest, &plan.image.name);
    let lease = JobLease::new(Arc::clone(keeper), target, None, name, snapshotter);
    let looked = async {
        lease.begin().await?;
        look(Layers {
            backend: &keeper.backend,
            lease: &lease,
            plan,
            first: 0,
        })
        .await
    };
    let looked = looked.await;
    let ended = lease.end(false).await;
    ended.map_err(|error| UnpackError::Backend(error.into_source()))?;
    Ok(looked)
}

/// Checks that the planned layers on a snapshotter were made with their parents.
/// Snapshotters whose layers cannot be looked at are skipped.
///
/// # Errors
/// The error for a chain that was made without the layers' parents.
pub(crate) async fn inspect(
    keeper: &Arc<LeaseKeeper>,
    plan: &Plan,
    snapshotter: &str,
) -> Result<(), Error> {
    if !keeper.backend.ports.applier.can_copy_from(snapshotter) {
        return Ok(());
    }
    let inspection = Inspection::Parents;
    let looked = within_lease(keeper, plan, snapshotter, async |layers| {
        let snapshots = committed(layers.backend, plan, snapshotter).await?;
        let sibling = Sibling::open(layers, snapshotter.to_owned(), snapshots, inspection).await?;
        sibling.end(layers.backend).await;
        Ok(())
    });
    match looked.await {
        Ok(Err(error)) if error.kind() == Kind::DataLoss => Err(error),
        looked => {
            tracing::debug!(?looked, snapshotter, "looked at a chain");
            Ok(())
        }
    }
}

/// Returns what a view of all planned layers on a snapshotter shows. The view is removed.
///
/// # Errors
/// [`Kind::NotFound`] if the snapshotter does not have all of them, or the backend's error.
pub(crate) async fn viewed(
    keeper: &Arc<LeaseKeeper>,
    plan: &Plan,
    snapshotter: &str,
) -> Result<ChainView, UnpackError> {
    let viewed = within_lease(keeper, plan, snapshotter, async |layers| {
        let snapshots = committed(layers.backend, plan, snapshotter).await?;
        if snapshots.len() != plan.layers.len() {
            let gone = Error::new(Kind::NotFound, "view layers on", snapshotter);
            return Err(gone.with_source("it does not have all of them any more"));
        }
        let view = Sibling::view(layers, snapshotter.to_owned(), snapshots).await?;
        let chain = view.chain().clone();
        view.end(layers.backend).await;
        Ok(chain)
    });
    Ok(viewed.await??)
}

impl Sibling {
    /// Finds the snapshotter, other than `target`, that has the most of the layers in a form that can
    /// be copied.
    pub(crate) async fn find(
        layers: Layers<'_>,
        target: &str,
        inspection: Inspection,
    ) -> Result<Self, Error> {
        let ports = &layers.backend.ports;
        let all = ports.introspection.snapshotters().await?;
        let others = all.into_iter().filter(|other| {
            other.failure.is_none()
                && other.name != target
                && ports.applier.can_copy_from(&other.name)
        });
        let mut found: Vec<(String, Vec<SnapshotInfo>)> = Vec::new();
        for other in others {
            let snapshots = committed(layers.backend, layers.plan, &other.name).await?;
            if snapshots.len() > layers.first {
                found.push((other.name, snapshots));
            }
        }
        found.sort_by_key(|(_, snapshots)| Reverse(snapshots.len()));
        let mut refusal = None;
        for (snapshotter, snapshots) in found {
            match Self::open(layers, snapshotter, snapshots, inspection).await {
                Ok(sibling) => return Ok(sibling),
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        Err(refusal.unwrap_or_else(|| {
            let none = Error::new(Kind::NotFound, "copy layers from", "another snapshotter");
            none.with_source("none has them in a form that can be copied")
        }))
    }

    /// Creates a view of the snapshots, and inspects the layers: if one of them is wrong, so may be the
    /// others.
    async fn open(
        layers: Layers<'_>,
        snapshotter: String,
        snapshots: Vec<SnapshotInfo>,
        inspection: Inspection,
    ) -> Result<Self, Error> {
        let sibling = Self::view(layers, snapshotter, snapshots).await?;
        let applier = &layers.backend.ports.applier;
        let inspected = layers.first..sibling.view.snapshots.len();
        if let Err(error) = applier.inspect(&sibling.view, inspected, inspection).await {
            sibling.end(layers.backend).await;
            return Err(error);
        }
        Ok(sibling)
    }

    /// Creates a view of the snapshots under the lease, as garbage collection would remove it otherwise.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there are none, or the backend's error.
    pub(crate) async fn view(
        layers: Layers<'_>,
        snapshotter: String,
        snapshots: Vec<SnapshotInfo>,
    ) -> Result<Self, Error> {
        let Layers {
            backend,
            lease,
            plan,
            ..
        } = layers;
        let top = snapshots.len().checked_sub(1);
        let Some(top) = top.and_then(|top| plan.layers.get(top)) else {
            let none = Error::new(Kind::NotFound, "view layers on", snapshotter);
            return Err(none.with_source("it has none of them"));
        };
        let top = &top.chain_id;
        let unique = Uuid::new_v4().simple().to_string();
        // The name of an extraction, so that it is removed with those of a process that was killed.
        let key = SnapshotKey::extraction(&unique, top);
        let source = backend.snapshotter(&snapshotter);
        let viewed = {
            // Held meanwhile: a lease that is renewed would miss the view.
            let scope = lease.scope().await?;
            source.view(&scope, &key, top).await
        };
        let mounts = match viewed {
            Ok(mounts) => mounts,
            Err(error) => {
                // Its answer may be lost. What is left goes with the lease.
                let _ = undo(|| source.remove(&backend.scope, &key)).await;
                return Err(error);
            }
        };
        Ok(Self {
            view: Arc::new(ChainView {
                snapshotter,
                mounts,
                snapshots,
            }),
            key,
        })
    }

    /// Returns the chain.
    pub(crate) fn chain(&self) -> &ChainView {
        &self.view
    }

    /// Returns the name of the snapshotter.
    pub(crate) fn snapshotter(&self) -> &str {
        &self.view.snapshotter
    }

    /// Returns the copy of the layer at `index`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if the other snapshotter does not have the layer.
    pub(crate) fn copy(&self, index: usize) -> Result<LayerCopy, Error> {
        let snapshotter = &self.view.snapshotter;
        if index >= self.view.snapshots.len() {
            let missing = Error::new(Kind::NotFound, "copy from", &**snapshotter);
            return Err(missing.with_source("it does not have the layer"));
        }
        Ok(LayerCopy {
            chain: Arc::clone(&self.view),
            index,
        })
    }

    /// Removes the view. If that fails, it goes with the lease.
    pub(crate) async fn end(&self, backend: &Backend) {
        let snapshotter = backend.snapshotter(&self.view.snapshotter);
        if let Err(error) = undo(|| snapshotter.remove(&backend.scope, &self.key)).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "the view of another snapshotter goes with the lease");
        }
    }
}

/// Returns the name of the snapshotter that a copied layer was taken from at first.
pub(crate) fn origin(copy: &LayerCopy) -> &str {
    let snapshot = copy.chain.snapshots.get(copy.index);
    let label = snapshot.and_then(|snapshot| snapshot.labels.get(labels::COPIED_FROM));
    label.map_or(&*copy.chain.snapshotter, String::as_str)
}

/// Returns the committed snapshots of the chain on a snapshotter, from the base to the highest.
pub(crate) async fn committed(
    backend: &Backend,
    plan: &Plan,
    snapshotter: &str,
) -> Result<Vec<SnapshotInfo>, Error> {
    let snapshotter = backend.snapshotter(snapshotter);
    let find = async |chain_id: &ChainId| backend.committed(&*snapshotter, chain_id).await;
    let mut found = Vec::new();
    // The parents of a committed snapshot exist.
    for layer in plan.layers.iter().rev() {
        match find(&layer.chain_id).await? {
            Some(info) => found.push(info),
            None if found.is_empty() => {}
            None => return Ok(Vec::new()),
        }
    }
    found.reverse();
    Ok(found)
}
