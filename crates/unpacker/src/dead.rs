// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Leases of those who ended without ending them: killed, cut off from the backend, or failed with
//! layers worth keeping.

use std::time::{Duration, SystemTime};

use resnap_core::labels::GC_EXPIRE;
use resnap_core::{ChainId, Error, Kind, LeaseId, LeaseInfo, Resource};
use serde::Serialize;

use crate::UnpackError;
use crate::engine::Inner;
use crate::lease::{CHAIN_ID, IMAGE, LOCKS, SNAPSHOTTER, in_time, lock_name, undo};

/// Pauses between tries to clean up behind a backend that does not answer.
const PAUSES: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// A lease that an engine made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseStatus {
    /// Its name.
    pub lease: String,
    /// The image that is made under it.
    pub image: Option<String>,
    /// The snapshotter.
    pub snapshotter: Option<String>,
    /// The top layer's snapshot.
    pub chain_id: Option<String>,
    /// Whether somebody works under it.
    pub owner: Owner,
    /// When it was made.
    #[serde(serialize_with = "rfc3339")]
    pub created: SystemTime,
    /// When it ends by itself.
    pub expires: Option<String>,
}

/// The maker of a lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// It works; this says who it is.
    Alive(String),
    /// It ended, or failed and kept the lease for the next try.
    Dead,
    /// It has another runtime directory, so nothing is known of it.
    Elsewhere,
}

pub(crate) fn rfc3339<S: serde::Serializer>(
    time: &SystemTime,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}

impl Inner {
    pub(crate) async fn leases(&self) -> Result<Vec<LeaseStatus>, UnpackError> {
        let mut leases = self.ports.leases.list(&self.scope, IMAGE).await?;
        leases.sort_by(|left, right| (left.created, &left.id.0).cmp(&(right.created, &right.id.0)));
        Ok(leases.into_iter().map(|lease| self.status(lease)).collect())
    }

    /// Ends all leases of the dead.
    pub(crate) async fn sweep(&self) -> Result<Vec<LeaseStatus>, UnpackError> {
        let mut leases = self.leases().await?;
        leases.retain(|lease| lease.owner == Owner::Dead);
        for lease in &leases {
            self.bury(lease, true).await?;
        }
        self.sweep_locks();
        Ok(leases)
    }

    /// Removes what nobody needs any more of the dead: their active snapshots, their leases if
    /// those keep no layer, and those under which this chain was made, which now is kept otherwise.
    /// Answers whether one of those kept a layer. What fails is left for the next time.
    pub(crate) async fn take_over(&self, snapshotter: &str, chain_id: &ChainId) -> bool {
        let inherited = self.bury_dead(Some((snapshotter, chain_id))).await;
        self.sweep_locks();
        inherited.unwrap_or_else(|error| {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "leases of dead jobs are left for the next time");
            // Nobody knows how far it came.
            true
        })
    }

    /// Cleans up behind this engine's jobs once the backend answers again; leases under which the
    /// chain `made` was made keep nothing any more that is not kept otherwise.
    pub(crate) async fn reap(&self, made: Option<(&str, &ChainId)>) {
        for pause in PAUSES {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            if self.bury_dead(made).await.is_ok() {
                return;
            }
        }
    }

    async fn bury_dead(&self, made: Option<(&str, &ChainId)>) -> Result<bool, UnpackError> {
        let mut inherited = false;
        for lease in self.leases().await? {
            if lease.owner != Owner::Dead {
                continue;
            }
            let was_for = lease.snapshotter.as_deref().zip(lease.chain_id.as_deref());
            let made = made.map(|(snapshotter, chain_id)| (snapshotter, chain_id.as_str()));
            let forgotten = made.is_some() && was_for == made;
            inherited |= self.bury(&lease, forgotten).await? && forgotten;
        }
        Ok(inherited)
    }

    /// Removes the active snapshots of a dead job, and its lease unless that keeps a layer that is
    /// not to be `forgotten`. Answers whether it keeps one, or did.
    async fn bury(&self, lease: &LeaseStatus, forgotten: bool) -> Result<bool, Error> {
        let id = LeaseId(lease.lease.as_str().into());
        // Not the maker's lock, which would make the dead look alive to others.
        let (name, purpose) = (format!("burial-{}", id.0), "clean-up");
        let lock = if forgotten {
            // Who is at it may leave what is to be forgotten.
            self.locks.lock(&name, purpose, drop).await.map(Ok)
        } else {
            self.locks.try_lock(&name, purpose)
        };
        let lock = lock.map_err(|error| {
            Error::new(Kind::FailedPrecondition, "lock", &*id.0).with_source(error)
        })?;
        let Ok(_lock) = lock else {
            return Ok(false);
        };
        let leases = &self.ports.leases;
        let resources = match in_time(leases.resources(&self.scope, &id)).await {
            Err(error) if error.is_not_found() => return Ok(false),
            resources => resources?,
        };
        let mut keeps = false;
        for resource in resources {
            let Resource::Snapshot { snapshotter, key } = resource else {
                continue;
            };
            let snapshotter = self.ports.snapshotters.snapshotter(&snapshotter);
            if !key.is_extraction() {
                // A lease may list what was never there, or is there no more.
                let found = in_time(snapshotter.stat(&self.scope, &key)).await;
                keeps |= !found.is_err_and(|error| error.is_not_found());
                continue;
            }
            undo(|| snapshotter.remove(&self.scope, &key)).await?;
        }
        if keeps && !forgotten {
            return Ok(true);
        }
        undo(|| leases.delete(&self.scope, &id)).await?;
        Ok(keeps)
    }

    fn status(&self, lease: LeaseInfo) -> LeaseStatus {
        let LeaseInfo {
            id,
            created,
            mut labels,
        } = lease;
        let owner = if labels.get(LOCKS).map(String::as_str) == Some(self.locks.identity()) {
            match self.locks.holder(&lock_name(&id)) {
                Ok(None) => Owner::Dead,
                Ok(Some(holder)) => Owner::Alive(holder),
                // Who cannot be told dead is not touched.
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

    fn sweep_locks(&self) {
        if let Err(error) = self.locks.sweep() {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(
                error,
                "files of dead processes stay in the runtime directory"
            );
        }
    }
}
