// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Errors of writing and verifying trees.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use crate::superblock::SuperblockError;

/// An error of the caller's own.
pub type BoxedError = Box<dyn StdError + Send + Sync>;

/// The reason why a tree was not written, or a device not verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Data that is not a number of whole blocks, or none, or more than a file can have.
    #[error(
        "data of {size} bytes is not one or more whole blocks of {block} bytes with room for a hash tree"
    )]
    Size {
        /// The size of the data.
        size: u64,
        /// The size of a block.
        block: u64,
    },
    /// A hash offset at which no superblock of this block size can be.
    #[error("the hash offset {hash_offset} is not a multiple of blocks of {block} bytes")]
    HashOffset {
        /// The offset of the superblock.
        hash_offset: u64,
        /// The size of a block.
        block: u64,
    },
    /// A superblock that is malformed, not known, or not that of the device.
    #[error("malformed dm-verity superblock at byte {hash_offset}")]
    Superblock {
        /// The offset of the superblock.
        hash_offset: u64,
        /// The reason.
        #[source]
        source: SuperblockError,
    },
    /// A part that is not what the root hash was made of.
    #[error("{0} does not match the root hash")]
    Corrupt(Place),
    /// Bytes after the data, or after the superblock, that are not zero.
    #[error("the padding at byte {0} is not zero")]
    Padding(u64),
    /// A file that ends before its data or its tree.
    #[error("the file has {size} bytes, but should have {expected}")]
    Short {
        /// The size of the file.
        size: u64,
        /// The smallest size that it should have.
        expected: u64,
    },
    /// Digests of other data: of blocks of another size, or of more blocks than there are.
    #[error("the digests are of other data: {digests} blocks of {block} bytes")]
    Leaves {
        /// The number of digests.
        digests: u64,
        /// The size of the blocks that they are of.
        block: u64,
    },
    /// The file cannot be read.
    #[error("read at byte {offset}")]
    Read {
        /// The offset in the file.
        offset: u64,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("write at byte {offset}")]
    Write {
        /// The offset in the file.
        offset: u64,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The caller's check stopped the work.
    #[error(transparent)]
    Stopped(BoxedError),
}

impl Error {
    pub(crate) fn reading(offset: u64) -> impl Fn(io::Error) -> Self {
        move |source| Self::Read { offset, source }
    }

    pub(crate) fn writing(offset: u64) -> impl Fn(io::Error) -> Self {
        move |source| Self::Write { offset, source }
    }
}

/// A block of a device or of its tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Place {
    /// A data block, counted from 0.
    Data(u64),
    /// A block of the tree.
    Hash {
        /// The level: 0 has the digests of the data blocks, and the last level is a single block.
        level: usize,
        /// The position within the level, counted from 0.
        block: u64,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data(block) => write!(f, "data block {block}"),
            Self::Hash { level, block } => write!(f, "hash block {block} of level {level}"),
        }
    }
}
