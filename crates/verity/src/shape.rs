// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The places of a tree in its file.

use crate::block::BlockSize;

/// A run of blocks in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    /// The offset of the first block, in bytes.
    pub(crate) start: u64,
    /// The number of blocks.
    pub(crate) blocks: u64,
}

/// The data and the tree of a device.
#[derive(Debug)]
pub(crate) struct Shape {
    /// The data, then the levels of the tree from the digests of the data blocks up. The last region is a
    /// single block, the one that the root hash is of.
    pub(crate) regions: Vec<Region>,
    /// The end of the tree, in bytes.
    pub(crate) end: u64,
}

impl Shape {
    /// Returns the places for `data_blocks` blocks with a superblock at `hash_offset`, or `None` if there
    /// are no blocks or a file cannot be that long.
    pub(crate) fn new(block: BlockSize, data_blocks: u64, hash_offset: u64) -> Option<Self> {
        let data = Region {
            start: 0,
            blocks: data_blocks,
        };
        let mut regions = vec![data];
        let mut blocks = data_blocks;
        while blocks > 1 {
            blocks = blocks.div_ceil(block.digests());
            regions.push(Region { start: 0, blocks });
        }
        // The superblock has a block of its own, and the root comes first.
        let mut end = hash_offset.checked_add(block.bytes())?;
        for level in regions.iter_mut().skip(1).rev() {
            level.start = end;
            end = end.checked_add(level.blocks.checked_mul(block.bytes())?)?;
        }
        (blocks == 1 && i64::try_from(end).is_ok()).then_some(Self { regions, end })
    }
}
