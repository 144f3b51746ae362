// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What every backend does alike: the contracts of the ports, as the engine relies on them.
//!
//! A suite panics with what was wrong, as a test does. [`all`] runs every one of them; each keeps
//! to snapshots and leases of its own and keeps what it needs on a lease, so they may run on a
//! backend that does other work, and whose garbage others collect too.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod content;
mod garbage;
mod leases;
mod snapshots;

use std::fmt::Debug;

pub use content::{applier, content, images};
pub use garbage::garbage;
pub use leases::leases;
pub use snapshots::snapshots;

use crate::{
    ChainId, Container, Descriptor, DiffId, Digest, Image, Kind, Labels, LeaseId, Mount, Ports,
    Result, Scope, SnapshotKey, SnapshotKind, Snapshotter,
};

/// The backend under test, and what was put on it.
pub struct Given {
    /// The backend.
    pub ports: Ports,
    /// A namespace, without a lease. Nobody else works there.
    pub scope: Scope,
    /// A snapshotter that is not remote.
    pub snapshotter: String,
    /// An image in the namespace, all of it.
    pub image: Image,
    /// Its config.
    pub config: Digest,
    /// Its layers, the base first, and their diff IDs; at least two.
    pub layers: Vec<(Descriptor, DiffId)>,
    /// The only container in the namespace, on that snapshotter.
    pub container: Container,
    /// Collects the backend's garbage, and comes back when that is done.
    pub collect_garbage: Box<dyn Fn() + Send + Sync>,
}

impl Debug for Given {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Given")
            .field("scope", &self.scope)
            .field("snapshotter", &self.snapshotter)
            .field("image", &self.image)
            .finish_non_exhaustive()
    }
}

/// Runs all suites.
pub async fn all(given: &Given) {
    images(given).await;
    content(given).await;
    introspection(given).await;
    containers(given).await;
    applier(given).await;
    snapshots(given).await;
    leases(given).await;
    garbage(given).await;
}

/// Introspection: the snapshotters by name, and whose they are.
pub async fn introspection(given: &Given) {
    let introspection = &given.ports.introspection;
    let identity = introspection.identity().await.unwrap();
    assert!(!identity.is_empty(), "it has a name");
    let again = introspection.identity().await.unwrap();
    assert_eq!(again, identity, "and no other one a moment later");
    let all = introspection.snapshotters().await.unwrap();
    let names: Vec<_> = all.iter().map(|snapshotter| &snapshotter.name).collect();
    assert!(names.is_sorted(), "{names:?}");
    let ours = all
        .iter()
        .find(|snapshotter| snapshotter.name == given.snapshotter);
    let ours = ours.unwrap_or_else(|| panic!("{} is not in {names:?}", given.snapshotter));
    assert_eq!(ours.failure, None);
}

/// Containers: whose root file systems there are, in one namespace.
pub async fn containers(given: &Given) {
    let containers = &given.ports.containers;
    let all = containers.list(&given.scope).await.unwrap();
    assert_eq!(all, std::slice::from_ref(&given.container));
    let elsewhere = Scope::new("conformance-elsewhere");
    assert_eq!(containers.list(&elsewhere).await.unwrap(), []);
}

impl Given {
    fn snapshotter(&self) -> std::sync::Arc<dyn Snapshotter> {
        self.ports.snapshotters.snapshotter(&self.snapshotter)
    }

    /// A new lease without expiry, and the scope under it.
    async fn lease(&self, name: &str) -> (LeaseId, Scope) {
        self.lease_with(name, &Labels::new()).await
    }

    async fn lease_with(&self, name: &str, labels: &Labels) -> (LeaseId, Scope) {
        let lease = LeaseId(name.into());
        let created = self.ports.leases.create(&self.scope, &lease, labels);
        created.await.unwrap();
        let scope = self.scope.leased(lease.clone());
        (lease, scope)
    }

    async fn end_lease(&self, lease: &LeaseId) {
        self.ports.leases.delete(&self.scope, lease).await.unwrap();
    }

    async fn prepare(
        &self,
        scope: &Scope,
        name: &str,
        parent: Option<&ChainId>,
    ) -> Result<Vec<Mount>> {
        let (snapshotter, key) = (self.snapshotter(), key(name));
        snapshotter
            .prepare(scope, &key, parent, &Labels::new())
            .await
    }

    async fn commit(&self, scope: &Scope, name: &str) -> Result<()> {
        self.snapshotter()
            .commit(scope, &chain(name), &key(name), &Labels::new())
            .await
    }

    async fn remove(&self, scope: &Scope, key: &SnapshotKey) -> Result<()> {
        self.snapshotter().remove(scope, key).await
    }

    /// Prepares and commits an empty layer.
    async fn make(&self, scope: &Scope, name: &str, parent: Option<&ChainId>) {
        self.prepare(scope, name, parent).await.unwrap();
        self.commit(scope, name).await.unwrap();
    }

    async fn kind(&self, key: &SnapshotKey) -> Option<SnapshotKind> {
        match self.snapshotter().stat(&self.scope, key).await {
            Ok(info) => Some(info.kind),
            Err(error) if error.is_not_found() => None,
            Err(error) => panic!("stat {key}: {error:?}"),
        }
    }

    async fn is_committed(&self, name: &str) -> bool {
        self.kind(&SnapshotKey::from(&chain(name))).await == Some(SnapshotKind::Committed)
    }
}

/// The key in which the layer of this name is made.
fn key(name: &str) -> SnapshotKey {
    SnapshotKey::extraction("conformance", &chain(name))
}

/// The chain ID under which the layer of this name is committed.
fn chain(name: &str) -> ChainId {
    ChainId::of(None, &DiffId(Digest::sha256(name.as_bytes())))
}

fn nowhere() -> Digest {
    Digest::sha256(b"a blob that is nowhere")
}

fn labels<const N: usize>(labels: [(&str, &str); N]) -> Labels {
    labels
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[track_caller]
fn assert_kind<T: Debug>(result: Result<T>, kind: Kind) {
    match result {
        Err(error) => assert_eq!(error.kind(), kind, "{error:?}"),
        Ok(answer) => panic!("want {kind:?}, got {answer:?}"),
    }
}
