// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Blocks and their digests.

use sha2::{Digest as _, Sha256};

/// The number of bytes of a digest.
pub(crate) const DIGEST: usize = 32;

/// The SHA-256 of a salt and a block.
pub(crate) type Digest = [u8; DIGEST];

/// The size of the blocks that are hashed, and of the blocks of the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BlockSize {
    /// 512 bytes, for EROFS images with a tar index: the kernel mounts an image only if its own blocks are
    /// no smaller than those of the device.
    B512,
    /// 4096 bytes, for all others. Kata Containers reads no other size.
    B4096,
}

impl BlockSize {
    /// Returns the number of bytes of a block.
    pub const fn bytes(self) -> u64 {
        match self {
            Self::B512 => 512,
            Self::B4096 => 4096,
        }
    }

    pub(crate) const fn len(self) -> usize {
        self.bytes() as usize
    }

    /// Returns the number of digests in a block of the tree.
    pub(crate) const fn digests(self) -> u64 {
        self.bytes() / DIGEST as u64
    }
}

/// A hash function with the salt in it.
#[derive(Debug, Clone)]
pub(crate) struct Salted(Sha256);

impl Salted {
    pub(crate) fn new(salt: &[u8]) -> Self {
        Self(Sha256::new_with_prefix(salt))
    }

    /// Returns the digest of one block.
    pub(crate) fn digest(&self, block: &[u8]) -> Digest {
        let mut hash = self.0.clone();
        hash.update(block);
        hash.finalize().into()
    }

    /// Returns a hash for the bytes of one block.
    pub(crate) fn start(&self) -> Sha256 {
        self.0.clone()
    }
}
