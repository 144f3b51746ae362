// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Root hashes that publishers have signed, and layers that get them.

use std::sync::Arc;

use bytes::Bytes;

use crate::{ChainView, Descriptor, DiffId, ProofSignature};

/// The root hash of the dm-verity tree of a layer's EROFS image, signed by the publisher of the image. The
/// signature says nothing of the layer: it is bound to it because the image has the tar whose diff ID was
/// checked, or because the image is the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedRoot {
    /// The root hash, in lower-case hexadecimal digits.
    pub root_hash: String,
    /// The detached signature of the root hash, in DER.
    pub signature: Bytes,
    /// The signature as it was verified.
    pub verified: ProofSignature,
    /// The index of the layer's tar; `None` if the layer is an EROFS image.
    pub index: Option<TarIndex>,
}

/// An index of a layer's tar that the publisher of the image made. It and the tar are an EROFS image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarIndex {
    /// The index.
    pub blob: Descriptor,
    /// Zeros follow the tar up to a multiple of this number of bytes.
    pub multiple: u64,
}

/// A committed layer that is to get its proof.
#[derive(Debug, Clone)]
pub struct LayerToSeal<'a> {
    /// The chain, which a lease holds meanwhile.
    pub chain: &'a ChainView,
    /// The index of the layer in the chain, the base being 0.
    pub index: usize,
    /// The blob, which must exist if there is an index of it.
    pub descriptor: &'a Descriptor,
    /// The digest of the uncompressed tar.
    pub diff_id: &'a DiffId,
    /// The signed root hash that its image must have.
    pub signed: Option<Arc<SignedRoot>>,
}
