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

/// Finds the signed indexes of the layers from `first` on, and fetches them, unless the job has done so before.
/// Layers that get a proof without have none.
///
/// # Errors
/// [`UnpackError::Unsigned`] if the snapshotter needs signatures, and there are none that are accepted.
pub(crate) async fn find_indexes(chain: &Chain, first: usize) -> Result<(), UnpackError> {
    let layers = &chain.layers()[first..];
    let (integrity, spec) = (chain.integrity(), &chain.job.spec);
    let trusts = chain.backend.ports.applier.trusts_signers();
    if !integrity.is_on() || !trusts || layers.is_empty() || chain.has_indexes() {
        return Ok(());
    }
    let limit = match integrity {
        Integrity::Signed => SIGNED_TIME,
        Integrity::Off | Integrity::Verity => TIME,
    };
    let found = timeout(limit, Search { chain, layers }.find()).await;
    let late = |_| Err(Refusal::of_image(format!("none came within {limit:?}")));
    match found.unwrap_or_else(late) {
        Ok(accepted) => chain.set_indexes(first, accepted.indexes, Some(accepted.manifest)),
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
            chain.set_indexes(first, Vec::new(), None);
        }
    }
    Ok(())
}

/// Keeps the artifact that layers were written with, for as long as the image, and has no other one used
/// afterwards. Not before they are written: whoever may push may attach one whose signatures are those of the
/// publisher, and whose indexes are not.
pub(crate) async fn keep_artifact(chain: &Chain) -> Result<(), UnpackError> {
    let Some(artifact) = chain.artifact() else {
        return Ok(());
    };
    let (backend, manifest) = (&chain.backend, &chain.job.spec.plan.manifest.digest);
    let (labeler, scope) = (&backend.ports.labeler, &backend.scope);
    let set = labeler.set_label(scope, manifest, labels::GC_ARTIFACT, artifact.as_str());
    set.await.map_err(|error| chain.failed(error))
}

/// Has the layers written without signed indexes after one was wrong, where they need no signature. Returns
/// whether they had any.
pub(crate) fn do_without(chain: &Chain, index: usize, error: &Error) -> bool {
    let is_wrong = error.kind() == Kind::FailedPrecondition && chain.signed_index(index).is_some();
    if !is_wrong || chain.integrity() != Integrity::Verity {
        return false;
    }
    let (image, reason) = (&chain.job.spec.title, error_chain(error));
    tracing::warn!(image, reason, "a signed index is wrong, and none is used");
    chain.drop_indexes();
    true
}
