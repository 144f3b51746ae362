// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Artifacts that publishers attach to an image for dm-verity: for each layer an index of its tar, the hash
//! tree, and a signature of the root hash. A layer that is an EROFS image has a signature only.
//!
//! An artifact is an OCI manifest whose `subject` is the manifest of an image. There are two sets of names,
//! none of them in a specification:
//!
//! | | [`ArtifactSet::Containerd`] | [`ArtifactSet::Notary`] |
//! |---|---|---|
//! | used by | a proposal for containerd | the signer of notation's dm-verity plugin |
//! | the device is the index, the layer's tar, and zeros up to a multiple of | 4096 | 512 |
//! | the signature is also an annotation | no | optional |

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::iter;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::{Descriptor, Digest};

mod document;
mod encode;
mod fault;
mod names;

use document::{Document, Part};
pub use fault::BundleFault;
pub use names::{ArtifactSet, Payload};

/// The limit on the layers of a bundle.
const MAX_LAYERS: usize = 4096;

/// The limit on the bytes of all signatures.
const MAX_SIGNATURES: u64 = 16 << 20;

/// The limit on the bytes of all indexes: whoever may push can attach some with the signatures of others, and
/// they are fetched before it shows that they are wrong.
const MAX_INDEXES: u64 = 4 << 30;

/// The artifact of one image. It is untrusted: no digest of the image covers it, so that only a verified
/// signature makes its contents the publisher's.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Bundle {
    /// The names that it uses.
    pub set: ArtifactSet,
    /// The artifacts of the layers, by the digest of the layer's blob.
    pub layers: BTreeMap<Digest, LayerArtifact>,
}

/// The artifact of one layer. Its descriptors have no annotations.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerArtifact {
    /// The root hash of the tree, as 64 lower-case hexadecimal digits.
    pub root_hash: String,
    /// The index and the tree; `None` for a layer that is an EROFS image.
    pub indexed: Option<IndexedLayer>,
    /// The detached signature of the root hash.
    pub signature: Descriptor,
    /// The bytes of the signature, if the manifest has them. They have the digest of `signature`.
    pub inline_signature: Option<Vec<u8>>,
}

/// The EROFS index of a layer's tar, and the hash tree of both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct IndexedLayer {
    /// The index.
    pub index: Descriptor,
    /// The hash tree.
    pub tree: Descriptor,
}

/// The payloads of one layer, as far as they were read.
#[derive(Default)]
struct Payloads {
    index: Option<Descriptor>,
    tree: Option<Descriptor>,
    signature: Option<Signature>,
}

struct Signature {
    descriptor: Descriptor,
    root_hash: String,
    inline: Option<Vec<u8>>,
}

impl Bundle {
    /// The limit on the bytes of an artifact's manifest.
    pub const MAX_BYTES: usize = 4 << 20;

    /// The media type and the bytes of the config of a bundle's manifest.
    pub const CONFIG: (&str, &[u8]) = (document::EMPTY_CONFIG.0, b"{}");

    /// Returns a bundle of these artifacts, by the digests of their layers' blobs.
    pub fn new(set: ArtifactSet, layers: BTreeMap<Digest, LayerArtifact>) -> Self {
        Self { set, layers }
    }

    /// Returns the manifest of the artifact of the image with the manifest `subject`. The same bundle always has the
    /// same bytes. Its config is [`Bundle::CONFIG`].
    pub fn encode(&self, subject: &Descriptor) -> Vec<u8> {
        let set = self.set;
        let mut parts = Vec::new();
        for (layer, artifact) in &self.layers {
            if let Some(IndexedLayer { index, tree }) = &artifact.indexed {
                parts.push(encode::part(set, Payload::Index, layer, index, []));
                parts.push(encode::part(set, Payload::Tree, layer, tree, []));
            }
            let root_hash = (set.root_hash(), artifact.root_hash.clone());
            let inline = set
                .inline_signature()
                .zip(artifact.inline_signature.as_ref());
            let inline = inline.map(|(key, bytes)| (key, STANDARD.encode(bytes)));
            let annotations = iter::once(root_hash).chain(inline);
            let (payload, signature) = (Payload::Signature, &artifact.signature);
            parts.push(encode::part(set, payload, layer, signature, annotations));
        }
        encode::manifest(set, &parts, subject)
    }

    /// Parses the manifest of an artifact of the image with the manifest `subject`. Each layer in it has all
    /// three payloads, or a signature only. The addresses (`urls`) and annotations of the payloads are dropped.
    ///
    /// # Errors
    /// The reason why the bundle as a whole is refused.
    pub fn parse(bytes: &[u8], subject: &Digest) -> Result<Self, BundleFault> {
        let document = Document::parse(bytes, Self::MAX_BYTES)?;
        let set = document.set(subject)?;
        let mut layers = BTreeMap::<Digest, Payloads>::new();
        let (mut signatures, mut indexes) = (0_u64, 0_u64);
        for (number, part) in (1..).zip(document.parts) {
            let payload = set.payload(&part.media_type);
            let payload =
                payload.ok_or_else(|| BundleFault::payload_type(number, &part.media_type))?;
            let (layer, descriptor) = checked(number, set, payload, &part)?;
            match payload {
                Payload::Signature => signatures = signatures.saturating_add(descriptor.size),
                Payload::Index => indexes = indexes.saturating_add(descriptor.size),
                Payload::Tree => {}
            }
            let payloads = match layers.entry(layer.clone()) {
                Entry::Vacant(entry) => entry.insert(Payloads::default()),
                Entry::Occupied(entry) => entry.into_mut(),
            };
            payloads.add(set, payload, &layer, descriptor, &part)?;
            if layers.len() > MAX_LAYERS {
                return Err(BundleFault::TooManyLayers { limit: MAX_LAYERS });
            }
        }
        if layers.is_empty() {
            return Err(BundleFault::NoLayers);
        }
        if signatures > MAX_SIGNATURES {
            return Err(BundleFault::Signatures {
                size: signatures,
                limit: MAX_SIGNATURES,
            });
        }
        if indexes > MAX_INDEXES {
            return Err(BundleFault::Indexes {
                size: indexes,
                limit: MAX_INDEXES,
            });
        }
        let layers = layers.into_iter().map(|(layer, payloads)| {
            let artifact = payloads.complete(&layer)?;
            Ok((layer, artifact))
        });
        Ok(Self {
            set,
            layers: layers.collect::<Result<_, _>>()?,
        })
    }
}

impl LayerArtifact {
    /// Returns the artifact of a layer: its index and tree, unless it is an EROFS image, and its signature, with the
    /// bytes of that if the manifest is to have them.
    pub fn new(
        root_hash: String,
        indexed: Option<IndexedLayer>,
        signature: Descriptor,
        inline_signature: Option<Vec<u8>>,
    ) -> Self {
        Self {
            root_hash,
            indexed,
            signature,
            inline_signature,
        }
    }
}

impl IndexedLayer {
    /// Returns an index with its tree.
    pub fn new(index: Descriptor, tree: Descriptor) -> Self {
        Self { index, tree }
    }
}

impl Payloads {
    fn add(
        &mut self,
        set: ArtifactSet,
        payload: Payload,
        layer: &Digest,
        descriptor: Descriptor,
        part: &Part,
    ) -> Result<(), BundleFault> {
        let is_new = match payload {
            Payload::Index => self.index.replace(descriptor).is_none(),
            Payload::Tree => self.tree.replace(descriptor).is_none(),
            Payload::Signature => {
                let signature = Signature::new(set, layer, descriptor, part)?;
                self.signature.replace(signature).is_none()
            }
        };
        let layer = layer.clone();
        match is_new {
            true => Ok(()),
            false => Err(BundleFault::Duplicate { payload, layer }),
        }
    }

    fn complete(self, layer: &Digest) -> Result<LayerArtifact, BundleFault> {
        let missing = |payload| BundleFault::Missing {
            payload,
            layer: layer.clone(),
        };
        let signature = self.signature.ok_or_else(|| missing(Payload::Signature))?;
        let indexed = match (self.index, self.tree) {
            (Some(index), Some(tree)) => Some(IndexedLayer { index, tree }),
            (None, None) => None,
            (None, Some(_)) => return Err(missing(Payload::Index)),
            (Some(_), None) => return Err(missing(Payload::Tree)),
        };
        Ok(LayerArtifact {
            root_hash: signature.root_hash,
            indexed,
            signature: signature.descriptor,
            inline_signature: signature.inline,
        })
    }
}

impl Signature {
    fn new(
        set: ArtifactSet,
        layer: &Digest,
        descriptor: Descriptor,
        part: &Part,
    ) -> Result<Self, BundleFault> {
        let root_hash = part.annotations.get(set.root_hash()).unwrap_or_default();
        let is_hash = root_hash.len() == 64
            && root_hash
                .bytes()
                .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hash {
            return Err(BundleFault::root_hash(layer, root_hash));
        }
        let inline = set.inline_signature();
        let inline = match inline.and_then(|key| part.annotations.get(key)) {
            None => None,
            Some(text) => {
                let bytes = STANDARD.decode(text).ok();
                // The same digest is the same bytes, before anybody has fetched the blob.
                let same = bytes.filter(|bytes| {
                    bytes.len() as u64 == descriptor.size
                        && descriptor.digest.same_algorithm(bytes) == descriptor.digest
                });
                Some(same.ok_or_else(|| BundleFault::InlineSignature(layer.clone()))?)
            }
        };
        Ok(Self {
            root_hash: root_hash.to_owned(),
            descriptor,
            inline,
        })
    }
}

/// Returns the layer that a payload is of, and the payload's descriptor.
fn checked(
    number: usize,
    set: ArtifactSet,
    payload: Payload,
    part: &Part,
) -> Result<(Digest, Descriptor), BundleFault> {
    let digest = part.digest.parse();
    let digest = digest.map_err(|_| BundleFault::payload_digest(number, &part.digest))?;
    let key = set.layer_digest(payload);
    let layer = part.annotations.get(key).unwrap_or_default();
    let layer = layer.parse();
    let layer: Digest = layer.map_err(|_| BundleFault::LayerDigest { number, key })?;
    if part.size == 0 || part.size > payload.limit() {
        return Err(BundleFault::Size {
            payload,
            layer,
            size: part.size,
            limit: payload.limit(),
        });
    }
    Ok((layer, Descriptor::new(&part.media_type, digest, part.size)))
}

impl fmt::Debug for LayerArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inline = self.inline_signature.as_ref().map(Vec::len);
        f.debug_struct("LayerArtifact")
            .field("root_hash", &self.root_hash)
            .field("indexed", &self.indexed)
            .field("signature", &self.signature.digest)
            .field("inline_signature", &inline)
            .finish()
    }
}

#[cfg(test)]
mod tests;
