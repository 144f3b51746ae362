// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A survey of the snapshots of a namespace: what keeps them, and which of them are missing.

use std::collections::{BTreeMap, HashSet};

use futures::future::join_all;
use resnap_core::{Error, LeaseId, LeaseInfo, SnapshotInfo, SnapshotKey, labels};

use crate::backend::Backend;
use crate::inventory::{Holder, Holders, Inventory, Stores, UnpackedImage, list_snapshots};

/// The snapshots of a namespace, and the leases.
#[derive(Debug)]
#[non_exhaustive]
pub struct Survey {
    /// The snapshotters in the order in which they were asked for. One that does not answer has its error.
    pub snapshotters: Vec<(String, Result<SurveyedSnapshots, Error>)>,
    /// All leases, also those of other clients, in no particular order.
    pub leases: Vec<LeaseInfo>,
}

/// The snapshots of one snapshotter in a namespace.
#[derive(Debug)]
#[non_exhaustive]
pub struct SurveyedSnapshots {
    /// All snapshots, ordered by their keys.
    pub snapshots: Vec<SnapshotInfo>,
    /// The images that keep a chain here, ordered by name.
    pub images: Vec<UnpackedImage>,
    /// Those of [`SurveyedSnapshots::images`] whose chain is not listed.
    pub missing: Vec<UnpackedImage>,
    /// The snapshots that no image and no container needs, with the leases that keep them. Without a lease, the
    /// next garbage collection removes them.
    pub unneeded: BTreeMap<SnapshotKey, Vec<LeaseId>>,
}

/// Surveys these snapshotters.
pub(crate) async fn survey(backend: &Backend, snapshotters: &[String]) -> Result<Survey, Error> {
    let listed = snapshotters.iter().map(async |name| {
        let listed = list_snapshots(backend, name).await;
        (name.clone(), listed)
    });
    // In this order: a snapshot that is listed has a lease until its image keeps it.
    let listed = join_all(listed).await;
    let holders = Holders::read(backend).await?;
    let stores = Stores::read(backend).await?;
    let snapshotters = listed.into_iter().map(|(name, snapshots)| {
        let surveyed = snapshots
            .map(|snapshots| surveyed(Inventory::new(&stores, &name, snapshots, &holders)));
        (name, surveyed)
    });
    Ok(Survey {
        snapshotters: snapshotters.collect(),
        leases: holders.leases,
    })
}

fn surveyed(inventory: Inventory) -> SurveyedSnapshots {
    let images = inventory.labelled();
    let mut missing = images.clone();
    missing.retain(|image| !inventory.is_committed(&image.chain_id));
    let unneeded = unneeded(&inventory, &images);
    SurveyedSnapshots {
        snapshots: inventory.snapshots.into_values().collect(),
        images,
        missing,
        unneeded,
    }
}

fn unneeded(
    inventory: &Inventory,
    images: &[UnpackedImage],
) -> BTreeMap<SnapshotKey, Vec<LeaseId>> {
    let mut roots: Vec<&SnapshotKey> = images.iter().map(|image| &image.chain_id).collect();
    let mut leased: BTreeMap<&SnapshotKey, Vec<LeaseId>> = BTreeMap::new();
    for (holder, key) in &inventory.holders {
        match holder {
            Holder::Container(_) => roots.push(key),
            Holder::Lease(id) => {
                for key in inventory.lineage(key) {
                    leased.entry(key).or_default().push(id.clone());
                }
            }
        }
    }
    let pinned = inventory.snapshots.values();
    let pinned = pinned.filter(|info| info.labels.contains_key(labels::GC_ROOT));
    roots.extend(pinned.map(|info| &info.key));
    let mut needed = HashSet::new();
    for root in roots {
        for key in inventory.lineage(root) {
            if !needed.insert(key) {
                break;
            }
        }
    }
    let keys = inventory.snapshots.keys();
    keys.filter(|key| !needed.contains(key))
        .map(|key| (key.clone(), leased.remove(key).unwrap_or_default()))
        .collect()
}
