// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Proofs of layers: dm-verity trees behind their EROFS images.
//!
//! ```text
//! snapshots/N/layer.erofs            the image, zeros up to 4096 bytes, a superblock, the tree
//! snapshots/N/layer.erofs.dmverity   the sidecar: root hash, and the offset of the superblock
//! snapshots/N/layer.erofs.sig        the signature of the root hash, if its publisher signed it
//! ```
//!
//! The names and the sidecar are those of containerd 2.3 (`plugins/diff/erofs`, `internal/dmverity`). It
//! looks for a sidecar beside the image whenever it makes the mounts of a snapshot's child, and mounts the
//! image by the tree then. containerd 2.1 and 2.2 do not look for it.
//!
//! The image is flushed to disk before the sidecar exists: a sidecar whose image was lost makes every read an
//! error, for good.

pub(crate) use compare::{Expected, compare};
pub(crate) use hashed_file::HashedFile;
pub(crate) use indexed::write_indexed;
pub(crate) use inode::open_image;
pub(crate) use kernel::{has_kernel_support, require_kernel, warn_of_required_signatures};
pub(crate) use own_tree::own_tree;
pub(crate) use seal::{lock, replace, seal, signed_tree};
pub(crate) use sidecar::{proof, write_sidecar};
pub(crate) use signed::{verify_signature, verify_snapshot};
pub use tree::tree_uuid;
pub(crate) use tree::{append, tree_block};

mod compare;
mod hashed_file;
mod indexed;
mod inode;
mod kernel;
mod own_tree;
mod seal;
mod sidecar;
mod signed;
#[cfg(test)]
mod tests;
mod tree;
