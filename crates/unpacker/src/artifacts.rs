// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The artifacts that publishers attach to images: indexes of layers, and signatures of root hashes.
//!
//! Whoever may push to a repository may attach an artifact, and no digest of the image covers it. So nothing of
//! one is used before its signatures are accepted. Which artifact an image was unpacked with is a label of the
//! manifest, which also keeps the artifact: another one is not used afterwards, whatever a registry has then.

use std::time::Duration;

use resnap_core::{Error, Integrity, Kind, error_chain, labels};
use tokio::time::timeout;

use crate::UnpackError;
use crate::artifact_search::{Refusal, Search};
use crate::chain::Chain;

/// The time limit for an artifact where layers need no signature: a job does without, rather than wait for
/// whoever attaches artifacts.
const TIME: Duration = Duration::from_secs(120);

/// The time limit for an artifact where layers need a signature.
const SIGNED_TIME: Duration = Duration::from_secs(600);

/// Finds the signed root hashes of the layers from `first` on, and fetches their indexes, unless the job has
/// done so before. Layers that get a proof without have none.
///
/// # Errors
/// [`UnpackError::Unsigned`] if the snapshotter needs signatures, and there are none that are accepted.
pub(crate) async fn find_signatures(chain: &Chain, first: usize) -> Result<(), UnpackError> {
    let layers = &chain.layers()[first..];
    let (integrity, spec, signatures) = (chain.integrity(), &chain.job.spec, &chain.signatures);
    let trusts = chain.backend.ports.applier.trusts_signers();
    if !integrity.is_on() || !trusts || layers.is_empty() || signatures.are_known() {
        return Ok(());
    }
    let limit = match integrity {
        Integrity::Signed => SIGNED_TIME,
        Integrity::Off | Integrity::Verity => TIME,
    };
    let found = timeout(limit, Search { chain, layers }.find()).await;
    let late = |_| Err(Refusal::of_image(format!("none came within {limit:?}")));
    match found.unwrap_or_else(late) {
        Ok(accepted) => signatures.set(first, accepted.roots, Some(accepted.manifest)),
        Err(refusal) if integrity == Integrity::Signed => {
            return Err(UnpackError::Unsigned {
                image: spec.title.clone(),
                snapshotter: spec.snapshotter.clone(),
                digest: refusal.layer,
                root_hash: refusal.root_hash,
                why: refusal.why,
            });
        }
        Err(refusal) => {
            let (image, why) = (&spec.title, &refusal.why);
            tracing::info!(image, why, "no signed index is used");
            signatures.set(first, Vec::new(), None);
        }
    }
    Ok(())
}

/// Keeps the artifact that layers were written with, for as long as the image, and has no other one used
/// afterwards. Not before they are written: whoever may push may attach one whose signatures are those of the
/// publisher, and whose indexes are not.
pub(crate) async fn keep_artifact(chain: &Chain) -> Result<(), UnpackError> {
    let Some(artifact) = chain.signatures.artifact() else {
        return Ok(());
    };
    let (backend, manifest) = (&chain.backend, &chain.job.spec.plan.manifest.digest);
    let (labeler, scope) = (&backend.ports.labeler, &backend.scope);
    let set = labeler.set_label(scope, manifest, labels::GC_ARTIFACT, artifact.as_str());
    set.await.map_err(|error| chain.failed(error))
}

/// Rejects the artifact of a layer that could not be written, as its index or root hash is wrong, and looks for
/// another one. Returns whether that was the reason: the layer is to be written again then, with what was found,
/// or without any where it needs no signature.
///
/// # Errors
/// [`UnpackError::Unsigned`] if it needs one, and there is no other artifact.
pub(crate) async fn find_others(
    chain: &Chain,
    index: usize,
    error: &Error,
) -> Result<bool, UnpackError> {
    let signed = chain.signatures.get(index);
    let wrong = signed.filter(|_| error.kind() == Kind::FailedPrecondition);
    let Some(wrong) = wrong else {
        return Ok(false);
    };
    let (spec, why) = (&chain.job.spec, error_chain(error));
    tracing::warn!(
        image = spec.title,
        why,
        "an artifact is wrong, and is not used"
    );
    chain.signatures.reject();
    // That there is no other one says less than why this one is wrong.
    let found = find_signatures(chain, index).await;
    found.map(|()| true).map_err(|_| UnpackError::Unsigned {
        image: spec.title.clone(),
        snapshotter: spec.snapshotter.clone(),
        digest: Some(chain.layers()[index].descriptor.digest.clone()),
        root_hash: Some(wrong.root_hash.clone()),
        why,
    })
}
