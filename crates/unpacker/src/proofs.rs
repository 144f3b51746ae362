// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Proofs of committed layers: those that were unpacked without get them, and `check` looks for the use of
//! them.

use std::collections::BTreeMap;
use std::sync::Arc;

use resnap_core::{
    Integrity, Kind, Labels, LayerToSeal, Mount, ProofOrigin, SnapshotKey, labels as names,
};

use crate::artifacts::{find_signatures, reject_artifact};
use crate::chain::Chain;
use crate::lease::LeaseKeeper;
use crate::repair::require_content;
use crate::sibling::{Layers, Sibling, committed, viewed};
use crate::{Check, LayerState, Plan, UnpackError};

/// Gives the layers that exist the proofs they lack, from the base up, so that a layer with a proof has
/// only parents with one. Nothing is removed, and no container is disturbed.
pub(crate) async fn seal(chain: &Chain) -> Result<(), UnpackError> {
    let (backend, spec) = (&chain.backend, &chain.job.spec);
    let snapshots = committed(backend, &spec.plan, &spec.snapshotter).await;
    let snapshots = snapshots.map_err(|error| chain.failed(error))?;
    let integrity = chain.integrity();
    let lacks = |labels: &Labels| integrity.missing(labels).is_some();
    let mut lacking = snapshots.iter();
    let Some(first) = lacking.position(|snapshot| lacks(&snapshot.labels)) else {
        return Ok(());
    };
    let leased = chain.lease.begin().await;
    leased.map_err(|error| chain.failed(error))?;
    let layers = Layers {
        backend,
        lease: &chain.lease,
        plan: &spec.plan,
        first: 0,
    };
    let view = Sibling::view(layers, spec.snapshotter.clone(), snapshots).await;
    let view = view.map_err(|error| chain.failed(error))?;
    let sealed = async {
        if integrity == Integrity::Signed {
            let layers = first..view.chain().snapshots.len();
            require_content(chain, layers).await?;
        }
        let mut index = first;
        while index < view.chain().snapshots.len() {
            // Again, if an artifact was rejected. Others may wait for the chain lock.
            if integrity == Integrity::Signed {
                find_signatures(chain, first).await?;
            }
            index += usize::from(seal_layer(chain, &view, index).await?);
        }
        Ok(())
    };
    let sealed = tokio::select! {
        sealed = sealed => sealed,
        () = chain.job.cancelled() => Err(chain.job.cancelled_error()),
    };
    view.end(backend).await;
    sealed
}

/// Gives a layer its proof. Returns false if its artifact was wrong.
async fn seal_layer(chain: &Chain, view: &Sibling, index: usize) -> Result<bool, UnpackError> {
    let (backend, integrity) = (&chain.backend, chain.integrity());
    let layer = &chain.layers()[index];
    let _lock = chain.lock(index).await?;
    // The previous holder of the lock may have done it.
    let found = chain.find(layer).await?;
    if found.is_none_or(|info| integrity.missing(&info.labels).is_none()) {
        return Ok(true);
    }
    let failed = |error| chain.failed_layer(index, error);
    let signed = chain.signatures.get(index);
    let layer_to_seal = LayerToSeal {
        chain: view.chain(),
        index,
        descriptor: &layer.descriptor,
        diff_id: &layer.diff_id,
        signed: signed.filter(|_| integrity == Integrity::Signed),
    };
    let sealed = backend.ports.applier.seal(&backend.scope, layer_to_seal);
    let proof = match sealed.await {
        Err(error) if reject_artifact(chain, index, &error) => return Ok(false),
        sealed => sealed.map_err(failed)?,
    };
    let key = SnapshotKey::from(&layer.chain_id);
    let mut labels = proof.labels();
    if proof.origin == ProofOrigin::Artifact {
        // The image was replaced; an empty value removes the label.
        labels.insert(names::COPIED_FROM.to_owned(), String::new());
    }
    let set = chain.snapshotter.set_labels(&backend.scope, &key, &labels);
    match set.await {
        // If it was garbage collected meanwhile, it is made again with its proof.
        Err(error) if error.kind() != Kind::NotFound => Err(failed(error)),
        _ => Ok(true),
    }
}

/// Adds warnings of snapshotters that mount layers without the trees which they have. Each is looked at
/// once, by the first of its images whose layers all have trees.
pub(crate) async fn warn_of_unused(
    keeper: &Arc<LeaseKeeper>,
    checks: &mut [(Arc<Plan>, &mut Check)],
) {
    let mut warnings: BTreeMap<String, Option<String>> = BTreeMap::new();
    for (plan, check) in checks {
        let names: Vec<String> = proven_on(check).cloned().collect();
        for name in names {
            if !warnings.contains_key(&name) {
                let warning = unused(keeper, plan, &name).await;
                warnings.insert(name.clone(), warning);
            }
            check.warnings.extend(warnings[&name].clone());
        }
    }
}

/// Returns the snapshotters on which all layers have trees.
fn proven_on(check: &Check) -> impl Iterator<Item = &String> {
    let is_proven = |state: Option<&LayerState>| {
        matches!(state, Some(LayerState::Committed { proof: Some(_), .. }))
    };
    let names = check.snapshotters.keys();
    names.filter(move |name| {
        let mut layers = check.layers.iter();
        !check.layers.is_empty() && layers.all(|layer| is_proven(layer.snapshots.get(*name)))
    })
}

/// Returns the warning if the snapshotter mounts the layers without their trees.
async fn unused(keeper: &Arc<LeaseKeeper>, plan: &Plan, name: &str) -> Option<String> {
    match is_mounted_by_trees(keeper, plan, name).await {
        Ok(false) => Some(format!(
            "on {name}, layers are mounted without their dm-verity trees: containerd before 2.3 knows none, and later ones need dmverity_mode = \"auto\" or \"on\""
        )),
        looked => {
            tracing::debug!(?looked, name, "looked at the mounts of a chain");
            None
        }
    }
}

/// Returns whether the mounts of a view name trees.
async fn is_mounted_by_trees(
    keeper: &Arc<LeaseKeeper>,
    plan: &Plan,
    snapshotter: &str,
) -> Result<bool, UnpackError> {
    let chain = viewed(keeper, plan, snapshotter).await?;
    let options = chain.mounts.iter().flat_map(|mount| &mount.options);
    let mut options = options.flat_map(|options| options.split(','));
    Ok(options.any(Mount::is_verity_option))
}
