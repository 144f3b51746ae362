// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The sources of layers that an evicted image would need again.

use std::collections::BTreeSet;
use std::sync::Arc;

use resnap_core::{Error, Inspection, Kind, Labels};
use tokio::sync::OnceCell;

use crate::lease::LeaseKeeper;
use crate::missing::missing_layer;
use crate::sibling::{Sibling, within_lease};
use crate::sources::{Source, Tried};
use crate::unpack::is_rooted;
use crate::{Plan, UnpackError};

/// Tries the sources for the layers at these indices, whose blobs are missing, and returns the first
/// one that none of them has, and why. `labels` are those of the manifest.
pub(crate) async fn first_lacking(
    keeper: &Arc<LeaseKeeper>,
    plan: &Plan,
    snapshotter: &str,
    labels: &Labels,
    missing: &[usize],
) -> Result<Option<(usize, Vec<Tried>)>, UnpackError> {
    let backend = &keeper.backend;
    let sibling = OnceCell::new();
    for index in missing {
        let layer = &plan.layers[*index].descriptor;
        let blob = missing_layer(backend, plan, layer, labels, BTreeSet::new()).await;
        let mut tried = Vec::new();
        let mut is_there = false;
        for source in &backend.sources {
            let found = match source {
                // Opening a blob shows that it is there, and that its registry gives it.
                Source::Blobs(source) => source.open(&blob, 0).await.map(drop),
                Source::Sibling { .. } => {
                    let find = || find_sibling(keeper, plan, snapshotter);
                    match sibling.get_or_try_init(find).await? {
                        Ok(sibling) => sibling.copy(*index).map(drop),
                        Err(error) => Err(error.clone()),
                    }
                }
            };
            match found {
                Ok(()) => {
                    is_there = true;
                    break;
                }
                Err(error) => tried.push(Tried::new(source.name(), error)),
            }
        }
        if !is_there {
            return Ok(Some((*index, tried)));
        }
    }
    Ok(None)
}

/// Finds the layers that can be copied from another snapshotter, as a job does, and that stay there. The
/// view of them is removed.
async fn find_sibling(
    keeper: &Arc<LeaseKeeper>,
    plan: &Plan,
    snapshotter: &str,
) -> Result<Result<Sibling, Error>, UnpackError> {
    // What this relies on may be all that is left.
    within_lease(keeper, plan, snapshotter, async |layers| {
        let sibling = Sibling::find(layers, snapshotter, Inspection::Full).await?;
        sibling.end(&keeper.backend).await;
        let other = sibling.snapshotter();
        if !is_rooted(&keeper.backend, plan, other).await? {
            let unkept = Error::new(Kind::FailedPrecondition, "copy layers from", other);
            return Err(unkept.with_source("the image does not keep them there"));
        }
        Ok(sibling)
    })
    .await
}
