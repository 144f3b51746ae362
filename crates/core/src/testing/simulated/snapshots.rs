// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The rules of snapshots (containerd `core/metadata/snapshot.go`).

use std::time::SystemTime;

use super::behaviour::Behaviour;
use super::state::{Snapshot, State, check_labels, not_found};
use crate::testing::image::decompress;
use crate::{
    Applied, DiffId, Digest, Error, Kind, Labels, Mount, Result, Scope, SnapshotInfo, SnapshotKey,
    SnapshotKind, Usage, labels,
};

/// The prefix of the sources of mounts; the number of the snapshot's directory follows.
const ROOT: &str = "/simulated/snapshots/";

pub(super) struct Prepare {
    pub(super) scope: Scope,
    pub(super) snapshotter: String,
    pub(super) key: SnapshotKey,
    pub(super) parent: Option<SnapshotKey>,
    pub(super) labels: Labels,
}

pub(super) struct Commit {
    pub(super) scope: Scope,
    pub(super) snapshotter: String,
    pub(super) name: SnapshotKey,
    pub(super) key: SnapshotKey,
    pub(super) labels: Labels,
}

fn exists(operation: &'static str, key: &SnapshotKey) -> Error {
    Error::new(Kind::AlreadyExists, operation, key.as_str())
}

fn behaviour(state: &State, snapshotter: &str) -> Result<Behaviour> {
    let behaviour = state.snapshotters.get(snapshotter).copied();
    behaviour.ok_or_else(|| {
        Error::new(Kind::InvalidArgument, "use snapshotter", snapshotter)
            .with_source("it is not loaded")
    })
}

pub(super) fn stat(
    state: &mut State,
    scope: &Scope,
    snapshotter: &str,
    key: &SnapshotKey,
) -> Result<SnapshotInfo> {
    behaviour(state, snapshotter)?;
    let snapshots = &state.namespace(&scope.namespace).snapshots;
    let snapshot = snapshots.get(&(snapshotter.to_owned(), key.clone()));
    let snapshot = snapshot.ok_or_else(|| not_found("stat snapshot", key))?;
    Ok(snapshot.info(key))
}

pub(super) fn set_labels(
    state: &mut State,
    scope: &Scope,
    snapshotter: &str,
    key: &SnapshotKey,
    labels: Labels,
) -> Result<()> {
    behaviour(state, snapshotter)?;
    check_labels(&labels)?;
    let snapshots = &mut state.namespace(&scope.namespace).snapshots;
    let snapshot = snapshots.get_mut(&(snapshotter.to_owned(), key.clone()));
    let snapshot = snapshot.ok_or_else(|| not_found("label snapshot", key))?;
    snapshot.labels.extend(labels);
    snapshot.labels.retain(|_, value| !value.is_empty());
    Ok(())
}

pub(super) fn children(
    state: &mut State,
    scope: &Scope,
    snapshotter: &str,
    parent: &SnapshotKey,
) -> Result<Vec<SnapshotInfo>> {
    behaviour(state, snapshotter)?;
    let snapshots = state.namespace(&scope.namespace).snapshots.iter();
    let children = snapshots.filter(|((owner, _), snapshot)| {
        owner == snapshotter && snapshot.parent.as_ref() == Some(parent)
    });
    Ok(children
        .map(|((_, key), snapshot)| snapshot.info(key))
        .collect())
}

pub(super) fn list(
    state: &mut State,
    scope: &Scope,
    snapshotter: &str,
) -> Result<Vec<SnapshotInfo>> {
    behaviour(state, snapshotter)?;
    let snapshots = state.namespace(&scope.namespace).snapshots.iter();
    let own = snapshots.filter(|((owner, _), _)| owner == snapshotter);
    Ok(own.map(|((_, key), snapshot)| snapshot.info(key)).collect())
}

/// Returns one page and one inode for each snapshot.
pub(super) fn usage(
    state: &mut State,
    scope: &Scope,
    snapshotter: &str,
    key: &SnapshotKey,
) -> Result<Usage> {
    stat(state, scope, snapshotter, key)?;
    Ok(Usage {
        bytes: 4096,
        inodes: 1,
    })
}

pub(super) fn prepare(state: &mut State, prepare: Prepare) -> Result<Vec<Mount>> {
    let Prepare {
        scope,
        snapshotter,
        key,
        parent,
        labels,
    } = prepare;
    let behaviour = behaviour(state, &snapshotter)?;
    check_labels(&labels)?;
    let target = labels.get(labels::SNAPSHOT_REF).cloned();
    let target = target.map(SnapshotKey::from);
    let namespace = state.namespace(&scope.namespace);
    for taken in target.iter().chain([&key]) {
        let full = (snapshotter.clone(), taken.clone());
        if namespace.snapshots.contains_key(&full) {
            // Newer versions add it to the lease; 1.6 does not.
            return Err(exists("prepare snapshot", taken));
        }
    }
    let content = match &parent {
        None => Vec::new(),
        Some(parent) => {
            let full = (snapshotter.clone(), parent.clone());
            let parent_snapshot = namespace.snapshots.get(&full);
            let parent_snapshot =
                parent_snapshot.ok_or_else(|| not_found("find parent", parent))?;
            parent_snapshot.content.clone()
        }
    };
    let ready = registered(state, &labels);
    state.last_place += 1;
    let place = state.last_place;
    let mut snapshot = Snapshot {
        place,
        kind: SnapshotKind::Active,
        parent,
        labels,
        content,
        created: SystemTime::now(),
    };
    let mut options = vec!["rw".to_owned()];
    let mut name = key;
    let mut answer_exists = false;
    match (behaviour, target, ready) {
        (Behaviour::Lying(times), Some(target), _) => {
            let lies = state.lies.entry((snapshotter.clone(), target.clone()));
            let lies = lies.or_default();
            if *lies < times {
                *lies += 1;
                return Err(exists("prepare snapshot", &target));
            }
        }
        (Behaviour::Remote, Some(target), Some(layer)) => {
            snapshot.kind = SnapshotKind::Committed;
            snapshot.content.push(layer);
            name = target;
            answer_exists = true;
        }
        (Behaviour::Staged, Some(_), Some(layer)) => {
            snapshot.content.push(layer);
            options = vec!["ro".to_owned()];
        }
        _ => {}
    }
    let namespace = state.namespace(&scope.namespace);
    namespace.add_to_lease(&scope, &snapshotter, &name)?;
    let full = (snapshotter, name.clone());
    namespace.snapshots.insert(full, snapshot);
    if answer_exists {
        return Err(exists("prepare snapshot", &name));
    }
    Ok(vec![Mount {
        kind: "bind".to_owned(),
        source: format!("{ROOT}{place}"),
        target: String::new(),
        options,
    }])
}

pub(super) fn view(
    state: &mut State,
    scope: &Scope,
    snapshotter: &str,
    key: &SnapshotKey,
    parent: &SnapshotKey,
) -> Result<Vec<Mount>> {
    behaviour(state, snapshotter)?;
    let namespace = state.namespace(&scope.namespace);
    let full = |key: &SnapshotKey| (snapshotter.to_owned(), key.clone());
    if namespace.snapshots.contains_key(&full(key)) {
        return Err(exists("view snapshot", key));
    }
    let below = namespace.snapshots.get(&full(parent));
    let view = Snapshot {
        kind: SnapshotKind::View,
        parent: Some(parent.clone()),
        labels: Labels::new(),
        ..below
            .ok_or_else(|| not_found("find parent", parent))?
            .clone()
    };
    let source = format!("{ROOT}{}", view.place);
    namespace.add_to_lease(scope, snapshotter, key)?;
    namespace.snapshots.insert(full(key), view);
    Ok(vec![Mount {
        kind: "bind".to_owned(),
        source,
        target: String::new(),
        options: vec!["ro".to_owned()],
    }])
}

/// Returns the layer that a remote snapshotter finds by these labels.
fn registered(state: &State, labels: &Labels) -> Option<DiffId> {
    if !labels::missing(labels).is_empty() {
        return None;
    }
    let digest: Digest = labels.get(labels::LAYER_DIGEST)?.parse().ok()?;
    state.registry.get(&digest).cloned()
}

pub(super) fn commit(state: &mut State, commit: Commit) -> Result<()> {
    let Commit {
        scope,
        snapshotter,
        name,
        key,
        labels,
    } = commit;
    behaviour(state, &snapshotter)?;
    check_labels(&labels)?;
    let namespace = state.namespace(&scope.namespace);
    let active = (snapshotter.clone(), key.clone());
    let committed = (snapshotter.clone(), name.clone());
    if namespace.snapshots.contains_key(&committed) {
        return Err(exists("commit snapshot", &name));
    }
    let found = namespace.snapshots.get(&active);
    let mut snapshot = found
        .filter(|snapshot| snapshot.kind == SnapshotKind::Active)
        .ok_or_else(|| not_found("commit snapshot", &key))?
        .clone();
    namespace.add_to_lease(&scope, &snapshotter, &name)?;
    if let Some(lease) = &scope.lease {
        namespace.lease(lease)?.snapshots.remove(&active);
    }
    snapshot.kind = SnapshotKind::Committed;
    snapshot.labels = labels;
    namespace.snapshots.remove(&active);
    namespace.snapshots.insert(committed, snapshot);
    Ok(())
}

/// Creates the committed snapshot of `commit` in one step.
pub(super) fn unpack(
    state: &mut State,
    commit: Commit,
    parent: Option<SnapshotKey>,
    layer: &DiffId,
) -> bool {
    state.last_place += 1;
    let place = state.last_place;
    let snapshots = &mut state.namespace(&commit.scope.namespace).snapshots;
    let mut content = Vec::new();
    if let Some(parent) = &parent {
        let Some(below) = snapshots.get(&(commit.snapshotter.clone(), parent.clone())) else {
            return false;
        };
        content.clone_from(&below.content);
    }
    content.push(layer.clone());
    let there = snapshots.entry((commit.snapshotter, commit.name));
    there.or_insert(Snapshot {
        place,
        kind: SnapshotKind::Committed,
        parent,
        labels: commit.labels,
        content,
        created: SystemTime::now(),
    });
    true
}

pub(super) fn remove(
    state: &mut State,
    scope: &Scope,
    snapshotter: &str,
    key: &SnapshotKey,
) -> Result<()> {
    behaviour(state, snapshotter)?;
    let namespace = state.namespace(&scope.namespace);
    let full = (snapshotter.to_owned(), key.clone());
    if !namespace.snapshots.contains_key(&full) {
        return Err(not_found("remove snapshot", key));
    }
    let has_child = namespace.snapshots.iter().any(|((owner, _), snapshot)| {
        owner == snapshotter && snapshot.parent.as_ref() == Some(key)
    });
    if has_child {
        return Err(
            Error::new(Kind::FailedPrecondition, "remove snapshot", key.as_str())
                .with_source("another stands on it"),
        );
    }
    namespace.snapshots.remove(&full);
    Ok(())
}

/// Writes the layer; the diff ID is that of what the blob really holds.
pub(super) fn apply(
    state: &mut State,
    scope: &Scope,
    digest: &Digest,
    mounts: &[Mount],
) -> Result<Applied> {
    let namespace = state.namespace(&scope.namespace);
    let (blob, _) = namespace.blob(digest)?;
    let tar = decompress(blob).ok_or_else(|| {
        Error::new(Kind::Unknown, "apply layer", digest.as_str()).with_source("it is no layer")
    })?;
    let diff_id = Digest::sha256(tar);
    let size = tar.len() as u64;
    write(state, scope, mounts, DiffId(diff_id.clone()))?;
    Ok(Applied {
        diff_id: Some(diff_id),
        size,
        is_own_image: false,
        proof: None,
    })
}

/// Writes through mounts in any state of the snapshot: mounts that outlive the Commit corrupt it.
pub(super) fn write(
    state: &mut State,
    scope: &Scope,
    mounts: &[Mount],
    layer: DiffId,
) -> Result<()> {
    let source = mounts.last().map_or("", |mount| mount.source.as_str());
    let place = source.strip_prefix(ROOT).and_then(|text| text.parse().ok());
    let snapshots = state.namespace(&scope.namespace).snapshots.values_mut();
    let mut at_place = snapshots.filter(|snapshot| Some(snapshot.place) == place);
    let snapshot = at_place.next().ok_or_else(|| {
        Error::new(Kind::Unknown, "mount", source).with_source("there is no such directory")
    })?;
    snapshot.content.push(layer);
    Ok(())
}
