// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Repair of a chain that another client unpacked without labels, or whose layers are wrong.

use std::ops::Range;

use resnap_core::{Inspection, Integrity, Kind, Labels, SnapshotInfo, SnapshotKey, labels};

use crate::artifacts::find_signatures;
use crate::chain::{ATTEMPTS, Chain};
use crate::intact::require_intact;
use crate::plan::PlannedLayer;
use crate::supply::Supply;
use crate::{EngineEvent, UnpackError};

/// The result of an attempt to remove layers.
enum Removal {
    Done,
    /// Another client interfered; the error is the obstacle, if there is one.
    Retry(Option<UnpackError>),
}

/// Gives the existing layers the labels they lack: by setting them if that makes the snapshot what
/// it would have been with them from the start, otherwise by removing the layers from the top down,
/// to be made again. Nothing is changed if a snapshot to be removed is in use.
pub(crate) async fn repair(chain: &Chain) -> Result<(), UnpackError> {
    let need = chain.backend.profiles.need(&chain.job.spec.snapshotter);
    let repair_label = need.and_then(|need| need.repair_label);
    if let (Some(repair_label), Some(top)) = (repair_label, chain.layers().last()) {
        return set_labels(chain, top, repair_label).await;
    }
    let mut obstacle = None;
    for _ in 0..ATTEMPTS {
        match remove_unlabelled(chain).await? {
            Removal::Done => return Ok(()),
            Removal::Retry(why) => obstacle = why,
        }
    }
    obstacle.map_or(Ok(()), Err)
}

/// Removes the lowest layer without labels and those above.
async fn remove_unlabelled(chain: &Chain) -> Result<Removal, UnpackError> {
    let layers = chain.layers();
    let mut present = 0;
    let mut lowest = None;
    for (index, layer) in layers.iter().enumerate() {
        let Some(info) = chain.find(layer).await? else {
            break;
        };
        present = index + 1;
        if lowest.is_none() && needs_repair(chain, &info) {
            lowest = Some(index);
        }
    }
    let Some(lowest) = lowest else {
        return Ok(Removal::Done);
    };
    for index in lowest..present {
        require_unused(chain, index).await?;
    }
    require_content(chain, lowest..present).await?;
    if !chain.job.spec.wrong.is_empty() {
        require_intact(chain, lowest..present).await?;
    }
    for index in (lowest..present).rev() {
        let _lock = chain.lock(index).await?;
        // While the lowest layer is the old one, so are those above: a layer that another repair
        // made meanwhile must not be removed.
        let old = chain.find(&layers[lowest]).await?;
        if old.is_none_or(|info| !needs_repair(chain, &info)) {
            return Ok(Removal::Retry(None));
        }
        if let Some(obstacle) = remove(chain, index).await? {
            return Ok(Removal::Retry(Some(obstacle)));
        }
    }
    chain.job.notify_observer(&EngineEvent::Repaired);
    Ok(Removal::Done)
}

/// Checks that layers can be made again, with signatures if they need them, and fetches what is missing for
/// that.
pub(crate) async fn require_content(
    chain: &Chain,
    layers: Range<usize>,
) -> Result<(), UnpackError> {
    let leased = chain.lease.begin().await;
    leased.map_err(|error| chain.failed(error))?;
    find_signatures(chain, layers.start).await?;
    // The layers are removed before they are copied.
    let supply = Supply::plan_all(chain, layers.start, Inspection::Full).await?;
    let required = supply.require(chain, layers).await;
    supply.end(chain).await;
    required
}

/// Returns whether a layer lacks labels, or is a copy to be replaced; in a job that heals, whether it is one
/// of the wrong ones.
fn needs_repair(chain: &Chain, info: &SnapshotInfo) -> bool {
    let wrong = &chain.job.spec.wrong;
    if !wrong.is_empty() {
        return wrong.get(&info.key) == Some(&info.created);
    }
    let is_copy = info.labels.contains_key(labels::COPIED_FROM);
    let is_incomplete = !labels::missing(&info.labels).is_empty();
    let need = chain.backend.profiles.need(&chain.job.spec.snapshotter);
    match chain.integrity() {
        Integrity::Off => is_incomplete || chain.job.spec.replace_copies && is_copy,
        // A layer that is used gets a tree, too: it is not removed for labels that nobody needs.
        Integrity::Verity => is_copy || is_incomplete && need.is_some(),
        Integrity::Signed => Integrity::Signed.missing(&info.labels).is_some(),
    }
}

/// Removes a layer; returns the error if containerd refuses because of a child.
pub(crate) async fn remove(
    chain: &Chain,
    index: usize,
) -> Result<Option<UnpackError>, UnpackError> {
    let layer = &chain.layers()[index];
    let key = SnapshotKey::from(&layer.chain_id);
    let removed = chain.snapshotter.remove(&chain.backend.scope, &key).await;
    match removed {
        // A child was made meanwhile, which the next attempt finds. If it finds none, containerd
        // counts a child that garbage collection has removed, and only garbage collection can
        // remove the parent.
        Err(error) if error.kind() == Kind::FailedPrecondition => {
            Ok(Some(UnpackError::Unremovable {
                image: chain.job.spec.title.clone(),
                chain_id: layer.chain_id.clone(),
                snapshotter: chain.job.spec.snapshotter.clone(),
                source: error,
            }))
        }
        Err(error) if !error.is_not_found() => Err(chain.failed_layer(index, error)),
        _ => Ok(None),
    }
}

async fn set_labels(
    chain: &Chain,
    top: &PlannedLayer,
    (key, value): (&str, &str),
) -> Result<(), UnpackError> {
    let Some(info) = chain.find(top).await? else {
        return Ok(());
    };
    if labels::missing(&info.labels).is_empty() {
        return Ok(());
    }
    let mut labels: Labels = top.labels.clone();
    labels.insert(key.to_owned(), value.to_owned());
    let (scope, key) = (&chain.backend.scope, SnapshotKey::from(&top.chain_id));
    match chain.snapshotter.set_labels(scope, &key, &labels).await {
        // If it was garbage collected meanwhile, it is made again with its labels.
        Err(error) if !error.is_not_found() => Err(chain.failed(error)),
        Err(_) => Ok(()),
        Ok(_) => {
            chain.job.notify_observer(&EngineEvent::Repaired);
            Ok(())
        }
    }
}

/// Checks that a layer has no child but the next layer of this image.
pub(crate) async fn require_unused(chain: &Chain, index: usize) -> Result<(), UnpackError> {
    let (layers, spec) = (chain.layers(), &chain.job.spec);
    let layer = &layers[index];
    let key = SnapshotKey::from(&layer.chain_id);
    let scope = &chain.backend.scope;
    let children = chain.snapshotter.children(scope, &key).await;
    let children = children.map_err(|error| chain.failed_layer(index, error))?;
    let next = layers.get(index + 1);
    let next = next.map(|next| SnapshotKey::from(&next.chain_id));
    let mut children = children.into_iter();
    let Some(other) = children.find(|child| Some(&child.key) != next.as_ref()) else {
        return Ok(());
    };
    let containers = chain.backend.ports.containers.list(scope).await;
    let containers = containers.map_err(|error| chain.failed(error))?;
    let container = containers.into_iter().find(|container| {
        container.snapshotter == spec.snapshotter && container.snapshot == other.key
    });
    Err(UnpackError::InUse {
        image: spec.title.clone(),
        chain_id: layer.chain_id.clone(),
        snapshotter: spec.snapshotter.clone(),
        by: match container {
            Some(container) => format!("container {}", container.id),
            None => format!("snapshot {}", other.key),
        },
        why: None,
    })
}
