// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The names in artifacts.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A set of names for the parts of an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArtifactSet {
    /// Those proposed for containerd.
    Containerd,
    /// Those of notation's signer.
    Notary,
}

/// A payload that an artifact has for each layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// The EROFS index of the layer's tar.
    Index,
    /// The hash tree.
    Tree,
    /// The signature of the root hash.
    Signature,
}

/// The names of a set.
struct Names {
    artifact_type: &'static str,
    index: &'static str,
    tree: &'static str,
    signature: &'static str,
    /// The annotation of the index and the tree with the digest of the layer.
    source_layer: &'static str,
    /// The annotation of the signature with the digest of the layer.
    signed_layer: &'static str,
    /// The annotation of the signature with the root hash.
    root_hash: &'static str,
    /// The annotation of the signature with its bytes in base64.
    inline_signature: Option<&'static str>,
    /// The device ends at a multiple of this many bytes.
    padding: u64,
}

const CONTAINERD: Names = Names {
    artifact_type: "application/vnd.containerd.erofs.dmverity.v1",
    index: "application/vnd.containerd.erofs.metadata.v1",
    tree: "application/vnd.containerd.erofs.dmverity.merkle-tree.v1",
    signature: "application/vnd.containerd.erofs.dmverity.layer-signature.v1+pkcs7",
    source_layer: "io.containerd.erofs.v1/dmverity.source-layer-digest",
    signed_layer: "io.containerd.erofs.v1/dmverity.source-layer-digest",
    root_hash: "io.containerd.erofs.v1/dmverity.root-hash",
    inline_signature: None,
    padding: 4096,
};

const NOTARY: Names = Names {
    artifact_type: "application/vnd.cncf.notary.dmverity.v1",
    index: "application/vnd.cncf.containerd.erofs.layer.v1",
    tree: "application/vnd.cncf.dmverity.merkle-tree.v1",
    signature: "application/vnd.cncf.notary.dmverity.layer-signature+pkcs7",
    source_layer: "io.cncf.notary.dmverity.source-layer-digest",
    signed_layer: "io.cncf.notary.dmverity.layer-digest",
    root_hash: "io.cncf.notary.dmverity.layer-roothash",
    inline_signature: Some("io.cncf.notary.dmverity.layer-signature"),
    padding: 512,
};

/// The annotations that are read. All others are dropped.
pub(super) const ANNOTATIONS: [&str; 6] = [
    CONTAINERD.source_layer,
    CONTAINERD.root_hash,
    NOTARY.source_layer,
    NOTARY.signed_layer,
    NOTARY.root_hash,
    "io.cncf.notary.dmverity.layer-signature",
];

impl ArtifactSet {
    /// The sets, the preferred one first.
    pub const ALL: [Self; 2] = [Self::Containerd, Self::Notary];

    /// Returns the artifact types of all sets, in their order.
    pub fn artifact_types() -> [&'static str; 2] {
        Self::ALL.map(Self::artifact_type)
    }

    /// Returns the artifact type of the manifests.
    pub fn artifact_type(self) -> &'static str {
        self.names().artifact_type
    }

    /// Returns the number of bytes of which the size of the device (index, tar and zeros) is a multiple.
    pub fn padding(self) -> u64 {
        self.names().padding
    }

    pub(super) fn of_artifact_type(artifact_type: &str) -> Option<Self> {
        let mut sets = Self::ALL.into_iter();
        sets.find(|set| set.artifact_type() == artifact_type)
    }

    pub(super) fn payload(self, media_type: &str) -> Option<Payload> {
        let mut all = [Payload::Index, Payload::Tree, Payload::Signature].into_iter();
        all.find(|payload| self.media_type(*payload) == media_type)
    }

    /// Returns the media type of a payload.
    pub fn media_type(self, payload: Payload) -> &'static str {
        let names = self.names();
        match payload {
            Payload::Index => names.index,
            Payload::Tree => names.tree,
            Payload::Signature => names.signature,
        }
    }

    /// Returns the annotation with the digest of the layer.
    pub(super) fn layer_digest(self, payload: Payload) -> &'static str {
        match payload {
            Payload::Index | Payload::Tree => self.names().source_layer,
            Payload::Signature => self.names().signed_layer,
        }
    }

    pub(super) fn root_hash(self) -> &'static str {
        self.names().root_hash
    }

    /// Returns the annotation of the signature with its bytes, if the set has one.
    pub fn inline_signature(self) -> Option<&'static str> {
        self.names().inline_signature
    }

    fn names(self) -> &'static Names {
        match self {
            Self::Containerd => &CONTAINERD,
            Self::Notary => &NOTARY,
        }
    }
}

impl Payload {
    /// Returns the limit on its bytes.
    pub fn limit(self) -> u64 {
        match self {
            // 256 bytes for each of the four million entries that a layer may have.
            Self::Index => 1 << 30,
            Self::Tree => 16 << 30,
            Self::Signature => 64 << 10,
        }
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Index => "index",
            Self::Tree => "hash tree",
            Self::Signature => "signature",
        })
    }
}
