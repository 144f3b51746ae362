// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Prepare, Commit, Stat, Remove; labels and children of snapshots.

use super::given::{Given, assert_kind, chain, key, labels};
use crate::{Kind, Labels, LeaseId, Scope, SnapshotKey, SnapshotKind, labels as names};

/// A snapshotter: the states of snapshots, and the kinds of errors.
pub async fn snapshots(given: &Given) {
    let (lease, scope) = given.lease("conformance-snapshots").await;
    active(given, &scope).await;
    committed(given, &scope).await;
    taken(given, &scope).await;
    viewed(given, &scope).await;
    labelled(given, &scope).await;
    children(given, &scope).await;
    removal(given, &scope).await;
    elsewhere(given, &scope).await;
    given.end_lease(&lease).await;
}

async fn active(given: &Given, scope: &Scope) {
    let snapshotter = given.snapshotter();
    assert_kind(snapshotter.stat(scope, &key("a")).await, Kind::NotFound);
    let ours = labels([("example.com/at", "prepare")]);
    let mounts = snapshotter.prepare(scope, &key("a"), None, &ours).await;
    let mounts = mounts.unwrap();
    let last = mounts.last().expect("a snapshot has a mount");
    assert!(!last.is_read_only(), "nothing is staged here: {last:?}");
    let info = snapshotter.stat(scope, &key("a")).await.unwrap();
    assert_eq!((info.key, info.parent), (key("a"), None));
    assert_eq!(info.kind, SnapshotKind::Active);
    assert_eq!(info.labels, ours);

    let missing = given.prepare(scope, "b", Some(&chain("nowhere"))).await;
    assert_kind(missing, Kind::NotFound);
    assert_eq!(given.kind(&key("b")).await, None);
}

async fn committed(given: &Given, scope: &Scope) {
    let snapshotter = given.snapshotter();
    let ours = labels([
        ("example.com/at", "commit"),
        ("containerd.io/snapshot/x", "y"),
    ]);
    let commit = snapshotter
        .commit(scope, &chain("a"), &key("a"), &ours)
        .await;
    commit.unwrap();
    assert_eq!(given.kind(&key("a")).await, None, "the active one is gone");
    let name = SnapshotKey::from(&chain("a"));
    let info = snapshotter.stat(scope, &name).await.unwrap();
    assert_eq!((info.key, info.parent), (name.clone(), None));
    assert_eq!(info.kind, SnapshotKind::Committed);
    assert_eq!(info.labels, ours, "they are those of Commit alone");

    given.make(scope, "b", Some(&chain("a"))).await;
    let upper = SnapshotKey::from(&chain("b"));
    let info = snapshotter.stat(scope, &upper).await.unwrap();
    assert_eq!(info.parent, Some(name), "the parent is that of Prepare");
    assert_kind(given.commit(scope, "never prepared").await, Kind::NotFound);
    assert!(!given.is_committed("never prepared").await);
}

async fn taken(given: &Given, scope: &Scope) {
    let snapshotter = given.snapshotter();
    given.prepare(scope, "c", None).await.unwrap();
    let again = given.prepare(scope, "c", None).await;
    assert_kind(again, Kind::AlreadyExists);
    let commit = snapshotter
        .commit(scope, &chain("a"), &key("c"), &Labels::new())
        .await;
    assert_kind(commit, Kind::AlreadyExists);
    let left = given.kind(&key("c")).await;
    assert_eq!(left, Some(SnapshotKind::Active), "the loser's own is left");
    snapshotter.remove(scope, &key("c")).await.unwrap();

    // A Prepare for a layer that exists creates nothing.
    let there = labels([(names::SNAPSHOT_REF, chain("a").as_str())]);
    let prepare = snapshotter.prepare(scope, &key("d"), None, &there).await;
    assert_kind(prepare, Kind::AlreadyExists);
    assert_eq!(given.kind(&key("d")).await, None);
}

async fn viewed(given: &Given, scope: &Scope) {
    let snapshotter = given.snapshotter();
    let view = || async { snapshotter.view(scope, &key("v"), &chain("b")).await };
    assert!(!view().await.unwrap().is_empty());
    let info = snapshotter.stat(scope, &key("v")).await.unwrap();
    assert_eq!(info.kind, SnapshotKind::View);
    assert_eq!(info.parent, Some(SnapshotKey::from(&chain("b"))));
    assert_kind(view().await, Kind::AlreadyExists);
    snapshotter.remove(scope, &key("v")).await.unwrap();
    let missing = snapshotter.view(scope, &key("v"), &chain("nowhere")).await;
    assert_kind(missing, Kind::NotFound);
}

async fn labelled(given: &Given, scope: &Scope) {
    let snapshotter = given.snapshotter();
    let name = SnapshotKey::from(&chain("b"));
    let before = snapshotter.stat(scope, &name).await.unwrap();
    for values in [["1", "2"], ["1", "3"]] {
        let new = labels([
            ("example.com/a", values[0]),
            ("containerd.io/snapshot/b.c", values[1]),
        ]);
        snapshotter.set_labels(scope, &name, &new).await.unwrap();
        let single = labels([("example.com/d", "4")]);
        snapshotter.set_labels(scope, &name, &single).await.unwrap();
        let mut expected = before.clone();
        expected.labels.extend(new);
        expected.labels.extend(single);
        let after = snapshotter.stat(scope, &name).await.unwrap();
        assert_eq!(after, expected, "these are set, and all else stays");
        let none = labels([("example.com/d", "")]);
        snapshotter.set_labels(scope, &name, &none).await.unwrap();
        expected.labels.remove("example.com/d");
        let after = snapshotter.stat(scope, &name).await.unwrap();
        assert_eq!(after, expected, "an empty value removes a label");
    }
    let any = labels([("example.com/a", "5")]);
    let set = snapshotter.set_labels(scope, &key("nowhere"), &any).await;
    assert_kind(set, Kind::NotFound);
    let long = "x".repeat(names::MAX_BYTES);
    let long = labels([("example.com/a", &long)]);
    let set = snapshotter.set_labels(scope, &name, &long).await;
    assert_kind(set, Kind::InvalidArgument);
}

async fn children(given: &Given, scope: &Scope) {
    let [lower, upper] = ["a", "b"].map(|name| SnapshotKey::from(&chain(name)));
    let active = given.prepare(scope, "h", Some(&chain("a"))).await;
    active.unwrap();
    let snapshotter = given.snapshotter();
    let children = snapshotter.children(scope, &lower).await.unwrap();
    for child in &children {
        let info = snapshotter.stat(scope, &child.key).await.unwrap();
        assert_eq!(*child, info, "each child has the same info as by stat");
    }
    let mut keys: Vec<_> = children.into_iter().map(|child| child.key).collect();
    keys.sort();
    assert_eq!(keys, [key("h"), upper.clone()], "active ones too");
    given.remove(scope, &key("h")).await.unwrap();
    let all = snapshotter.list(scope).await.unwrap();
    for key in [&lower, &upper] {
        let info = snapshotter.stat(scope, key).await.unwrap();
        assert!(all.contains(&info), "{key} is not in {all:?}");
        let usage = snapshotter.usage(scope, key).await.unwrap();
        assert!(usage.inodes > 0 || usage.bytes > 0, "{key}: {usage:?}");
    }
    assert!(all.iter().all(|info| info.key != key("h")), "{all:?}");
    let usage = snapshotter.usage(scope, &key("nowhere")).await;
    assert_kind(usage, Kind::NotFound);
    let keys = snapshotter.children(scope, &lower).await.unwrap();
    assert_eq!(keys.len(), 1, "not those that are gone: {keys:?}");
    for childless in [upper, key("nowhere")] {
        let none = snapshotter.children(scope, &childless).await.unwrap();
        assert_eq!(none, []);
    }
}

async fn removal(given: &Given, scope: &Scope) {
    let snapshotter = given.snapshotter();
    let [lower, upper] = ["a", "b"].map(|name| SnapshotKey::from(&chain(name)));
    let removed = snapshotter.remove(scope, &lower).await;
    assert_kind(removed, Kind::FailedPrecondition);
    given.prepare(scope, "e", Some(&chain("b"))).await.unwrap();
    let removed = snapshotter.remove(scope, &upper).await;
    assert_kind(removed, Kind::FailedPrecondition);
    for key in [key("e"), upper, lower] {
        snapshotter.remove(scope, &key).await.unwrap();
        assert_eq!(given.kind(&key).await, None);
        assert_kind(snapshotter.remove(scope, &key).await, Kind::NotFound);
    }
}

async fn elsewhere(given: &Given, scope: &Scope) {
    given.make(scope, "f", None).await;
    let name = SnapshotKey::from(&chain("f"));
    let stranger = Scope::new("conformance-elsewhere");
    let stat = given.snapshotter().stat(&stranger, &name).await;
    assert_kind(stat, Kind::NotFound);

    let none = given.ports.snapshotters.snapshotter("no-such-snapshotter");
    assert_kind(none.stat(scope, &name).await, Kind::InvalidArgument);
    let prepare = none.prepare(scope, &key("g"), None, &Labels::new()).await;
    assert_kind(prepare, Kind::InvalidArgument);
    let set = none.set_labels(scope, &name, &Labels::new()).await;
    assert_kind(set, Kind::InvalidArgument);
    assert_kind(none.children(scope, &name).await, Kind::InvalidArgument);
    assert_kind(none.list(scope).await, Kind::InvalidArgument);
    assert_eq!(given.snapshotter().list(&stranger).await.unwrap(), []);
    let none = given.snapshotter().children(&stranger, &name).await;
    assert_eq!(none.unwrap(), []);

    let long = "x".repeat(names::MAX_BYTES);
    let long = labels([("example.com/long", &long)]);
    let prepare = given.snapshotter();
    let prepare = prepare.prepare(scope, &key("g"), None, &long).await;
    assert_kind(prepare, Kind::InvalidArgument);
    let gone = given.scope.leased(LeaseId("conformance-no-lease".into()));
    let stat = given.snapshotter().stat(&gone, &name).await;
    assert!(stat.is_ok(), "looking asks for no lease: {stat:?}");
}
