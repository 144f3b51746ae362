// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Garbage collection by containerd's rules (`core/metadata/gc.go`): roots are images, containers and
//! leases that have not expired; a blob refers to what its `gc.ref` labels name, a snapshot to its parent.

use std::collections::BTreeSet;
use std::time::SystemTime;

use super::state::{Lease, Namespace, State};
use crate::{Digest, SnapshotKey, labels};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Node {
    Content(Digest),
    Snapshot((String, SnapshotKey)),
}

pub(super) fn collect(state: &mut State, now: SystemTime) {
    for namespace in state.namespaces.values_mut() {
        namespace.leases.retain(|_, lease| !has_expired(lease, now));
        let leases = &namespace.leases;
        namespace
            .ingests
            .retain(|name, _| leases.values().any(|lease| lease.ingests.contains(name)));
        let used = used(namespace);
        namespace
            .blobs
            .retain(|digest, _| used.contains(&Node::Content(digest.clone())));
        namespace
            .snapshots
            .retain(|snapshot, _| used.contains(&Node::Snapshot(snapshot.clone())));
    }
}

fn has_expired(lease: &Lease, now: SystemTime) -> bool {
    let expiry = lease.labels.get(labels::GC_EXPIRE);
    let expiry = expiry.and_then(|text| humantime::parse_rfc3339(text).ok());
    expiry.is_some_and(|expiry| expiry < now)
}

fn used(namespace: &Namespace) -> BTreeSet<Node> {
    let targets = namespace.images.values();
    let mut next: Vec<Node> = targets
        .map(|(target, _)| Node::Content(target.digest.clone()))
        .collect();
    for lease in namespace.leases.values() {
        next.extend(lease.content.iter().cloned().map(Node::Content));
        next.extend(lease.snapshots.iter().cloned().map(Node::Snapshot));
    }
    let containers = namespace.containers.iter();
    next.extend(containers.map(|container| {
        Node::Snapshot((container.snapshotter.clone(), container.snapshot.clone()))
    }));
    let mut used = BTreeSet::new();
    while let Some(node) = next.pop() {
        if used.insert(node.clone()) {
            next.extend(references(namespace, &node));
        }
    }
    used
}

fn references(namespace: &Namespace, node: &Node) -> Vec<Node> {
    match node {
        Node::Content(digest) => {
            let blob = namespace.blobs.get(digest);
            let labels = blob.into_iter().flat_map(|(_, labels)| labels);
            labels
                .filter_map(|(key, value)| refer(key, value))
                .collect()
        }
        Node::Snapshot((snapshotter, key)) => {
            let snapshot = namespace.snapshots.get(&(snapshotter.clone(), key.clone()));
            let parent = snapshot.and_then(|snapshot| snapshot.parent.clone());
            let parent = parent.map(|parent| Node::Snapshot((snapshotter.clone(), parent)));
            parent.into_iter().collect()
        }
    }
}

fn refer(key: &str, value: &str) -> Option<Node> {
    if key.starts_with(labels::GC_CONTENT_PREFIX) {
        return value.parse().ok().map(Node::Content);
    }
    let snapshotter = key.strip_prefix(labels::GC_SNAPSHOT_PREFIX)?;
    let key = SnapshotKey::from(value.to_owned());
    Some(Node::Snapshot((snapshotter.to_owned(), key)))
}
