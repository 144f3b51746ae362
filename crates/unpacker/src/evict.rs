// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The eviction of images from a snapshotter: the labels that keep their chains are removed, and then
//! garbage.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use resnap_core::{Digest, Error, Kind, SnapshotKey, Usage};

use crate::backend::Backend;
use crate::evict_check::EvictCheck;
use crate::eviction::{EvictState, EvictedChain, Eviction};
use crate::inventory::{ChainLabel, Inventory, list_snapshots};
use crate::lease::LeaseKeeper;
use crate::locks::Lock;
use crate::planner::Planner;
use crate::{EvictRequest, UnpackError};

/// Evicts images. Without other clients of containerd, the result is exactly what a dry run says.
pub(crate) async fn evict(
    keeper: &Arc<LeaseKeeper>,
    planner: &Planner,
    request: &EvictRequest,
) -> Result<Eviction, UnpackError> {
    let backend = &keeper.backend;
    backend.require_snapshotter(&request.snapshotter).await?;
    // Another eviction may remove what this one relies on.
    let _lock = lock(keeper, request).await?;
    let inventory = Inventory::read(backend, &request.snapshotter).await?;
    let (wanted, mut chains) = wanted(planner, &inventory, request).await?;
    let check = EvictCheck::new(keeper, planner, &inventory, request).await?;
    let mut evicted = BTreeMap::new();
    for chain in wanted {
        let labels: Vec<&ChainLabel> = of_chain(&inventory, chain).collect();
        let configs: BTreeSet<Digest> = labels.iter().map(|label| label.config.clone()).collect();
        let names = configs.iter().flat_map(|config| inventory.names_of(config));
        let mut images: Vec<String> = Vec::new();
        for name in names {
            if !images.contains(name) {
                images.push(name.clone());
            }
        }
        match check.refusal(chain, &configs).await? {
            None => _ = evicted.insert(chain, (images, labels)),
            Some(refusal) => chains.push(EvictedChain {
                refusal: Some(refusal),
                ..EvictedChain::new(images, Some(chain), EvictState::Refused)
            }),
        }
    }
    let state = match request.dry_run {
        true => EvictState::WouldEvict,
        false => EvictState::Evicted,
    };
    let mut leaving = removals(backend, request, &inventory, &evicted).await?;
    for (chain, (images, _)) in &evicted {
        let mut row = EvictedChain::new(images.clone(), Some(chain), state);
        row.removed = leaving.remove(*chain).unwrap_or_default();
        row.in_use_by = in_use_by(&inventory, chain);
        chains.push(row);
    }
    if !request.dry_run && !evicted.is_empty() {
        let labels = evicted.values().flat_map(|(_, labels)| labels);
        remove(backend, labels.copied()).await?;
        let left = list_snapshots(backend, &request.snapshotter).await?;
        for chain in &mut chains {
            chain.removed.retain(|(key, _)| !left.contains_key(key));
        }
    }
    Ok(sum(&inventory, chains))
}

/// Waits until no other process evicts images.
async fn lock(keeper: &LeaseKeeper, request: &EvictRequest) -> Result<Lock, UnpackError> {
    let purpose = format!("an eviction from {}", request.snapshotter);
    let lock = keeper.locks.lock("evictions", &purpose, drop).await;
    let failed = |error| Error::new(Kind::FailedPrecondition, "lock", &*purpose).with_source(error);
    Ok(lock.map_err(failed)?)
}

/// Returns the chains of the requested images, and a row for each image that has none.
async fn wanted<'a>(
    planner: &Planner,
    inventory: &'a Inventory,
    request: &EvictRequest,
) -> Result<(BTreeSet<&'a SnapshotKey>, Vec<EvictedChain>), UnpackError> {
    let (mut chains, mut absent) = (BTreeSet::new(), Vec::new());
    for name in &request.images {
        let target = match inventory.images.get(name) {
            Some(image) => image.target.digest.clone(),
            None => planner.resolve(name).await?.target.digest,
        };
        let labels = inventory.labels_of(&target);
        if labels.is_empty() {
            let images = vec![name.clone()];
            absent.push(EvictedChain::new(images, None, EvictState::Absent));
        }
        chains.extend(labels.into_iter().map(|label| &label.chain));
    }
    Ok((chains, absent))
}

fn of_chain<'a>(
    inventory: &'a Inventory,
    chain: &'a SnapshotKey,
) -> impl Iterator<Item = &'a ChainLabel> {
    let labels = inventory.chain_labels.iter();
    labels.filter(move |label| label.chain == *chain)
}

/// The snapshots that are removed with each chain. One that several chains have is counted once.
type Removals = BTreeMap<SnapshotKey, Vec<(SnapshotKey, Usage)>>;

async fn removals<T>(
    backend: &Backend,
    request: &EvictRequest,
    inventory: &Inventory,
    evicted: &BTreeMap<&SnapshotKey, T>,
) -> Result<Removals, UnpackError> {
    let snapshotter = backend.snapshotter(&request.snapshotter);
    let mut counted = inventory.kept_without(&evicted.keys().copied().collect());
    let mut removals = Removals::new();
    for chain in evicted.keys() {
        let mut removed = Vec::new();
        for key in inventory.lineage(chain) {
            if !counted.insert(key) {
                break;
            }
            match snapshotter.usage(&backend.scope, key).await {
                Ok(usage) => removed.push((key.clone(), usage)),
                // Somebody else has removed it.
                Err(error) if error.is_not_found() => {}
                Err(error) => return Err(error.into()),
            }
        }
        removals.insert((*chain).clone(), removed);
    }
    Ok(removals)
}

/// Returns the containers and leases that keep a chain.
fn in_use_by(inventory: &Inventory, chain: &SnapshotKey) -> Vec<String> {
    let holders = inventory.holders.iter();
    let users = holders.filter(|(_, key)| inventory.lineage(key).any(|below| below == chain));
    let users: BTreeSet<String> = users.map(|(user, _)| user.to_string()).collect();
    users.into_iter().collect()
}

/// Removes the labels, and the garbage. If the process ends in between, containerd's next garbage
/// collection completes it.
async fn remove<'a>(
    backend: &Backend,
    labels: impl Iterator<Item = &'a ChainLabel>,
) -> Result<(), UnpackError> {
    let (ports, scope) = (&backend.ports, &backend.scope);
    for ChainLabel { config, label, .. } in labels {
        match ports.labeler.remove_label(scope, config, label).await {
            // The image has been removed meanwhile.
            Err(error) if error.is_not_found() => {}
            removed => removed?,
        }
    }
    Ok(ports.leases.collect_garbage(scope).await?)
}

fn sum(inventory: &Inventory, mut chains: Vec<EvictedChain>) -> Eviction {
    let mut eviction = Eviction::default();
    for chain in &mut chains {
        chain.snapshots = chain.removed.len();
        chain.bytes = chain.removed.iter().map(|(_, usage)| usage.bytes).sum();
        let layers = chain.chain_id.iter();
        let layers = layers.flat_map(|top| inventory.lineage(top)).count();
        chain.kept = layers - chain.snapshots;
        eviction.snapshots += chain.snapshots;
        eviction.bytes += chain.bytes;
        let inodes = chain.removed.iter().map(|(_, usage)| usage.inodes);
        eviction.inodes += inodes.sum::<u64>();
    }
    chains.sort_by(|left, right| left.images.cmp(&right.images));
    eviction.chains = chains;
    eviction
}
