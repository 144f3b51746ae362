// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The lease of a job and the active snapshot it writes to.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use resnap_core::{
    ChainId, Digest, Error, Kind, Labels, LeaseId, Resource, Result, Scope, SnapshotKey, labels,
};
use tokio::sync::{RwLock, RwLockReadGuard};
use uuid::Uuid;

use crate::backend::Backend;
use crate::clock::Clock;
use crate::locks::{Lock, Locks};

/// The lease label with the image. It marks a lease as one of resnap's.
pub(crate) const IMAGE: &str = "resnap.io/image";
/// The lease label with the snapshotter.
pub(crate) const SNAPSHOTTER: &str = "resnap.io/snapshotter";
/// The lease label with the top chain ID that is made under the lease.
pub(crate) const CHAIN_ID: &str = "resnap.io/chain-id";
/// The lease label with the owner's [`Locks::identity`]. Only an engine with the same identity can
/// see whether the owner is still running.
pub(crate) const LOCKS: &str = "resnap.io/locks";

/// The time limit for cleaning up. It is independent of the caller's deadline, which may be over.
const CLEANUP_TIME: Duration = Duration::from_secs(10);

/// The pauses before clean-up is retried: long enough for a new connection, and short for a caller
/// that finds the backend gone.
const RECONNECT: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
];

/// Returns the name of the lock that the owner of a lease holds while it works under it.
pub(crate) fn lock_name(lease: &LeaseId) -> String {
    format!("lease-{}", lease.0)
}

/// The means to create, renew and delete leases.
#[derive(Debug)]
pub(crate) struct LeaseKeeper {
    pub(crate) backend: Arc<Backend>,
    pub(crate) locks: Locks,
    pub(crate) clock: Clock,
    pub(crate) lifetime: Duration,
}

/// A lease, and the scope of calls under it.
#[derive(Debug)]
struct Lease {
    id: LeaseId,
    scope: Scope,
    /// Held while the job works under the lease.
    _lock: Lock,
}

/// The lease of one job, and its active snapshot.
#[derive(Debug)]
pub(crate) struct JobLease {
    keeper: Arc<LeaseKeeper>,
    target: Digest,
    snapshotter: String,
    labels: Labels,
    lease: RwLock<Option<Lease>>,
    active: Mutex<Option<SnapshotKey>>,
    /// Whether a committed layer is kept by the lease only.
    keep_on_failure: AtomicBool,
}

/// Something that could not be removed, and why.
#[derive(Debug)]
pub(crate) enum CleanupError {
    /// The active snapshot.
    Snapshot(SnapshotKey, Error),
    /// The lease.
    Lease(Error),
}

impl CleanupError {
    pub(crate) fn into_source(self) -> Error {
        match self {
            Self::Snapshot(_, error) | Self::Lease(error) => error,
        }
    }
}

impl LeaseKeeper {
    /// Reserves the name of a new lease and locks it.
    async fn reserve(&self, purpose: &str) -> Result<Lease> {
        let id = LeaseId(format!("resnap-{}", Uuid::new_v4().simple()).into());
        let name = lock_name(&id);
        // The name is new, but a sweep of lock files may hold the lock for a moment.
        let lock = self.locks.lock(&name, purpose, drop).await;
        Ok(Lease {
            scope: self.backend.scope.leased(id.clone()),
            id,
            _lock: lock.map_err(|error| {
                Error::new(Kind::FailedPrecondition, "lock", name).with_source(error)
            })?,
        })
    }

    async fn create(&self, lease: &Lease, mut labels: Labels) -> Result<()> {
        let expiry = self.clock.now() + self.lifetime;
        let expiry = humantime::format_rfc3339_seconds(expiry).to_string();
        labels.insert(labels::GC_EXPIRE.to_owned(), expiry);
        let leases = &self.backend.ports.leases;
        leases.create(&self.backend.scope, &lease.id, &labels).await
    }

    /// Deletes a lease; one that is already gone is not an error.
    async fn delete(&self, lease: &Lease) -> Result<()> {
        let (leases, scope) = (&self.backend.ports.leases, &self.backend.scope);
        undo(|| leases.delete(scope, &lease.id)).await
    }
}

impl JobLease {
    pub(crate) fn new(
        keeper: Arc<LeaseKeeper>,
        target: &Digest,
        top: Option<&ChainId>,
        title: &str,
        snapshotter: &str,
    ) -> Self {
        // A long name may exceed the label limit; the label is for display only.
        let image = title[..title.floor_char_boundary(2048)].to_owned();
        let mut labels = Labels::from([
            (IMAGE.to_owned(), image),
            (SNAPSHOTTER.to_owned(), snapshotter.to_owned()),
            (LOCKS.to_owned(), keeper.locks.identity().to_owned()),
        ]);
        if let Some(top) = top {
            labels.insert(CHAIN_ID.to_owned(), top.to_string());
        }
        Self {
            keeper,
            target: target.clone(),
            snapshotter: snapshotter.to_owned(),
            labels,
            lease: RwLock::default(),
            active: Mutex::default(),
            keep_on_failure: AtomicBool::new(false),
        }
    }

    /// Creates the lease, unless there is one, and adds the image's target to it. [`JobLease::end`]
    /// cleans up even if this fails halfway.
    pub(crate) async fn begin(&self) -> Result<()> {
        let mut current = self.lease.write().await;
        if current.is_some() {
            return Ok(());
        }
        let lease = current.insert(self.reserve().await?);
        self.keeper.create(lease, self.labels.clone()).await?;
        let target = Resource::Content(self.target.clone());
        let leases = &self.keeper.backend.ports.leases;
        leases.add_resource(&lease.scope, &lease.id, &target).await
    }

    async fn reserve(&self) -> Result<Lease> {
        let purpose = format!("{} on {}", self.labels[IMAGE], self.snapshotter);
        self.keeper.reserve(&purpose).await
    }

    /// Returns the scope of calls under the lease. The lease is not renewed while this is held.
    pub(crate) async fn scope(&self) -> Result<RwLockReadGuard<'_, Scope>> {
        let lease = self.lease.read().await;
        RwLockReadGuard::try_map(lease, |lease| lease.as_ref().map(|lease| &lease.scope))
            .map_err(|_| Error::new(Kind::Internal, "work under", "a lease that was never made"))
    }

    /// Adds a snapshot that another client made to the lease. It may have been garbage collected
    /// before, so the caller has to look it up again.
    pub(crate) async fn add_snapshot(&self, key: SnapshotKey) -> Result<()> {
        let snapshotter = self.snapshotter.clone();
        self.add(&Resource::Snapshot { snapshotter, key }).await
    }

    /// Adds a resource that another client made to the lease. It may have been garbage collected
    /// before, so the caller has to look it up again.
    pub(crate) async fn add(&self, resource: &Resource) -> Result<()> {
        let scope = self.scope().await?;
        let Some(lease) = &scope.lease else {
            return Ok(());
        };
        let leases = &self.keeper.backend.ports.leases;
        leases.add_resource(&scope, lease, resource).await
    }

    /// Records the key of the active snapshot before Prepare is sent: if the reply is lost,
    /// [`JobLease::end`] still removes the snapshot.
    pub(crate) fn set_active(&self, key: &SnapshotKey) {
        *self.active() = Some(key.clone());
    }

    /// Records that there is no active snapshot any more.
    pub(crate) fn clear_active(&self) {
        *self.active() = None;
    }

    /// Records that the lease keeps a committed layer, and must stay if the job fails.
    pub(crate) fn keep_on_failure(&self) {
        self.keep_on_failure.store(true, Ordering::Relaxed);
    }

    /// Removes the active snapshot, if there is one.
    pub(crate) async fn remove_active(&self) -> std::result::Result<(), CleanupError> {
        let Some(key) = self.active().clone() else {
            return Ok(());
        };
        let backend = &self.keeper.backend;
        let snapshotter = backend.snapshotter(&self.snapshotter);
        match undo(|| snapshotter.remove(&backend.scope, &key)).await {
            Err(error) => Err(CleanupError::Snapshot(key, error)),
            Ok(()) => {
                self.clear_active();
                Ok(())
            }
        }
    }

    /// Replaces the lease by a new one with the same resources, since the expiry of a lease cannot
    /// be changed.
    pub(crate) async fn renew(&self) -> Result<()> {
        let leases = &self.keeper.backend.ports.leases;
        let mut current = self.lease.write().await;
        let Some(old) = &*current else {
            return Ok(());
        };
        let new = self.reserve().await?;
        let copied = async {
            self.keeper.create(&new, self.labels.clone()).await?;
            for resource in leases.resources(&old.scope, &old.id).await? {
                leases.add_resource(&new.scope, &new.id, &resource).await?;
            }
            Ok(())
        };
        if let Err(error) = copied.await {
            // If this fails too, the new lease expires.
            let _ = self.keeper.delete(&new).await;
            return Err(error);
        }
        let old = current.replace(new);
        drop(current);
        match old {
            Some(old) => self.keeper.delete(&old).await,
            None => Ok(()),
        }
    }

    /// Removes the active snapshot and the lease. If the job `failed`, a lease that keeps committed
    /// layers stays until it expires.
    pub(crate) async fn end(&self, failed: bool) -> std::result::Result<(), CleanupError> {
        let removed = self.remove_active().await;
        // Taking the lease releases its lock, so that the next job can take the lease over.
        let Some(lease) = self.lease.write().await.take() else {
            return removed;
        };
        if removed.is_err() || failed && self.keep_on_failure.load(Ordering::Relaxed) {
            return removed;
        }
        let deleted = self.keeper.delete(&lease).await;
        deleted.map_err(CleanupError::Lease)
    }

    fn active(&self) -> MutexGuard<'_, Option<SnapshotKey>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes something within the clean-up time; it is not an error if it does not exist.
///
/// A connection that breaks during one call fails the following calls until the loss is noticed:
/// one loss must not cost both the work and its clean-up.
pub(crate) async fn undo<F>(mut remove: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let removed = within_cleanup_time(async {
        for pause in RECONNECT {
            match remove().await {
                Err(error) if error.kind() == Kind::Unavailable => tokio::time::sleep(pause).await,
                removed => return removed,
            }
        }
        remove().await
    });
    match removed.await {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Fails if clean-up takes too long; the lease's expiry completes it then.
pub(crate) async fn within_cleanup_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(CLEANUP_TIME, work)
        .await
        .unwrap_or_else(|_| {
            let limit = format!("{CLEANUP_TIME:?}");
            Err(Error::new(Kind::DeadlineExceeded, "clean up in", limit))
        })
}
