// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The reasons against the eviction of a chain.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use resnap_core::{Digest, Labels, SnapshotInfo, SnapshotKey, error_chain, labels};

use crate::evict_sources::first_lacking;
use crate::eviction::Refusal;
use crate::image::is_backend_failure;
use crate::inventory::{Inventory, list_snapshots};
use crate::lease::LeaseKeeper;
use crate::planner::Planner;
use crate::unpack::gc_label;
use crate::{EvictRequest, Request, UnpackError};

/// The facts by which chains are refused.
pub(crate) struct EvictCheck<'a> {
    keeper: &'a Arc<LeaseKeeper>,
    planner: &'a Planner,
    inventory: &'a Inventory,
    request: &'a EvictRequest,
    /// The blobs that are there for longer than a lease.
    kept_blobs: BTreeSet<Digest>,
    /// The configs of the sandbox images.
    sandboxes: BTreeSet<Digest>,
    /// The snapshots of the snapshotter that the images were moved to.
    moved: BTreeMap<SnapshotKey, SnapshotInfo>,
}

impl<'a> EvictCheck<'a> {
    pub(crate) async fn new(
        keeper: &'a Arc<LeaseKeeper>,
        planner: &'a Planner,
        inventory: &'a Inventory,
        request: &'a EvictRequest,
    ) -> Result<Self, UnpackError> {
        let mut sandboxes = BTreeSet::new();
        for image in &request.sandbox_images {
            match planner.resolve(image).await {
                Ok(image) => {
                    let labels = inventory.labels_of(&image.target.digest);
                    sandboxes.extend(labels.into_iter().map(|label| label.config.clone()));
                }
                Err(UnpackError::NoSuchImage { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let moved = match &request.moved_to {
            Some(snapshotter) => list_snapshots(&keeper.backend, snapshotter).await?,
            None => BTreeMap::new(),
        };
        Ok(Self {
            keeper,
            planner,
            inventory,
            request,
            kept_blobs: inventory.kept_blobs(),
            sandboxes,
            moved,
        })
    }

    /// Returns the reason why a chain must stay, if there is one.
    pub(crate) async fn refusal(
        &self,
        chain: &SnapshotKey,
        configs: &BTreeSet<Digest>,
    ) -> Result<Option<Refusal>, UnpackError> {
        let snapshotter = &self.request.snapshotter;
        for config in configs {
            let names = self.inventory.names_of(config);
            let Some(image) = names.first() else {
                continue;
            };
            let image = image.clone();
            // containerd pins it, and would do so again.
            if self.sandboxes.contains(config) {
                let snapshotter = snapshotter.clone();
                return Ok(Some(Refusal::Sandbox { image, snapshotter }));
            }
            if let Some(image) = names.iter().find(|name| self.is_pinned(name)) {
                return Ok(Some(Refusal::Pinned {
                    image: image.clone(),
                    namespace: self.keeper.backend.scope.namespace.to_string(),
                }));
            }
            if let Some(to) = &self.request.moved_to
                && !self.is_moved(chain, config, to)
            {
                let snapshotter = to.clone();
                return Ok(Some(Refusal::NotMoved { image, snapshotter }));
            }
            // A config may have several manifests, and a name may stand for another one.
            let mut manifests = BTreeSet::new();
            for image in names {
                let refusal = self.missing_layer(image, config, &mut manifests).await?;
                if refusal.is_some() {
                    return Ok(refusal);
                }
            }
        }
        Ok(None)
    }

    /// Returns whether a config keeps the same chain on the other snapshotter.
    fn is_moved(&self, chain: &SnapshotKey, config: &Digest, to: &str) -> bool {
        let labels = self.inventory.blobs.get(config);
        let kept = labels.and_then(|labels| labels.get(&gc_label(to)));
        kept.is_some_and(|kept| kept == chain.as_str()) && self.moved.contains_key(chain)
    }

    fn is_pinned(&self, name: &str) -> bool {
        let image = self.inventory.images.get(name);
        let label = image.and_then(|image| image.labels.get(labels::PINNED));
        label.is_some_and(|value| value == labels::PINNED_VALUE)
    }

    /// Returns the refusal for an image of which a layer could not be unpacked again. One that does not
    /// need the config, or has one of these manifests, is not looked at; its manifest is added.
    async fn missing_layer(
        &self,
        image: &str,
        config: &Digest,
        manifests: &mut BTreeSet<Digest>,
    ) -> Result<Option<Refusal>, UnpackError> {
        let EvictRequest {
            snapshotter,
            is_prepared,
            pick,
            ..
        } = self.request;
        if *is_prepared && self.keeper.backend.profiles.need(snapshotter).is_some() {
            // With labels it needs no blobs.
            return Ok(None);
        }
        let request = Request {
            pick: *pick,
            ..Request::new(image).on(snapshotter.as_str())
        };
        let plan = match self.planner.plan(&request).await {
            Ok(plan) => plan,
            // No container of this machine needs it.
            Err(UnpackError::NoManifest { .. } | UnpackError::Unsupported { .. }) => {
                return Ok(None);
            }
            Err(error) if is_backend_failure(error.kind()) => return Err(error),
            Err(error) => {
                return Ok(Some(Refusal::Unreadable {
                    image: image.to_owned(),
                    reason: error_chain(&error),
                }));
            }
        };
        if plan.config.digest != *config || !manifests.insert(plan.manifest.digest.clone()) {
            return Ok(None);
        }
        let layers = plan.layers.iter().enumerate();
        let missing =
            layers.filter(|(_, layer)| !self.kept_blobs.contains(&layer.descriptor.digest));
        let missing: Vec<usize> = missing.map(|(index, _)| index).collect();
        let lacking = match is_prepared {
            true => {
                let none = Labels::new();
                let labels = self.inventory.blobs.get(&plan.manifest.digest);
                let labels = labels.unwrap_or(&none);
                first_lacking(self.keeper, &plan, snapshotter, labels, &missing).await?
            }
            false => missing.first().map(|first| (*first, Vec::new())),
        };
        Ok(lacking.map(|(index, tried)| Refusal::MissingLayer {
            image: image.to_owned(),
            digest: plan.layers[index].descriptor.digest.clone(),
            snapshotter: snapshotter.clone(),
            is_prepared: *is_prepared,
            tried,
        }))
    }
}
