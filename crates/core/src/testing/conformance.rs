// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Conformance suites: the contracts of the ports that the engine relies on.
//!
//! A suite panics on a violation, like a test. [`all`] runs every suite. Each uses snapshots and leases
//! of its own and holds them by a lease, so the suites may run on a backend that does other work and
//! collects garbage at any time.

// Test code: it fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod content;
mod garbage;
mod given;
mod leases;
mod snapshots;

pub use content::{applier, content, images, ingests};
pub use garbage::garbage;
pub use given::Given;
pub use leases::leases;
pub use snapshots::snapshots;

use crate::Scope;

/// Runs all suites.
pub async fn all(given: &Given) {
    images(given).await;
    content(given).await;
    ingests(given).await;
    introspection(given).await;
    containers(given).await;
    applier(given).await;
    snapshots(given).await;
    leases(given).await;
    garbage(given).await;
}

/// Introspection: the identity of the backend, and its snapshotters by name.
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

/// Containers: the containers of one namespace.
pub async fn containers(given: &Given) {
    let containers = &given.ports.containers;
    let all = containers.list(&given.scope).await.unwrap();
    assert_eq!(all, std::slice::from_ref(&given.container));
    let elsewhere = Scope::new("conformance-elsewhere");
    assert_eq!(containers.list(&elsewhere).await.unwrap(), []);
}
