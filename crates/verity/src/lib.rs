// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! dm-verity for image layers: hash trees that are written, read and verified in user space, and the files
//! beside a layer that containerd since 2.3 mounts it with.
//!
//! [`append`] writes a superblock and a tree behind an image, byte for byte as `veritysetup format` does with
//! the same UUID and a salt of 32 zero bytes, and [`Leaves`] saves it from reading the image again.
//! [`verify`] checks a device, or a range of one, against a [`RootHash`]. A [`Sidecar`] is the file
//! `layer.erofs.dmverity`.
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
//! Superblocks, trees and sidecars may contain anything. Nothing panics, memory does not depend on what they
//! say, and time depends on the size of the file only.

mod append;
mod block;
mod error;
mod leaves;
mod root_hash;
mod shape;
mod sidecar;
mod superblock;
mod verify;
mod work;

pub use append::{Appended, append};
pub use block::BlockSize;
pub use error::{BoxedError, Error, Place};
pub use leaves::Leaves;
pub use root_hash::{RootHash, RootHashError};
pub use sidecar::{SIDECAR_FILE, SIGNATURE_FILE, Sidecar, SidecarError};
pub use superblock::{Superblock, SuperblockError};
pub use verify::verify;
pub use work::Work;

#[cfg(test)]
mod tests;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
