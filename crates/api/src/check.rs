// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Conversion of checks to and from messages.

use resnap_core::{ChainId, DiffId, Proof, ProofSignature};
use resnap_unpacker::{Check, LabelState, LayerCheck, LayerState, Readiness};

use crate::v1::layer_state::State;
use crate::{Malformed, digest, v1};

impl From<LayerState> for v1::LayerState {
    fn from(state: LayerState) -> Self {
        let state = match state {
            LayerState::Committed {
                labels,
                copied_from,
                proof,
                unproven,
            } => {
                let (reference, missing_labels) = match labels {
                    LabelState::Complete(reference) => (Some(reference), Vec::new()),
                    LabelState::Missing(missing) => (None, missing),
                };
                State::Committed(v1::Committed {
                    reference,
                    missing_labels,
                    copied_from,
                    proof: proof.map(Into::into),
                    unproven,
                })
            }
            LayerState::Missing => State::Missing(v1::Missing {}),
            LayerState::Unknown { reason } => State::Unknown(reason),
        };
        Self { state: Some(state) }
    }
}

impl TryFrom<v1::LayerState> for LayerState {
    type Error = Malformed;

    fn try_from(state: v1::LayerState) -> Result<Self, Malformed> {
        Ok(match state.state.ok_or(Malformed("state of a layer"))? {
            State::Committed(committed) => Self::Committed {
                labels: match committed.reference {
                    Some(reference) => LabelState::Complete(reference),
                    None => LabelState::Missing(committed.missing_labels),
                },
                copied_from: committed.copied_from,
                proof: committed.proof.map(TryInto::try_into).transpose()?,
                unproven: committed.unproven,
            },
            State::Missing(v1::Missing {}) => Self::Missing,
            State::Unknown(reason) => Self::Unknown { reason },
        })
    }
}

impl From<Proof> for v1::Proof {
    fn from(proof: Proof) -> Self {
        Self {
            root_hash: proof.root_hash,
            origin: proof.origin.to_string(),
            signature: proof.signature.map(|signature| v1::Signature {
                digest: signature.digest,
                signer: signature.signer,
            }),
        }
    }
}

impl TryFrom<v1::Proof> for Proof {
    type Error = Malformed;

    fn try_from(proof: v1::Proof) -> Result<Self, Malformed> {
        let origin = proof.origin.parse();
        let origin = origin.map_err(|()| Malformed("origin of a proof"))?;
        let mut converted = Self::new(proof.root_hash, origin);
        converted.signature = proof.signature.map(|signature| ProofSignature {
            digest: signature.digest,
            signer: signature.signer,
        });
        Ok(converted)
    }
}

impl From<LayerCheck> for v1::LayerCheck {
    fn from(layer: LayerCheck) -> Self {
        let snapshots = layer.snapshots.into_iter();
        Self {
            digest: layer.digest.into(),
            diff_id: layer.diff_id.0.into(),
            chain_id: layer.chain_id.to_string(),
            bytes: layer.bytes,
            blob: layer.blob,
            snapshots: snapshots
                .map(|(name, state)| (name, state.into()))
                .collect(),
        }
    }
}

impl TryFrom<v1::LayerCheck> for LayerCheck {
    type Error = Malformed;

    fn try_from(layer: v1::LayerCheck) -> Result<Self, Malformed> {
        let snapshots = layer.snapshots.into_iter();
        let snapshots = snapshots.map(|(name, state)| Ok((name, state.try_into()?)));
        let diff_id = DiffId(digest(layer.diff_id)?);
        let chain_id = ChainId::from_trusted(digest(layer.chain_id)?);
        let mut converted = Self::new(digest(layer.digest)?, diff_id, chain_id);
        converted.bytes = layer.bytes;
        converted.blob = layer.blob;
        converted.snapshots = snapshots.collect::<Result<_, _>>()?;
        Ok(converted)
    }
}

impl From<Check> for v1::CheckResponse {
    fn from(check: Check) -> Self {
        let verdict = |(name, verdict): (String, Readiness)| {
            let readiness = v1::Readiness {
                ready: verdict.ready,
                needs_labels: verdict.needs_labels,
            };
            (name, readiness)
        };
        Self {
            image: check.image,
            reference: check.reference,
            platform: check.platform,
            manifest: check.manifest.into(),
            config: check.config.into(),
            layers: check.layers.into_iter().map(Into::into).collect(),
            snapshotters: check.snapshotters.into_iter().map(verdict).collect(),
            warnings: check.warnings,
        }
    }
}

impl TryFrom<v1::CheckResponse> for Check {
    type Error = Malformed;

    fn try_from(check: v1::CheckResponse) -> Result<Self, Malformed> {
        let verdict = |(name, verdict): (String, v1::Readiness)| {
            let readiness = Readiness::new(verdict.ready, verdict.needs_labels);
            (name, readiness)
        };
        let layers = check.layers.into_iter().map(LayerCheck::try_from);
        let (manifest, config) = (digest(check.manifest)?, digest(check.config)?);
        let mut converted = Self::new(check.image, check.platform, manifest, config);
        converted.reference = check.reference;
        converted.layers = layers.collect::<Result<_, _>>()?;
        converted.snapshotters = check.snapshotters.into_iter().map(verdict).collect();
        converted.warnings = check.warnings;
        Ok(converted)
    }
}

#[cfg(test)]
mod tests {
    use resnap_core::{Digest, ProofOrigin};

    use super::*;

    #[test]
    fn a_check_survives_its_message() {
        let digest = Digest::sha256(b"layer");
        let mut proof = Proof::new("00".to_owned(), ProofOrigin::Layer);
        proof.signature = Some(ProofSignature {
            digest: "sha256:11".to_owned(),
            signer: "CN=build".to_owned(),
        });
        let committed = |labels| LayerState::Committed {
            labels,
            copied_from: Some("overlayfs".to_owned()),
            proof: Some(proof.clone()),
            unproven: Some("it has none".to_owned()),
        };
        let states = [
            committed(LabelState::Complete("docker.io/library/web:1".to_owned())),
            committed(LabelState::Missing(vec!["a".to_owned()])),
            committed(LabelState::Missing(Vec::new())),
            LayerState::Missing,
            LayerState::Unknown {
                reason: "gone".to_owned(),
            },
        ];
        let names = ["erofs", "native", "nydus", "overlayfs", "soci"].map(str::to_owned);
        let chain_id = ChainId::from_trusted(digest.clone());
        let mut layer = LayerCheck::new(digest.clone(), DiffId(digest.clone()), chain_id);
        layer.bytes = 7;
        layer.blob = true;
        layer.snapshots = names.iter().cloned().zip(states).collect();
        let platform = "linux/amd64".to_owned();
        let mut check = Check::new("web".to_owned(), platform, digest.clone(), digest);
        check.reference = Some("docker.io/library/web:1".to_owned());
        check.layers = vec![layer];
        let readiness = Readiness::new(true, Some("so".to_owned()));
        check.snapshotters = [(names[0].clone(), readiness)].into();
        check.warnings = vec!["beware".to_owned()];
        let message = v1::CheckResponse::from(check.clone());
        assert_eq!(Check::try_from(message), Ok(check));
    }
}
