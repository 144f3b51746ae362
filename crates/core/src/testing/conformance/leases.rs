// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The rules of leases.

use std::time::{Duration, SystemTime};

use super::given::{Given, assert_kind, chain, key, labels, nowhere};
use crate::{Kind, Labels, LeaseId, Resource, Scope, SnapshotKey, SnapshotKind};

/// The label of the lease that is listed.
const LISTED: &str = "conformance.example.com/listed";

/// Leases: creation, deletion, listing and resources.
pub async fn leases(given: &Given) {
    changed(given).await;
    listed(given).await;
    resources(given).await;
}

/// Unique names, adding without a check, and calls under a lease that was deleted.
async fn changed(given: &Given) {
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

async fn listed(given: &Given) {
    let (leases, scope) = (&given.ports.leases, &given.scope);
    assert_eq!(leases.list(scope, Some(LISTED)).await.unwrap(), []);
    let ours = labels([(LISTED, "as such"), ("example.com/other", "too")]);
    let before = SystemTime::now();
    let (lease, _) = given.lease_with("conformance-listed", &ours).await;
    let others = labels([("example.com/other", LISTED)]);
    let (other, _) = given.lease_with("conformance-other", &others).await;
    let mut all = leases.list(scope, Some(LISTED)).await.unwrap();
    assert_eq!(all.len(), 1, "only those with the label: {all:?}");
    let info = all.remove(0);
    assert_eq!((&info.id, &info.labels), (&lease, &ours));
    // The backend may have another clock.
    let minute = Duration::from_secs(60);
    let around = before - minute..SystemTime::now() + minute;
    assert!(around.contains(&info.created), "{info:?}");
    let all = leases.list(scope, None).await.unwrap();
    for id in [&lease, &other] {
        assert!(all.iter().any(|lease| lease.id == *id), "{id:?}: {all:?}");
    }
    let elsewhere = Scope::new("conformance-elsewhere");
    assert_eq!(leases.list(&elsewhere, Some(LISTED)).await.unwrap(), []);
    given.end_lease(&lease).await;
    given.end_lease(&other).await;
    assert_eq!(leases.list(scope, Some(LISTED)).await.unwrap(), []);
}

async fn resources(given: &Given) {
    let (lease, scope) = given.lease("conformance-resources").await;
    assert_eq!(given.resources(&lease).await, []);
    let blob = Resource::Content(given.config.clone());
    let leases = &given.ports.leases;
    let added = leases.add_resource(&given.scope, &lease, &blob).await;
    added.unwrap();
    given.prepare(&scope, "leased", None).await.unwrap();
    let snapshot = |key| Resource::Snapshot {
        snapshotter: given.snapshotter.clone(),
        key,
    };
    let active = snapshot(key("leased"));
    let on_it = given.resources(&lease).await;
    assert_eq!(on_it, [blob.clone(), active], "what is made under it");
    given.commit(&scope, "leased").await.unwrap();
    let committed = snapshot(SnapshotKey::from(&chain("leased")));
    let on_it = given.resources(&lease).await;
    assert_eq!(on_it, [blob, committed], "and what becomes of it");
    given.end_lease(&lease).await;
    let gone = leases.resources(&given.scope, &lease).await;
    assert_kind(gone, Kind::NotFound);
}
