// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Leases as such.

use super::{Given, assert_kind, key, nowhere};
use crate::{Kind, Labels, LeaseId, Resource, SnapshotKind};

/// Leases: one of each name, adding without a check, and calls under one that is gone.
pub async fn leases(given: &Given) {
    let (leases, scope) = (&given.ports.leases, &given.scope);
    let (lease, leased) = given.lease("conformance-leases").await;
    let again = leases.create(scope, &lease, &Labels::new()).await;
    assert_kind(again, Kind::AlreadyExists);

    let things = [
        Resource::Content(nowhere()),
        Resource::Snapshot {
            snapshotter: given.snapshotter.clone(),
            key: key("nowhere"),
        },
    ];
    for thing in &things {
        let added = leases.add_resource(scope, &lease, thing).await;
        added.unwrap_or_else(|error| panic!("what is not there can be added: {error:?}"));
        let again = leases.add_resource(scope, &lease, thing).await;
        again.unwrap_or_else(|error| panic!("what is on it can be added: {error:?}"));
    }

    let (keeper, kept) = given.lease("conformance-keeper").await;
    given.prepare(&kept, "begun", None).await.unwrap();
    given.end_lease(&lease).await;
    assert_kind(leases.delete(scope, &lease).await, Kind::NotFound);
    for thing in &things {
        let added = leases.add_resource(scope, &lease, thing).await;
        assert_kind(added, Kind::NotFound);
    }
    assert_kind(given.prepare(&leased, "late", None).await, Kind::NotFound);
    assert_eq!(given.kind(&key("late")).await, None);
    assert_kind(given.commit(&leased, "begun").await, Kind::NotFound);
    let left = given.kind(&key("begun")).await;
    assert_eq!(left, Some(SnapshotKind::Active));
    let removed = given.remove(&leased, &key("begun")).await;
    removed.expect("undoing asks for no lease");
    given.end_lease(&keeper).await;

    let never = LeaseId("conformance-never".into());
    assert_kind(leases.delete(scope, &never).await, Kind::NotFound);
}
