// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Garbage collection by containerd's rules (`core/metadata/gc.go`).
//!
//! | root | refers to |
//! |---|---|
//! | an image | its target |
//! | a lease that has not expired | its resources |
//! | a snapshot of a container | its parents |
//! | a blob or snapshot with the label `containerd.io/gc.root` | what others of its kind do |
//!
//! A blob refers to what its labels `containerd.io/gc.ref.*` name, a snapshot to its parent. What nothing refers
//! to goes, and with it the files that a killed process left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::SystemTime;

use resnap_core::{Digest, Labels, Resource, SnapshotKey, labels};
use rusqlite::Transaction;

use crate::blobs;
use crate::fault::Fault;
use crate::index::Index;
use crate::layout::Layout;
use crate::removal::{empty, set_aside_unknown};
use crate::resource;
use crate::rows::{self, Row};
use crate::snapshotters::ALL;
use crate::state::State;
use crate::store::parse_labels;

/// Removes expired leases and all that nothing keeps, and returns when the files are gone.
pub(crate) fn collect(state: &State, now: SystemTime) -> Result<(), Fault> {
    let layout = &state.layout;
    state.store.write(|transaction| {
        expire(transaction, now)?;
        let snapshots = rows::all(transaction)?.into_iter();
        let snapshots = snapshots.map(|row| (row.resource(), row)).collect();
        let used = used(transaction, layout, &snapshots)?;
        for (snapshot, row) in &snapshots {
            if !used.contains(snapshot) {
                rows::delete(transaction, row.id)?;
            }
        }
        let labelled = blobs::labelled(transaction)?.into_keys();
        for digest in blobs::list(layout)?.into_iter().chain(labelled) {
            if !used.contains(&Resource::Content(digest.clone())) {
                blobs::delete(transaction, layout, &digest)?;
            }
        }
        sweep_ingests(layout, &used)
    })?;
    // Only now the rows are gone, whatever happens next.
    state
        .store
        .write(|transaction| set_aside_unknown(transaction, layout))?;
    ALL.into_iter().try_for_each(|name| empty(layout, name))
}

/// Collects garbage after something else that has been done, whatever comes of it.
pub(crate) fn collect_leniently(state: &State) {
    if let Err(fault) = collect(state, SystemTime::now()) {
        let error = fault.of("collect", "garbage");
        let error: &dyn std::error::Error = &error;
        tracing::warn!(error, "garbage stays until the next collection");
    }
}

fn expire(transaction: &Transaction<'_>, now: SystemTime) -> Result<(), Fault> {
    let mut statement = transaction.prepare("SELECT id, labels FROM leases")?;
    let mut leases = statement.query([])?;
    let mut expired = Vec::new();
    while let Some(lease) = leases.next()? {
        let labels = parse_labels(&lease.get::<_, String>(1)?)?;
        if has_expired(&labels, now) {
            expired.push(lease.get::<_, String>(0)?);
        }
    }
    for id in expired {
        transaction.execute("DELETE FROM leases WHERE id = ?1", [id])?;
    }
    Ok(())
}

fn has_expired(lease: &Labels, now: SystemTime) -> bool {
    let expiry = lease.get(labels::GC_EXPIRE);
    let expiry = expiry.and_then(|text| humantime::parse_rfc3339(text).ok());
    expiry.is_some_and(|expiry| expiry < now)
}

/// Returns all that something keeps.
fn used(
    transaction: &Transaction<'_>,
    layout: &Layout,
    snapshots: &BTreeMap<Resource, Row>,
) -> Result<BTreeSet<Resource>, Fault> {
    let blobs = blobs::labelled(transaction)?;
    let is_root = |labels: &Labels| labels.contains_key(labels::GC_ROOT);
    let index = Index::read(layout)?;
    let targets = index
        .images()
        .map(|image| Resource::Content(image.target.digest));
    let mut next: Vec<Resource> = targets.collect();
    next.extend(resource::list(transaction, None)?);
    let roots = snapshots.iter();
    let roots = roots.filter(|(_, row)| row.is_of_container() || is_root(&row.labels));
    next.extend(roots.map(|(resource, _)| resource.clone()));
    let roots = blobs.iter().filter(|(_, labels)| is_root(labels));
    next.extend(roots.map(|(digest, _)| Resource::Content(digest.clone())));
    let mut used = BTreeSet::new();
    while let Some(resource) = next.pop() {
        if !used.insert(resource.clone()) {
            continue;
        }
        match &resource {
            Resource::Content(digest) => {
                let labels = blobs.get(digest).into_iter().flatten();
                next.extend(labels.filter_map(|(key, value)| refer(key, value)));
            }
            Resource::Snapshot { .. } => {
                next.extend(snapshots.get(&resource).and_then(Row::parent));
            }
            Resource::Ingest(_) => {}
        }
    }
    Ok(used)
}

/// Returns what a label of a blob refers to.
fn refer(key: &str, value: &str) -> Option<Resource> {
    if key.starts_with(labels::GC_CONTENT_PREFIX) {
        return value.parse::<Digest>().ok().map(Resource::Content);
    }
    Some(Resource::Snapshot {
        snapshotter: key.strip_prefix(labels::GC_SNAPSHOT_PREFIX)?.to_owned(),
        key: SnapshotKey::from(value.to_owned()),
    })
}

/// Removes the ingests that no lease holds.
fn sweep_ingests(layout: &Layout, used: &BTreeSet<Resource>) -> Result<(), Fault> {
    let kept = used.iter().filter_map(|resource| match resource {
        Resource::Ingest(name) => Some(layout.ingest(name)),
        _ => None,
    });
    let kept: BTreeSet<_> = kept.collect();
    for ingest in fs::read_dir(layout.ingests())? {
        let path = ingest?.path();
        if !kept.contains(&path) {
            blobs::unlink(&path)?;
        }
    }
    Ok(())
}
