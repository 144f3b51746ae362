// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that containerd has a record of, and their snapshotter does not have. containerd then answers that the
//! layer exists if it is to be made, and that it does not if it is looked for (nydus-snapshotter issue 680).

use resnap_core::{ChainId, Digest, Error, Labels, Scope, SnapshotKey, labels};

use crate::backend::Backend;
use crate::chain::Chain;
use crate::repair::{remove, require_unused};
use crate::{EngineEvent, UnpackError};

/// Returns whether containerd has a record of a snapshot that the snapshotter does not have. Nothing is changed.
pub(crate) async fn is_lost(
    backend: &Backend,
    scope: &Scope,
    snapshotter: &str,
    snapshot: &SnapshotKey,
) -> Result<bool, Error> {
    let snapshotter = backend.snapshotter(snapshotter);
    match snapshotter.stat(scope, snapshot).await {
        Err(error) if error.is_not_found() => {}
        found => return found.map(|_| false),
    }
    // containerd looks for the record first, and then for the parent, before it asks the snapshotter
    // (`core/metadata/snapshot.go`).
    let parent = ChainId::from_trusted(Digest::sha256(b"a parent that does not exist"));
    let labels = Labels::from([(labels::SNAPSHOT_REF.to_owned(), snapshot.to_string())]);
    let key = SnapshotKey::extraction("look", &parent);
    let prepared = snapshotter.prepare(scope, &key, Some(&parent), &labels);
    match prepared.await {
        Err(error) if error.is_already_exists() => Ok(true),
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error),
        // The backend needs no parent.
        Ok(_) => snapshotter.remove(scope, &key).await.map(|()| false),
    }
}

/// Removes the records of layers that the snapshotter does not have, and of those above, so that they can be made
/// again. Nothing is changed if one of them is in use.
pub(crate) async fn remove_lost(chain: &Chain) -> Result<(), UnpackError> {
    let layers = chain.layers();
    let mut found = Vec::with_capacity(layers.len());
    for layer in layers {
        found.push(chain.find(layer).await?.is_some());
    }
    let Some(lowest) = found.iter().position(|found| !found) else {
        return Ok(());
    };
    let failed = |error| chain.failed_layer(lowest, error);
    chain.lease.begin().await.map_err(failed)?;
    let scope = chain.lease.scope().await.map_err(failed)?.clone();
    // A record has a parent with a record.
    let key = SnapshotKey::from(&layers[lowest].chain_id);
    let is_lost = is_lost(&chain.backend, &scope, &chain.job.spec.snapshotter, &key);
    if !is_lost.await.map_err(failed)? {
        return Ok(());
    }
    for index in (lowest..layers.len()).filter(|index| found[*index]) {
        require_unused(chain, index).await?;
    }
    for index in (lowest..layers.len()).rev() {
        let _lock = chain.lock(index).await?;
        if chain.find(&layers[lowest]).await?.is_some() {
            // Another repair was faster.
            return Ok(());
        }
        if let Some(obstacle) = remove(chain, index).await? {
            return Err(obstacle);
        }
    }
    chain.job.notify_observer(&EngineEvent::Repaired);
    Ok(())
}
