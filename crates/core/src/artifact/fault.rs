// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The reasons why a bundle is refused.

use super::names::Payload;
use crate::Digest;
use crate::digest::shown;

/// The reason why an artifact is refused as a whole. Payloads are counted from 1 in the manifest's order.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BundleFault {
    /// The manifest is too large.
    #[error("its manifest has {size} bytes, and may have at most {limit}")]
    TooLarge {
        /// Its bytes.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// The manifest cannot be parsed.
    #[error("its manifest cannot be read: {0}")]
    Malformed(String),
    /// It is another kind of document.
    #[error("its media type is {0}, and not that of an OCI manifest")]
    MediaType(String),
    /// The artifact is something else.
    #[error("its artifact type {0} is none of those with dm-verity trees")]
    ArtifactType(String),
    /// It is an image, or has a config of its own.
    #[error("its config is not the empty one of an artifact")]
    Config,
    /// It does not say what it refers to.
    #[error("it has no subject, and so belongs to no image")]
    NoSubject,
    /// It is for another image.
    #[error("it is for the manifest {actual}, not for {expected}")]
    Subject {
        /// The subject that it states.
        actual: String,
        /// The manifest of the image.
        expected: Digest,
    },
    /// It is empty.
    #[error("it has no layers")]
    NoLayers,
    /// It has too many.
    #[error("it has artifacts of more than {limit} layers")]
    TooManyLayers {
        /// The limit.
        limit: usize,
    },
    /// A payload is of an unknown type.
    #[error("payload {number} has the media type {media_type}, which this artifact cannot have")]
    PayloadType {
        /// Its number.
        number: usize,
        /// Its media type.
        media_type: String,
    },
    /// The digest of a payload is malformed.
    #[error("payload {number} has {digest} for a digest, which is none")]
    PayloadDigest {
        /// Its number.
        number: usize,
        /// The text in its place.
        digest: String,
    },
    /// A payload does not say which layer it is of.
    #[error(
        "payload {number} does not name its layer: the annotation {key} is absent or no digest"
    )]
    LayerDigest {
        /// Its number.
        number: usize,
        /// The annotation.
        key: &'static str,
    },
    /// A payload is given twice.
    #[error("it has more than one {payload} of layer {layer}")]
    Duplicate {
        /// The payload.
        payload: Payload,
        /// The digest of the layer.
        layer: Digest,
    },
    /// A layer lacks a payload.
    #[error("it has no {payload} of layer {layer}, only other parts")]
    Missing {
        /// The payload.
        payload: Payload,
        /// The digest of the layer.
        layer: Digest,
    },
    /// A payload is empty or too large.
    #[error("the {payload} of layer {layer} has {size} bytes, and may have 1 to {limit}")]
    Size {
        /// The payload.
        payload: Payload,
        /// The digest of the layer.
        layer: Digest,
        /// Its bytes.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// All signatures together are too large.
    #[error("its signatures have {size} bytes together, and may have at most {limit}")]
    Signatures {
        /// Their bytes.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A root hash is absent or malformed.
    #[error("the root hash of layer {layer} is {value}, and not 64 lower-case hexadecimal digits")]
    RootHash {
        /// The digest of the layer.
        layer: Digest,
        /// The text in its place.
        value: String,
    },
    /// The bytes of a signature in the manifest differ from the blob's.
    #[error("the signature of layer {0} in the annotation is not base64 of the signature's blob")]
    InlineSignature(Digest),
}

impl BundleFault {
    pub(super) fn payload_type(number: usize, media_type: &str) -> Self {
        Self::PayloadType {
            number,
            media_type: quoted(media_type),
        }
    }

    pub(super) fn payload_digest(number: usize, digest: &str) -> Self {
        Self::PayloadDigest {
            number,
            digest: quoted(digest),
        }
    }

    pub(super) fn root_hash(layer: &Digest, value: &str) -> Self {
        Self::RootHash {
            layer: layer.clone(),
            value: quoted(value),
        }
    }
}

/// Returns the start of a text in quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", shown(text))
}
