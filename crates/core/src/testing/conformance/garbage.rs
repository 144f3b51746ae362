// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The rules of garbage collection.

use std::time::{Duration, SystemTime};

use super::given::{Given, assert_kind, chain, key, labels};
use crate::{Kind, Resource, labels as names};

/// Garbage collection: leases, their expiry, parents, and the label on the config.
pub async fn garbage(given: &Given) {
    leased(given).await;
    expired(given).await;
    rooted(given).await;
}

async fn leased(given: &Given) {
    let (lease, scope) = given.lease("conformance-garbage").await;
    given.make(&scope, "kept below", None).await;
    let below = chain("kept below");
    given.make(&scope, "kept", Some(&below)).await;
    given.prepare(&scope, "active", Some(&below)).await.unwrap();
    let (brief, under_brief) = given.lease("conformance-brief").await;
    given.make(&under_brief, "loose", None).await;
    let begun = given.prepare(&under_brief, "loosely begun", None).await;
    begun.unwrap();
    given.end_lease(&brief).await;
    (given.collect_garbage)();
    assert!(given.is_committed("kept below").await);
    assert!(given.is_committed("kept").await);
    assert!(
        given.kind(&key("active")).await.is_some(),
        "active ones are kept too"
    );
    assert!(
        !given.is_committed("loose").await,
        "unleased snapshots are removed"
    );
    assert_eq!(given.kind(&key("loosely begun")).await, None);

    let (successor, _) = given.lease("conformance-successor").await;
    let resource = Resource::Snapshot {
        snapshotter: given.snapshotter.clone(),
        key: (&chain("kept")).into(),
    };
    let added = given
        .ports
        .leases
        .add_resource(&given.scope, &successor, &resource);
    added.await.unwrap();
    given.end_lease(&lease).await;
    (given.collect_garbage)();
    assert!(given.is_committed("kept").await, "the successor holds it");
    assert!(given.is_committed("kept below").await, "and its parent");
    assert_eq!(
        given.kind(&key("active")).await,
        None,
        "a snapshot that is not on it is removed"
    );
    given.end_lease(&successor).await;
    (given.collect_garbage)();
    assert!(!given.is_committed("kept").await);
    assert!(!given.is_committed("kept below").await);
}

async fn expired(given: &Given) {
    let at = |time: SystemTime| {
        let text = humantime::format_rfc3339_seconds(time).to_string();
        labels([(names::GC_EXPIRE, &text)])
    };
    let (soon, hour) = (Duration::from_secs(3), Duration::from_secs(3600));
    let now = SystemTime::now();
    let (past, under_past) = given.lease_with("conformance-past", &at(now + soon)).await;
    let (future, under_future) = given
        .lease_with("conformance-future", &at(now + hour))
        .await;
    let seconds = labels([(names::GC_EXPIRE, "1700000000")]);
    let (odd, under_odd) = given.lease_with("conformance-odd", &seconds).await;
    given.make(&under_past, "of the past", None).await;
    given.make(&under_future, "of the future", None).await;
    given.make(&under_odd, "for ever", None).await;
    tokio::time::sleep(soon + Duration::from_secs(1)).await;
    (given.collect_garbage)();
    assert!(!given.is_committed("of the past").await);
    assert!(given.is_committed("of the future").await);
    assert!(given.is_committed("for ever").await, "only RFC 3339 counts");
    let late = given.prepare(&under_past, "too late", None).await;
    assert_kind(late, Kind::NotFound);
    let ended = given.ports.leases.delete(&given.scope, &past).await;
    assert_kind(ended, Kind::NotFound);
    given.end_lease(&future).await;
    given.end_lease(&odd).await;
}

async fn rooted(given: &Given) {
    let (lease, scope) = given.lease("conformance-rooted").await;
    given.make(&scope, "rooted below", None).await;
    let below = chain("rooted below");
    given.make(&scope, "rooted", Some(&below)).await;
    let label = format!("{}{}", names::GC_SNAPSHOT_PREFIX, given.snapshotter);
    let (labeler, config) = (&given.ports.labeler, &given.config);
    let top = chain("rooted");
    let set = labeler
        .set_label(&scope, config, &label, top.as_str())
        .await;
    set.unwrap();
    given.end_lease(&lease).await;
    (given.collect_garbage)();
    assert!(given.is_committed("rooted").await, "the image keeps it");
    assert!(given.is_committed("rooted below").await);

    let removed = labeler.remove_label(&given.scope, config, &label).await;
    removed.unwrap();
    let leases = &given.ports.leases;
    let before = leases.list(&given.scope, None).await.unwrap();
    leases.collect_garbage(&given.scope).await.unwrap();
    assert!(!given.is_committed("rooted").await, "nothing keeps it");
    assert!(!given.is_committed("rooted below").await);
    let after = leases.list(&given.scope, None).await.unwrap();
    assert_eq!(after, before, "no lease is left of it");
}
