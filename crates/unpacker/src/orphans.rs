// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Orphaned leases: those whose owner was killed, lost the backend, or failed with committed layers
//! worth keeping.

use std::time::{Duration, SystemTime};

use resnap_core::labels::GC_EXPIRE;
use resnap_core::{ChainId, Error, Kind, LeaseId, LeaseInfo, Resource};
use serde::Serialize;

use crate::UnpackError;
use crate::lease::{
    CHAIN_ID, IMAGE, LOCKS, LeaseKeeper, SNAPSHOTTER, lock_name, undo, within_cleanup_time,
};

/// The pauses in seconds between retries of clean-up while the backend does not answer.
const PAUSES: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// A lease made by an engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LeaseStatus {
    /// The lease's ID.
    pub lease: String,
    /// The image that is unpacked under it.
    pub image: Option<String>,
    /// The snapshotter.
    pub snapshotter: Option<String>,
    /// The top layer's snapshot.
    pub chain_id: Option<String>,
    /// The owner.
    pub owner: Owner,
    /// When the lease was created.
    #[serde(serialize_with = "crate::clock::rfc3339")]
    pub created: SystemTime,
    /// When the lease expires.
    pub expires: Option<String>,
}

/// The owner of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Owner {
    /// The owner is running; the text identifies it.
    Alive(String),
    /// The owner has ended, or has failed and kept the lease for the next attempt.
    Orphaned,
    /// The owner uses another runtime directory, so its state is unknown.
    Elsewhere,
}

/// Returns the leases that engines made in the namespace, the oldest first.
pub(crate) async fn leases(keeper: &LeaseKeeper) -> Result<Vec<LeaseStatus>, UnpackError> {
    let backend = &keeper.backend;
    let mut leases = backend
        .ports
        .leases
        .list(&backend.scope, Some(IMAGE))
        .await?;
    leases.sort_by(|left, right| (left.created, &left.id.0).cmp(&(right.created, &right.id.0)));
    let leases = leases.into_iter();
    Ok(leases.map(|lease| status(keeper, lease)).collect())
}

/// Releases all orphaned leases, and returns them.
pub(crate) async fn sweep(keeper: &LeaseKeeper) -> Result<Vec<LeaseStatus>, UnpackError> {
    let mut leases = leases(keeper).await?;
    leases.retain(|lease| lease.owner == Owner::Orphaned);
    for lease in &leases {
        release(keeper, lease, true).await?;
    }
    sweep_locks(keeper);
    Ok(leases)
}

/// Releases what orphaned leases keep without need: active snapshots, leases without a layer, and
/// leases under which this chain was made, which the caller keeps now. Returns whether one of the
/// latter kept a layer. Failures are left for the next call.
pub(crate) async fn take_over(keeper: &LeaseKeeper, snapshotter: &str, chain_id: &ChainId) -> bool {
    let kept_layers = release_orphans(keeper, Some((snapshotter, chain_id))).await;
    sweep_locks(keeper);
    kept_layers.unwrap_or_else(|error| {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, "orphaned leases stay until the next job");
        // It is unknown how far the release came.
        true
    })
}

/// Cleans up behind a job of this engine once the backend answers again. Leases under which the
/// chain `made` was made keep nothing that is not kept otherwise.
pub(crate) async fn retry_cleanup(keeper: &LeaseKeeper, made: Option<(&str, &ChainId)>) {
    for pause in PAUSES {
        tokio::time::sleep(Duration::from_secs(pause)).await;
        if release_orphans(keeper, made).await.is_ok() {
            return;
        }
    }
}

async fn release_orphans(
    keeper: &LeaseKeeper,
    made: Option<(&str, &ChainId)>,
) -> Result<bool, UnpackError> {
    let mut kept_layers = false;
    for lease in leases(keeper).await? {
        if lease.owner != Owner::Orphaned {
            continue;
        }
        let purpose = lease.snapshotter.as_deref().zip(lease.chain_id.as_deref());
        let made = made.map(|(snapshotter, chain_id)| (snapshotter, chain_id.as_str()));
        let with_layers = made.is_some() && purpose == made;
        kept_layers |= release(keeper, &lease, with_layers).await? && with_layers;
    }
    Ok(kept_layers)
}

/// Removes the active snapshots of an orphaned lease, and the lease unless it keeps a layer and is
/// not released `with_layers`. Returns whether it keeps one, or did.
async fn release(
    keeper: &LeaseKeeper,
    lease: &LeaseStatus,
    with_layers: bool,
) -> Result<bool, Error> {
    let (backend, locks) = (&keeper.backend, &keeper.locks);
    let id = LeaseId(lease.lease.as_str().into());
    // Not the owner's lock, which would make the owner look alive to others.
    let (name, purpose) = (format!("cleanup-{}", id.0), "clean-up");
    let lock = if with_layers {
        // The holder may release the lease without its layers.
        locks.lock(&name, purpose, drop).await.map(Ok)
    } else {
        locks.try_lock(&name, purpose)
    };
    let lock = lock
        .map_err(|error| Error::new(Kind::FailedPrecondition, "lock", &*id.0).with_source(error))?;
    let Ok(_lock) = lock else {
        return Ok(false);
    };
    let leases = &backend.ports.leases;
    let resources = match within_cleanup_time(leases.resources(&backend.scope, &id)).await {
        Err(error) if error.is_not_found() => return Ok(false),
        resources => resources?,
    };
    let mut keeps = false;
    for resource in resources {
        let Resource::Snapshot { snapshotter, key } = resource else {
            continue;
        };
        let snapshotter = backend.snapshotter(&snapshotter);
        if !key.is_extraction() {
            // A lease may list snapshots that never existed or are gone.
            let found = within_cleanup_time(snapshotter.stat(&backend.scope, &key)).await;
            keeps |= !found.is_err_and(|error| error.is_not_found());
            continue;
        }
        undo(|| snapshotter.remove(&backend.scope, &key)).await?;
    }
    if keeps && !with_layers {
        return Ok(true);
    }
    undo(|| leases.delete(&backend.scope, &id)).await?;
    Ok(keeps)
}

fn status(keeper: &LeaseKeeper, lease: LeaseInfo) -> LeaseStatus {
    let LeaseInfo {
        id,
        created,
        mut labels,
        ..
    } = lease;
    let owner = if labels.get(LOCKS).map(String::as_str) == Some(keeper.locks.identity()) {
        match keeper.locks.holder(&lock_name(&id)) {
            Ok(None) => Owner::Orphaned,
            Ok(Some(holder)) => Owner::Alive(holder),
            // A lease is released only if its owner is known to have ended.
            Err(error) => Owner::Alive(format!("not known: {error}")),
        }
    } else {
        Owner::Elsewhere
    };
    LeaseStatus {
        lease: id.0.to_string(),
        image: labels.remove(IMAGE),
        snapshotter: labels.remove(SNAPSHOTTER),
        chain_id: labels.remove(CHAIN_ID),
        owner,
        created,
        expires: labels.remove(GC_EXPIRE),
    }
}

fn sweep_locks(keeper: &LeaseKeeper) {
    if let Err(error) = keeper.locks.sweep() {
        let error: &dyn std::error::Error = &error;
        tracing::warn!(
            error,
            "lock files of ended processes stay in the runtime directory"
        );
    }
}
