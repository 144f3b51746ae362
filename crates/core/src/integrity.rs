// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Proofs of layers: the root hashes of their dm-verity trees, and signatures of those.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::{Labels, labels};

/// The proof that a layer needs on a snapshotter before it is committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Integrity {
    /// None.
    #[default]
    Off,
    /// A dm-verity tree, by which the kernel finds blocks that have changed since.
    Verity,
    /// A dm-verity tree whose root hash a trusted certificate has signed.
    Signed,
}

impl Integrity {
    /// Returns whether layers need a proof.
    pub fn is_on(self) -> bool {
        self != Self::Off
    }

    /// Returns the word of the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Verity => "verity",
            Self::Signed => "signed",
        }
    }

    /// Returns the reason why a committed snapshot with these labels does not have the proof, if it does
    /// not.
    pub fn missing(self, labels: &Labels) -> Option<&'static str> {
        let proof = Proof::of(labels);
        match (self, &proof) {
            (Self::Off, _) => None,
            (_, None) => Some("it has no dm-verity tree that resnap knows of"),
            _ if labels.contains_key(labels::COPIED_FROM) => {
                Some("it is a copy, and nothing proves that a copy is the layer")
            }
            (Self::Signed, Some(proof)) if proof.signature.is_none() => {
                Some("the root hash of its dm-verity tree is not signed")
            }
            _ => None,
        }
    }
}

/// The form of the EROFS images that are made of layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ErofsMode {
    /// An image with the data of files.
    #[default]
    Full,
    /// An index of the layer's tar, and the tar.
    TarIndex,
}

impl ErofsMode {
    /// Returns the word of the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::TarIndex => "tar-index",
        }
    }
}

/// The origin of a dm-verity tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ProofOrigin {
    /// This node computed it.
    Generated,
    /// The publisher of the image did, with an index of the layer's tar.
    Artifact,
    /// The layer brought it.
    Layer,
}

impl ProofOrigin {
    const ALL: [Self; 3] = [Self::Generated, Self::Artifact, Self::Layer];

    /// Returns the value of the label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Generated => "generated",
            Self::Artifact => "artifact",
            Self::Layer => "layer",
        }
    }
}

impl fmt::Display for ProofOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ProofOrigin {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut known = Self::ALL.into_iter();
        known.find(|known| known.as_str() == text).ok_or(())
    }
}

/// A signature of a root hash that was verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProofSignature {
    /// The digest of the signature.
    pub digest: String,
    /// The certificate of the signer.
    pub signer: String,
}

/// The proof of a committed layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proof {
    /// The root hash of the dm-verity tree, in lower-case hexadecimal digits.
    pub root_hash: String,
    /// The origin of the tree.
    pub origin: ProofOrigin,
    /// The verified signature of the root hash, if there is one.
    pub signature: Option<ProofSignature>,
}

impl Proof {
    /// Returns the proof of a tree without a signature.
    pub fn new(root_hash: String, origin: ProofOrigin) -> Self {
        Self {
            root_hash,
            origin,
            signature: None,
        }
    }

    /// Returns the proof that the labels of a snapshot tell, if there is one.
    pub fn of(labels: &Labels) -> Option<Self> {
        let label = |key| labels.get(key).filter(|value| !value.is_empty());
        let origin = label(labels::PROOF_ORIGIN)?.parse().ok()?;
        let signature = label(labels::PROOF_SIGNATURE).zip(label(labels::PROOF_SIGNER));
        Some(Self {
            root_hash: label(labels::ROOT_HASH)?.clone(),
            origin,
            signature: signature.map(|(digest, signer)| ProofSignature {
                digest: digest.clone(),
                signer: signer.clone(),
            }),
        })
    }

    /// Returns the labels of a snapshot with this proof.
    pub fn labels(&self) -> Labels {
        let mut pairs = vec![
            (labels::ROOT_HASH, self.root_hash.clone()),
            (labels::PROOF_ORIGIN, self.origin.to_string()),
        ];
        if let Some(signature) = &self.signature {
            pairs.push((labels::PROOF_SIGNATURE, signature.digest.clone()));
            pairs.push((labels::PROOF_SIGNER, signature.signer.clone()));
        }
        let pairs = pairs.into_iter();
        pairs.map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_tell_the_proof() {
        let mut proof = Proof::new("00".to_owned(), ProofOrigin::Artifact);
        for signature in [
            None,
            Some(ProofSignature {
                digest: "sha256:11".to_owned(),
                signer: "CN=build".to_owned(),
            }),
        ] {
            proof.signature = signature;
            assert_eq!(Proof::of(&proof.labels()), Some(proof.clone()));
        }
        let mut labels = proof.labels();
        labels.insert(labels::PROOF_ORIGIN.to_owned(), "elsewhere".to_owned());
        assert_eq!(Proof::of(&labels), None);
    }

    #[test]
    fn a_signature_is_more_than_a_tree() {
        let mut proof = Proof::new("00".to_owned(), ProofOrigin::Generated);
        let unsigned = proof.labels();
        proof.signature = Some(ProofSignature {
            digest: "sha256:11".to_owned(),
            signer: "CN=build".to_owned(),
        });
        let signed = proof.labels();
        let none = Labels::new();
        for (integrity, labels, is_met) in [
            (Integrity::Off, &none, true),
            (Integrity::Verity, &none, false),
            (Integrity::Verity, &unsigned, true),
            (Integrity::Verity, &signed, true),
            (Integrity::Signed, &none, false),
            (Integrity::Signed, &unsigned, false),
            (Integrity::Signed, &signed, true),
        ] {
            assert_eq!(integrity.missing(labels).is_none(), is_met, "{integrity:?}");
        }
    }
}
