// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Unpacking a chain: layers that exist are kept, the others are made in order.

use std::sync::Arc;

use resnap_core::{Error, Integrity, Kind, error_chain, labels};
use tokio::time::Instant;
use tracing::Instrument as _;
use tracing::field::Empty;

use crate::artifacts::{find_signatures, keep_artifact};
use crate::backend::Backend;
use crate::chain::Chain;
use crate::event::{LayerOutcome, LayerReport, Phase};
use crate::layer::{MissingLayer, MissingLayers, start_batch};
use crate::lease::LeaseKeeper;
use crate::lost::remove_lost;
use crate::orphans::take_over;
use crate::plan::PlannedLayer;
use crate::proofs::seal;
use crate::repair::repair;
use crate::supply::Supply;
use crate::{Plan, UnpackError};

/// Unpacks the chain, protects it from garbage collection by a label of the config blob, and
/// returns the reports of its layers.
pub(crate) async fn unpack(
    chain: &Chain,
    keeper: &LeaseKeeper,
) -> Result<Vec<LayerReport>, UnpackError> {
    let (spec, layers) = (&chain.job.spec, chain.layers());
    let Some(top) = layers.last() else {
        // Nothing else would notice a wrong name.
        chain.backend.require_snapshotter(&spec.snapshotter).await?;
        return Ok(Vec::new());
    };
    let (applier, integrity) = (&chain.backend.ports.applier, chain.integrity());
    if integrity.is_on() {
        let required = applier
            .require_integrity(&spec.snapshotter, integrity)
            .await;
        required.map_err(|source| UnpackError::NoProof {
            image: spec.title.clone(),
            snapshotter: spec.snapshotter.clone(),
            source,
        })?;
    }
    if spec.repair {
        repair_existing(chain).await?;
    }
    let is_rooted = is_rooted(&chain.backend, &spec.plan, &spec.snapshotter).await;
    if is_rooted.map_err(|error| chain.failed(error))?
        && chain.find(top).await?.is_some()
        && chain.require_complete(layers.len()).await?
    {
        take_over_orphans(chain, keeper, top).await;
        keep_artifact(chain).await?;
        return Ok(report_existing(chain, layers.len()));
    }
    let leased = chain.lease.begin().await;
    leased.map_err(|error| chain.failed(error))?;
    let mut present = keep_present(chain).await?;
    while !chain.require_complete(present).await? {
        present = keep_present(chain).await?;
    }
    take_over_orphans(chain, keeper, top).await;
    let mut reports = report_existing(chain, present);
    let supply = tokio::select! {
        supply = Supply::plan(chain, present) => Arc::new(supply?),
        () = chain.job.cancelled() => return Err(chain.job.cancelled_error()),
    };
    let made = tokio::select! {
        made = make_missing(chain, &supply, present, &mut reports) => made,
        never = supply.fetch_planned(chain) => match never {},
    };
    supply.end(chain).await;
    made?;
    keep_artifact(chain).await?;
    root(chain).await?;
    if chain.has_waited() {
        // The process that this job waited for was running at the last sweep, and may have ended
        // since.
        take_over_orphans(chain, keeper, top).await;
    }
    Ok(reports)
}

/// Gives the layers that exist the labels and proofs they lack, and removes the records of those that do not.
async fn repair_existing(chain: &Chain) -> Result<(), UnpackError> {
    remove_lost(chain).await?;
    match chain.integrity() {
        Integrity::Off => repair(chain).await,
        Integrity::Verity => {
            repair(chain).await?;
            seal(chain).await
        }
        Integrity::Signed => {
            let unsealed = match seal(chain).await {
                Ok(()) => return Ok(()),
                Err(UnpackError::Layer { source, .. }) if cannot_be_sealed(&source) => {
                    error_chain(&source)
                }
                Err(error) => return Err(error),
            };
            // A layer that cannot get its proof as it is, is made again, unless it is used.
            let (image, why) = (&chain.job.spec.title, &unsealed);
            tracing::warn!(image, why, "a layer gets no signature as it is");
            let mut repaired = repair(chain).await;
            if let Err(UnpackError::InUse { why, .. }) = &mut repaired {
                *why = Some(unsealed);
            }
            repaired
        }
    }
}

/// Returns whether the layer itself is the reason why it did not get its proof.
fn cannot_be_sealed(error: &Error) -> bool {
    matches!(
        error.kind(),
        Kind::FailedPrecondition | Kind::DataLoss | Kind::InvalidArgument | Kind::NotFound
    )
}

/// Makes the layers from `first` on. Their blobs are fetched meanwhile.
async fn make_missing(
    chain: &Chain,
    supply: &Arc<Supply>,
    first: usize,
    reports: &mut Vec<LayerReport>,
) -> Result<(), UnpackError> {
    tokio::select! {
        found = find_signatures(chain, first) => found?,
        () = chain.job.cancelled() => return Err(chain.job.cancelled_error()),
    }
    let layers = supply.batch_layers(chain);
    let missing = MissingLayers {
        first,
        batch: start_batch(chain, supply, first, layers),
        supply: Arc::clone(supply),
    };
    let made = make_in_order(chain, &missing, reports).await;
    // Before the snapshot that a failed layer is being written to is removed.
    missing.batch.end().await;
    made
}

async fn make_in_order(
    chain: &Chain,
    missing: &MissingLayers,
    reports: &mut Vec<LayerReport>,
) -> Result<(), UnpackError> {
    let layers = chain.layers().iter().enumerate();
    for (index, layer) in layers.skip(missing.first) {
        let started = Instant::now();
        let (digest, bytes) = (&layer.descriptor.digest, layer.descriptor.size);
        let chain_id = &layer.chain_id;
        let span = tracing::info_span!("layer", index, %digest, %chain_id, bytes, outcome = Empty);
        let layer = MissingLayer {
            chain,
            batch: missing,
            index,
        };
        let made = layer.make().instrument(span.clone()).await;
        let outcome = made.inspect_err(|_| {
            span.record("outcome", "failed");
            chain.job.emit(index, Phase::Failed);
        })?;
        span.record("outcome", tracing::field::debug(outcome));
        chain.job.emit(index, outcome.into());
        reports.push(chain.report(index, outcome, started));
    }
    Ok(())
}

/// Releases orphaned leases; this job has to keep the layers that were made under them.
async fn take_over_orphans(chain: &Chain, keeper: &LeaseKeeper, top: &PlannedLayer) {
    if take_over(keeper, &chain.job.spec.snapshotter, &top.chain_id).await {
        chain.lease.keep_on_failure();
    }
}

/// Adds the highest layer that exists to the lease, and returns the number of layers that need not
/// be made. The parents of a committed snapshot exist.
async fn keep_present(chain: &Chain) -> Result<usize, UnpackError> {
    for (index, layer) in chain.layers().iter().enumerate().rev() {
        if chain.find(layer).await?.is_some() && chain.adopt(index, layer).await?.is_some() {
            return Ok(index + 1);
        }
    }
    Ok(0)
}

/// Returns the label of a config blob that keeps the chain on a snapshotter.
pub(crate) fn gc_label(snapshotter: &str) -> String {
    format!("{}{snapshotter}", labels::GC_SNAPSHOT_PREFIX)
}

/// Returns whether the label of the config blob already protects the whole chain from garbage
/// collection.
pub(crate) async fn is_rooted(
    backend: &Backend,
    plan: &Plan,
    snapshotter: &str,
) -> Result<bool, Error> {
    let content = &backend.ports.content;
    let info = content.info(&backend.scope, &plan.config.digest).await?;
    let root = info.labels.get(&gc_label(snapshotter)).map(String::as_str);
    Ok(root == plan.top().map(|top| top.as_str()))
}

/// Sets the label of the config blob that protects the chain from garbage collection.
async fn root(chain: &Chain) -> Result<(), UnpackError> {
    let (backend, plan) = (&chain.backend, &chain.job.spec.plan);
    let Some(top) = plan.top() else {
        return Ok(());
    };
    let (labeler, config) = (&backend.ports.labeler, &plan.config.digest);
    let label = gc_label(&chain.job.spec.snapshotter);
    let labelled = labeler.set_label(&backend.scope, config, &label, top.as_str());
    labelled.await.map_err(|error| chain.failed(error))
}

/// Emits the events of the lowest `count` layers, which exist, and returns their reports.
fn report_existing(chain: &Chain, count: usize) -> Vec<LayerReport> {
    let started = Instant::now();
    let reports = (0..count).map(|index| {
        chain.job.emit(index, Phase::Existed);
        chain.report(index, LayerOutcome::Existed, started)
    });
    reports.collect()
}
