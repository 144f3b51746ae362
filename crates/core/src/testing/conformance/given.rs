// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The backend under test, and what the suites do to it.

use std::fmt::Debug;
use std::sync::Arc;

use crate::{
    ChainId, Container, Descriptor, DiffId, Digest, Image, Kind, Labels, LeaseId, Mount, Ports,
    Resource, Result, Scope, SnapshotKey, SnapshotKind, Snapshotter,
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

impl Given {
    pub(super) fn snapshotter(&self) -> Arc<dyn Snapshotter> {
        self.ports.snapshotters.snapshotter(&self.snapshotter)
    }

    /// A new lease without expiry, and the scope under it.
    pub(super) async fn lease(&self, name: &str) -> (LeaseId, Scope) {
        self.lease_with(name, &Labels::new()).await
    }

    pub(super) async fn lease_with(&self, name: &str, labels: &Labels) -> (LeaseId, Scope) {
        let lease = LeaseId(name.into());
        let created = self.ports.leases.create(&self.scope, &lease, labels);
        created.await.unwrap();
        let scope = self.scope.leased(lease.clone());
        (lease, scope)
    }

    pub(super) async fn end_lease(&self, lease: &LeaseId) {
        self.ports.leases.delete(&self.scope, lease).await.unwrap();
    }

    pub(super) async fn prepare(
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

    pub(super) async fn commit(&self, scope: &Scope, name: &str) -> Result<()> {
        self.snapshotter()
            .commit(scope, &chain(name), &key(name), &Labels::new())
            .await
    }

    pub(super) async fn remove(&self, scope: &Scope, key: &SnapshotKey) -> Result<()> {
        self.snapshotter().remove(scope, key).await
    }

    /// Prepares and commits an empty layer.
    pub(super) async fn make(&self, scope: &Scope, name: &str, parent: Option<&ChainId>) {
        self.prepare(scope, name, parent).await.unwrap();
        self.commit(scope, name).await.unwrap();
    }

    pub(super) async fn kind(&self, key: &SnapshotKey) -> Option<SnapshotKind> {
        match self.snapshotter().stat(&self.scope, key).await {
            Ok(info) => Some(info.kind),
            Err(error) if error.is_not_found() => None,
            Err(error) => panic!("stat {key}: {error:?}"),
        }
    }

    pub(super) async fn is_committed(&self, name: &str) -> bool {
        self.kind(&SnapshotKey::from(&chain(name))).await == Some(SnapshotKind::Committed)
    }

    pub(super) async fn resources(&self, lease: &LeaseId) -> Vec<Resource> {
        let resources = self.ports.leases.resources(&self.scope, lease).await;
        let mut resources = resources.unwrap();
        resources.sort();
        resources
    }
}

/// The key in which the layer of this name is made.
pub(super) fn key(name: &str) -> SnapshotKey {
    SnapshotKey::extraction("conformance", &chain(name))
}

/// The chain ID under which the layer of this name is committed.
pub(super) fn chain(name: &str) -> ChainId {
    ChainId::of(None, &DiffId(Digest::sha256(name.as_bytes())))
}

pub(super) fn nowhere() -> Digest {
    Digest::sha256(b"a blob that is nowhere")
}

pub(super) fn labels<const N: usize>(labels: [(&str, &str); N]) -> Labels {
    labels
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

#[track_caller]
pub(super) fn assert_kind<T: Debug>(result: Result<T>, kind: Kind) {
    match result {
        Err(error) => assert_eq!(error.kind(), kind, "{error:?}"),
        Ok(answer) => panic!("want {kind:?}, got {answer:?}"),
    }
}
