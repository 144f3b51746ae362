// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Chains that somebody unpacked without labels.

use resnap_core::{Kind, Labels, SnapshotKey, labels};

use crate::UnpackError;
use crate::chain::{Chain, TRIES};
use crate::plan::PlannedLayer;

/// How a try to remove layers ended.
enum Removal {
    Done,
    /// Somebody else was at it, or else this is in the way.
    Again(Option<UnpackError>),
}

impl Chain {
    /// Gives the layers that are there the labels they lack: by setting them where that makes of a
    /// snapshot what it would have been with them; else the layers are removed, from the top down,
    /// to be made again. Nothing is changed where a snapshot to be removed is in use.
    pub(crate) async fn repair(&self) -> Result<(), UnpackError> {
        let layers = &self.flight.plan.layers;
        let need = self.shared.profiles.need(&self.flight.snapshotter);
        if let (Some(repair_label), Some(top)) =
            (need.and_then(|need| need.repair_label), layers.last())
        {
            return self.mend(top, repair_label).await;
        }
        let mut obstacle = None;
        for _ in 0..TRIES {
            match self.remove_unlabelled().await? {
                Removal::Done => return Ok(()),
                Removal::Again(why) => obstacle = why,
            }
        }
        obstacle.map_or(Ok(()), Err)
    }

    /// Removes the lowest layer without labels and those above.
    async fn remove_unlabelled(&self) -> Result<Removal, UnpackError> {
        let layers = &self.flight.plan.layers;
        let mut present = 0;
        let mut lowest = None;
        for (index, layer) in layers.iter().enumerate() {
            let Some(info) = self.find(layer).await? else {
                break;
            };
            present = index + 1;
            if lowest.is_none() && !labels::missing(&info.labels).is_empty() {
                lowest = Some(index);
            }
        }
        let Some(lowest) = lowest else {
            return Ok(Removal::Done);
        };
        for (index, layer) in layers.iter().enumerate().take(present).skip(lowest) {
            self.require_unused(index).await?;
            // What could not be made again must not be removed.
            self.require_blob(layer).await?;
        }
        for (index, layer) in layers[lowest..present].iter().enumerate().rev() {
            let _lock = self.lock(lowest + index).await?;
            // As long as the lowest is the old one, so are those above: what another repair made
            // while we waited must not be removed.
            let old = self.find(&layers[lowest]).await?;
            if old.is_none_or(|info| labels::missing(&info.labels).is_empty()) {
                return Ok(Removal::Again(None));
            }
            let removed = self
                .snapshotter
                .remove(&self.shared.scope, &SnapshotKey::from(&layer.chain_id))
                .await;
            let index = lowest + index;
            match removed {
                Err(error) if error.kind() == Kind::FailedPrecondition => {
                    // Somebody builds on it by now, which the next look tells. If nobody does,
                    // containerd counts as a child what garbage collection has removed, and then
                    // only garbage collection removes the parent.
                    return Ok(Removal::Again(Some(UnpackError::Unremovable {
                        image: self.flight.title.clone(),
                        chain_id: layer.chain_id.clone(),
                        snapshotter: self.flight.snapshotter.clone(),
                        source: error,
                    })));
                }
                Err(error) if !error.is_not_found() => return Err(self.failed_layer(index, error)),
                _ => {}
            }
        }
        Ok(Removal::Done)
    }

    async fn mend(
        &self,
        top: &PlannedLayer,
        (key, value): (&str, &str),
    ) -> Result<(), UnpackError> {
        let Some(info) = self.find(top).await? else {
            return Ok(());
        };
        if labels::missing(&info.labels).is_empty() {
            return Ok(());
        }
        let mut labels: Labels = top.labels.clone();
        labels.insert(key.to_owned(), value.to_owned());
        let (scope, key) = (&self.shared.scope, SnapshotKey::from(&top.chain_id));
        let mended = self.snapshotter.set_labels(scope, &key, &labels);
        match mended.await {
            // Garbage collection was faster: then it is made, with its labels.
            Err(error) if !error.is_not_found() => Err(self.failed(error)),
            _ => Ok(()),
        }
    }

    /// That nothing stands on a layer but the next one of this image.
    async fn require_unused(&self, index: usize) -> Result<(), UnpackError> {
        let layers = &self.flight.plan.layers;
        let layer = &layers[index];
        let key = SnapshotKey::from(&layer.chain_id);
        let scope = &self.shared.scope;
        let children = self.snapshotter.children(scope, &key).await;
        let children = children.map_err(|error| self.failed_layer(index, error))?;
        let next = layers.get(index + 1);
        let next = next.map(|next| SnapshotKey::from(&next.chain_id));
        let other = children
            .into_iter()
            .find(|child| Some(&child.key) != next.as_ref());
        let Some(other) = other else {
            return Ok(());
        };
        let containers = self.shared.ports.containers.list(scope).await;
        let containers = containers.map_err(|error| self.failed(error))?;
        let container = containers.into_iter().find(|container| {
            container.snapshotter == self.flight.snapshotter && container.snapshot == other.key
        });
        Err(UnpackError::InUse {
            image: self.flight.title.clone(),
            chain_id: layer.chain_id.clone(),
            snapshotter: self.flight.snapshotter.clone(),
            by: match container {
                Some(container) => format!("container {}", container.id),
                None => format!("snapshot {}", other.key),
            },
        })
    }

    /// Where the snapshotter needs labels, the lowest `count` layers must have them. Answers whether
    /// all that were looked at are there: a repair may be removing them.
    pub(crate) async fn require_labels(&self, count: usize) -> Result<bool, UnpackError> {
        let Some(need) = self.shared.profiles.need(&self.flight.snapshotter) else {
            return Ok(true);
        };
        let layers = &self.flight.plan.layers;
        let looked_at = layers[..count].iter().enumerate();
        for (_, layer) in looked_at.filter(|(index, _)| need.covers(*index, layers.len())) {
            let Some(info) = self.find(layer).await? else {
                return Ok(false);
            };
            let missing = labels::missing(&info.labels);
            if !missing.is_empty() {
                return Err(UnpackError::Unlabelled {
                    image: self.flight.title.clone(),
                    chain_id: layer.chain_id.clone(),
                    snapshotter: self.flight.snapshotter.clone(),
                    missing,
                });
            }
        }
        Ok(true)
    }
}
