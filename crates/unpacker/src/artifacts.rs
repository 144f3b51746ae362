// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The artifacts that publishers attach to images: indexes of layers, and signatures of root hashes.
//!
//! Whoever may push to a repository may attach an artifact, and no digest of the image covers it. So nothing of
//! one is used before its signatures are accepted. Which artifact an image was unpacked with is a label of the
//! manifest, which also keeps the artifact: another one is not used afterwards, whatever a registry has then.

use std::time::Duration;

use resnap_core::{Error, Integrity, Kind, Proof, error_chain, labels};
use tokio::time::timeout;

use crate::UnpackError;
use crate::artifact_search::{Refusal, Search};
use crate::chain::Chain;

/// The time limit for an artifact where layers need no signature: a job does without, rather than wait for
/// whoever attaches artifacts.
const TIME: Duration = Duration::from_secs(120);

/// The time limit for an artifact where layers need a signature.
const SIGNED_TIME: Duration = Duration::from_secs(600);

/// Finds the signed root hashes of all layers, and fetches the indexes of those from `first` on, unless the job has
/// done so before. Layers that get a proof without have none.
///
/// # Errors
/// [`UnpackError::Unsigned`] if the snapshotter needs signatures, and there are none that are accepted.
pub(crate) async fn find_signatures(chain: &Chain, first: usize) -> Result<(), UnpackError> {
    let (integrity, signatures) = (chain.integrity(), &chain.signatures);
    let trusts = chain.backend.ports.applier.trusts_signers();
    let is_needless = !integrity.is_on() || !trusts || first >= chain.layers().len();
    if is_needless || signatures.are_known() {
        return Ok(());
    }
    let limit = match integrity {
        Integrity::Signed => SIGNED_TIME,
        Integrity::Off | Integrity::Verity => TIME,
    };
    let found = timeout(limit, Search { chain, first }.find()).await;
    let late = |_| Err(Refusal::of_image(format!("none came within {limit:?}")));
    match found.unwrap_or_else(late) {
        Ok(found) => signatures.set(Some(found)),
        // That there is no other artifact says less than why the last one is wrong.
        Err(refusal) if integrity == Integrity::Signed => {
            let rejection = signatures.rejection().map(|rejection| Refusal {
                layer: Some(chain.layers()[rejection.layer].descriptor.digest.clone()),
                root_hash: Some(rejection.root_hash),
                why: rejection.why,
            });
            let refusal = rejection.unwrap_or(refusal);
            return Err(UnpackError::Unsigned {
                image: chain.job.spec.title.clone(),
                snapshotter: chain.job.spec.snapshotter.clone(),
                digest: refusal.layer,
                root_hash: refusal.root_hash,
                why: refusal.why,
            });
        }
        Err(refusal) => {
            let (image, why) = (&chain.job.spec.title, &refusal.why);
            tracing::info!(image, why, "no signed index is used");
            signatures.set(None);
        }
    }
    Ok(())
}

/// Rejects the artifact that a layer could not be written with, if its signed root hash is not that of the layer.
/// Returns whether that is so: [`find_signatures`] looks for another one then.
pub(crate) fn reject_artifact(chain: &Chain, index: usize, error: &Error) -> bool {
    let why = error_chain(error);
    let is_wrong = error.kind() == Kind::PermissionDenied;
    if !is_wrong || !chain.signatures.reject(index, why.clone()) {
        return false;
    }
    let image = &chain.job.spec.title;
    tracing::warn!(image, why, "an artifact is wrong, and is not used");
    true
}

/// Keeps the artifact that all layers have their root hashes of, for as long as the image, and has no other one
/// used afterwards. Not before all layers are there: whoever may push may attach one whose signatures are those of
/// the publisher, and whose indexes are not.
pub(crate) async fn keep_artifact(chain: &Chain) -> Result<(), UnpackError> {
    let Some(found) = chain.signatures.found() else {
        return Ok(());
    };
    for (layer, root) in chain.layers().iter().zip(&found.roots) {
        let info = chain.find(layer).await?;
        let proof = info.and_then(|info| Proof::of(&info.labels));
        if proof.is_none_or(|proof| proof.root_hash != root.root_hash) {
            return Ok(());
        }
    }
    let (backend, manifest) = (&chain.backend, &chain.job.spec.plan.manifest.digest);
    let (labeler, scope, artifact) = (&backend.ports.labeler, &backend.scope, &found.artifact);
    let set = labeler.set_label(scope, manifest, labels::GC_ARTIFACT, artifact.as_str());
    set.await.map_err(|error| chain.failed(error))
}
