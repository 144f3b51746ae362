// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The sources of layers that an evicted image would need again.

use std::collections::BTreeSet;
use std::sync::Arc;

use resnap_core::{Error, Labels};
use tokio::sync::OnceCell;

use crate::lease::{JobLease, LeaseKeeper};
use crate::missing::missing_layer;
use crate::sibling::{Layers, Sibling};
use crate::sources::{Source, Tried};
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

/// Finds the layers that can be copied from another snapshotter, as a job does. The view of them is
/// removed.
async fn find_sibling(
    keeper: &Arc<LeaseKeeper>,
    plan: &Plan,
    snapshotter: &str,
) -> Result<Result<Sibling, Error>, UnpackError> {
    let lease = JobLease::new(
        Arc::clone(keeper),
        &plan.image.target.digest,
        None,
        &plan.image.name,
        snapshotter,
    );
    let found = async {
        lease.begin().await?;
        let layers = Layers {
            backend: &keeper.backend,
            lease: &lease,
            plan,
            first: 0,
        };
        let sibling = Sibling::find(layers, snapshotter).await?;
        sibling.end(&keeper.backend).await;
        Ok(sibling)
    };
    let found = found.await;
    let ended = lease.end(false).await;
    ended.map_err(|error| UnpackError::Backend(error.into_source()))?;
    Ok(found)
}
