// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! dm-verity for image layers: hash trees that are written, read and verified in user space, and the files
//! beside a layer that containerd since 2.3 mounts it with.
//!
//! [`append`] writes a superblock and a tree behind an image, byte for byte as `veritysetup format` does with
//! the same UUID and a salt of 32 zero bytes, and [`Leaves`] saves it from reading the image again.
//! [`verify`] checks a device, or a range of one, against a [`RootHash`]. A [`Sidecar`] is the file
//! `layer.erofs.dmverity`. With the feature `signatures`, which is a default, `Trust` verifies signatures of root
//! hashes, and `SigningCertificate` and `SigningKey` make them.
//!
//! # The device
//!
//! ```text
//! 0            data, in blocks of 512 or 4096 bytes
//! hash offset  superblock, filled up with zeros to a block
//!              top of the tree, a single block
//!              the levels below, each in whole blocks
//!              level 0: the digests of the data blocks
//! ```
//!
//! A block of the tree has the SHA-256 digests of 16 or 128 blocks, each of the salt and then the block, and
//! zeros where there are no more. The root hash is the digest of the top block. A device of one data block has
//! no tree, and its digest is the root hash. The hash offset is the size of the data, rounded up to 4096.
//!
//! A UUID that is derived from the layer makes the bytes the same on every node. The kernel and containerd take
//! any but one of zeros only.
//!
//! # What a root hash proves
//!
//! All data, and the salt. It does not cover the superblock: with another number of data blocks, another part of
//! the file would be the data. [`verify`] therefore refuses data that does not end where the superblock is, and a
//! tree with more digests than data blocks. A root hash beside the data proves nothing about who made it.
//!
//! # Hostile input
//!
//! Superblocks, trees, sidecars and signatures may contain anything. Nothing panics, memory does not depend on
//! what they say, and time depends on the size of the file only. A signature has at most 64 KiB, and 16 certificates
//! of 8 KiB.

mod append;
#[cfg(feature = "signatures")]
mod asn1;
mod block;
#[cfg(feature = "signatures")]
mod certificate;
#[cfg(feature = "signatures")]
mod certificate_file;
#[cfg(feature = "signatures")]
mod certificates_error;
#[cfg(feature = "signatures")]
mod chain;
#[cfg(feature = "signatures")]
mod encode;
mod error;
mod leaves;
#[cfg(feature = "signatures")]
mod name;
#[cfg(feature = "signatures")]
mod oid;
mod root_hash;
mod shape;
mod sidecar;
#[cfg(feature = "signatures")]
mod signature_error;
#[cfg(feature = "signatures")]
mod signed_data;
#[cfg(feature = "signatures")]
mod signing;
#[cfg(feature = "signatures")]
mod signing_error;
#[cfg(feature = "signatures")]
mod signing_key;
#[cfg(feature = "signatures")]
mod signing_key_error;
mod superblock;
#[cfg(feature = "signatures")]
mod trust;
mod verify;
mod work;

pub use append::{Appended, append};
pub use block::BlockSize;
#[cfg(feature = "signatures")]
pub use certificates_error::CertificatesError;
pub use error::{BoxedError, Error, Place};
pub use leaves::Leaves;
pub use root_hash::{RootHash, RootHashError};
pub use sidecar::{SIDECAR_FILE, SIGNATURE_FILE, Sidecar, SidecarError};
#[cfg(feature = "signatures")]
pub use signature_error::SignatureError;
#[cfg(feature = "signatures")]
pub use signing::SigningCertificate;
#[cfg(feature = "signatures")]
pub use signing_error::SigningError;
#[cfg(feature = "signatures")]
pub use signing_key::SigningKey;
#[cfg(feature = "signatures")]
pub use signing_key_error::SigningKeyError;
pub use superblock::{Superblock, SuperblockError};
#[cfg(feature = "signatures")]
pub use trust::{Signer, Trust};
pub use verify::verify;
pub use work::Work;

#[cfg(test)]
mod tests;

#[cfg(all(doctest, feature = "signatures"))]
#[doc = include_str!("../README.md")]
struct Readme;
