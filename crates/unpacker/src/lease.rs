// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What a job holds on the node: its lease, which another succeeds before it expires, and the
//! active snapshot it is filling.

use std::future::Future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use resnap_core::{
    Digest, Error, Kind, Labels, LeaseId, Resource, Result, Scope, SnapshotKey, labels,
};
use tokio::sync::{RwLock, RwLockReadGuard};

use crate::Plan;
use crate::engine::Shared;
use crate::locks::{Lock, unique};

/// On our leases: the image, for whoever looks at them. It tells our leases from others.
pub(crate) const IMAGE: &str = "resnap.io/image";
/// On our leases: the snapshotter.
pub(crate) const SNAPSHOTTER: &str = "resnap.io/snapshotter";
/// On our leases: the chain that is made under it, by its top.
pub(crate) const CHAIN_ID: &str = "resnap.io/chain-id";
/// On our leases: [`crate::locks::Locks::identity`] of the maker; only who shares it can tell
/// whether the maker is alive.
pub(crate) const LOCKS: &str = "resnap.io/locks";

/// How long undoing may take: its own time, as the caller's may be over.
const CLEANUP_TIME: Duration = Duration::from_secs(10);

/// Pauses before undoing is tried again: enough for a new connection, and little for who finds
/// that the backend is gone.
const RECONNECT: [Duration; 3] = [
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(200),
];

/// The lock that whoever made the lease holds for as long as it works under it.
pub(crate) fn lock_name(lease: &LeaseId) -> String {
    format!("lease-{}", lease.0)
}

/// A lease, and the scope of calls under it.
#[derive(Debug)]
struct Lease {
    id: LeaseId,
    scope: Scope,
    /// Held while we work under it.
    _lock: Lock,
}

/// What one job holds.
#[derive(Debug)]
pub(crate) struct Tenure {
    shared: Shared,
    target: Digest,
    snapshotter: String,
    labels: Labels,
    lease: RwLock<Option<Lease>>,
    active: Mutex<Option<SnapshotKey>>,
    /// Whether there is something that only the lease keeps.
    made: AtomicBool,
}

/// What could not be removed, and why.
#[derive(Debug)]
pub(crate) enum Left {
    /// The active snapshot.
    Snapshot(SnapshotKey, Error),
    /// The lease.
    Lease(Error),
}

impl Tenure {
    pub(crate) fn new(shared: Shared, plan: &Plan, title: &str, snapshotter: &str) -> Self {
        // A long name may not fit into a label, and is only told.
        let image = title[..title.floor_char_boundary(2048)].to_owned();
        let mut labels = Labels::from([
            (IMAGE.to_owned(), image),
            (SNAPSHOTTER.to_owned(), snapshotter.to_owned()),
            (LOCKS.to_owned(), shared.locks.identity().to_owned()),
        ]);
        if let Some(top) = plan.top() {
            labels.insert(CHAIN_ID.to_owned(), top.to_string());
        }
        Self {
            shared,
            target: plan.image.target.digest.clone(),
            snapshotter: snapshotter.to_owned(),
            labels,
            lease: RwLock::default(),
            active: Mutex::default(),
            made: AtomicBool::new(false),
        }
    }

    /// Makes the lease and puts the image's target on it. What was made is known to
    /// [`Tenure::end`] even if this fails.
    pub(crate) async fn begin(&self) -> Result<()> {
        let mut current = self.lease.write().await;
        let lease = current.insert(self.lease().await?);
        self.create(lease).await?;
        let target = Resource::Content(self.target.clone());
        let leases = &self.shared.ports.leases;
        leases.add_resource(&lease.scope, &lease.id, &target).await
    }

    /// The scope of calls under the lease, which is not succeeded while this is held.
    pub(crate) async fn scope(&self) -> Result<RwLockReadGuard<'_, Scope>> {
        let lease = self.lease.read().await;
        RwLockReadGuard::try_map(lease, |lease| lease.as_ref().map(|lease| &lease.scope))
            .map_err(|_| Error::new(Kind::Internal, "work under", "a lease that was never made"))
    }

    /// Adds a snapshot that somebody else made. It may have been collected before: look again.
    pub(crate) async fn keep(&self, key: SnapshotKey) -> Result<()> {
        let scope = self.scope().await?;
        let Some(lease) = &scope.lease else {
            return Ok(());
        };
        let snapshotter = self.snapshotter.clone();
        let resource = Resource::Snapshot { snapshotter, key };
        let leases = &self.shared.ports.leases;
        leases.add_resource(&scope, lease, &resource).await
    }

    /// Notes the active snapshot that is made or may be made from now on.
    pub(crate) fn fill(&self, key: &SnapshotKey) {
        *self.active() = Some(key.clone());
    }

    /// Notes that the active snapshot is none any more.
    pub(crate) fn filled(&self) {
        *self.active() = None;
    }

    /// Notes that something is worth keeping if the job fails.
    pub(crate) fn made(&self) {
        self.made.store(true, Ordering::Relaxed);
    }

    /// Removes the active snapshot, if there is one.
    pub(crate) async fn remove_active(&self) -> Result<(), Left> {
        let Some(key) = self.active().clone() else {
            return Ok(());
        };
        let scope = &self.shared.scope;
        let snapshotters = &self.shared.ports.snapshotters;
        let snapshotter = snapshotters.snapshotter(&self.snapshotter);
        match undo(|| snapshotter.remove(scope, &key)).await {
            Err(error) => Err(Left::Snapshot(key, error)),
            Ok(()) => {
                self.filled();
                Ok(())
            }
        }
    }

    /// Makes another lease with all that this one keeps, and ends this one. A lease cannot be
    /// prolonged.
    pub(crate) async fn succeed(&self) -> Result<()> {
        let leases = &self.shared.ports.leases;
        let mut current = self.lease.write().await;
        let Some(old) = &*current else {
            return Ok(());
        };
        let new = self.lease().await?;
        let succession = async {
            self.create(&new).await?;
            for resource in leases.resources(&old.scope, &old.id).await? {
                leases.add_resource(&new.scope, &new.id, &resource).await?;
            }
            Ok(())
        };
        if let Err(error) = succession.await {
            // One that stays expires.
            let _ = delete(&self.shared, &new).await;
            return Err(error);
        }
        let old = current.replace(new);
        drop(current);
        match old {
            Some(old) => delete(&self.shared, &old).await,
            None => Ok(()),
        }
    }

    /// Removes what the job must not leave. `keep` is for a job that failed: its layers stay under
    /// the lease until that expires.
    pub(crate) async fn end(&self, keep: bool) -> Result<(), Left> {
        let removed = self.remove_active().await;
        // Taking the lease out gives its lock back, so that the next job may take it over.
        let Some(lease) = self.lease.write().await.take() else {
            return removed;
        };
        if removed.is_err() || keep && self.made.load(Ordering::Relaxed) {
            return removed;
        }
        delete(&self.shared, &lease).await.map_err(Left::Lease)
    }

    /// A lease's name, locked.
    async fn lease(&self) -> Result<Lease> {
        let id = LeaseId(format!("resnap-{}", unique()).into());
        let purpose = format!("{} on {}", self.labels[IMAGE], self.snapshotter);
        let name = lock_name(&id);
        // Nobody else has this name; but who looks for files of the dead may hold it for a moment.
        let lock = self.shared.locks.lock(&name, &purpose, drop).await;
        Ok(Lease {
            scope: self.shared.scope.leased(id.clone()),
            id,
            _lock: lock.map_err(|error| {
                Error::new(Kind::FailedPrecondition, "lock", name).with_source(error)
            })?,
        })
    }

    async fn create(&self, lease: &Lease) -> Result<()> {
        let expiry = self.shared.clock.now() + self.shared.lifetime;
        let expiry = humantime::format_rfc3339_seconds(expiry).to_string();
        let mut labels = self.labels.clone();
        labels.insert(labels::GC_EXPIRE.to_owned(), expiry);
        let leases = &self.shared.ports.leases;
        leases.create(&self.shared.scope, &lease.id, &labels).await
    }

    fn active(&self) -> MutexGuard<'_, Option<SnapshotKey>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends a lease; one that has ended already is fine.
async fn delete(shared: &Shared, lease: &Lease) -> Result<()> {
    undo(|| shared.ports.leases.delete(&shared.scope, &lease.id)).await
}

/// Removes something; that it is not there is fine.
///
/// A connection that broke under the call before takes along those that come until its end is
/// noticed: one loss must not cost both the work and the undoing.
pub(crate) async fn undo<F>(mut remove: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let removed = in_time(async {
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

/// Undoing that takes too long is given up; the lease's expiry does it then.
pub(crate) async fn in_time<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(CLEANUP_TIME, work)
        .await
        .unwrap_or_else(|_| {
            let limit = format!("{CLEANUP_TIME:?}");
            Err(Error::new(Kind::DeadlineExceeded, "clean up in", limit))
        })
}
