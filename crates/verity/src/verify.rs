// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Devices, verified in user space.

use std::fs::File;
use std::ops::{Bound, Range, RangeBounds};
use std::os::unix::fs::FileExt as _;

use crate::append::ALIGNMENT;
use crate::block::{BlockSize, DIGEST, Salted};
use crate::error::{Error, Place};
use crate::root_hash::RootHash;
use crate::shape::Shape;
use crate::superblock::{SUPERBLOCK, Superblock, SuperblockError};
use crate::work::{PIECE, Work};

/// Checks a range of the data of a device against a root hash, and returns the superblock.
///
/// The data is what comes before the superblock at `hash_offset`; `range` is in bytes of it, `..` is all of
/// it. The tree is verified from the root down, as far as the range needs it, and its size always. Memory does
/// not depend on the size of the device, and time only on the size of the file. The file must not be changed
/// meanwhile.
///
/// The root hash says nothing about the UUID in the superblock: it is the caller's to compare.
///
/// # Errors
///
/// [`Error::Corrupt`] names the first block that differs, of the highest level that has one; a wrong salt is
/// found as a difference of the top block. A superblock that is malformed or states other data than there is
/// before it is [`Error::Superblock`].
pub fn verify(
    file: &File,
    hash_offset: u64,
    root_hash: &RootHash,
    range: impl RangeBounds<u64>,
    work: Work<'_>,
) -> Result<Superblock, Error> {
    let superblock = read_superblock(file, hash_offset)?;
    let (block, data_blocks) = (superblock.block, superblock.data_blocks);
    let malformed = |source| Error::Superblock {
        hash_offset,
        source,
    };
    let unfit = || {
        let block = block.bytes();
        malformed(SuperblockError::DataBlocks { data_blocks, block })
    };
    let data = data_blocks.checked_mul(block.bytes()).ok_or_else(unfit)?;
    let padding = hash_offset.checked_sub(data).ok_or_else(unfit)?;
    let shape = Shape::new(block, data_blocks, hash_offset)
        .filter(|_| padding < ALIGNMENT)
        .ok_or_else(unfit)?;
    let size = file.metadata().map_err(Error::reading(0))?.len();
    if size < shape.end {
        let expected = shape.end;
        return Err(Error::Short { size, expected });
    }
    check_zeros(file, data..hash_offset)?;
    check_zeros(
        file,
        hash_offset + SUPERBLOCK as u64..hash_offset + block.bytes(),
    )?;

    let device = Device {
        file,
        block,
        salted: Salted::new(superblock.salt()),
        work,
    };
    let too_few = || malformed(SuperblockError::FewerThanDigests(data_blocks));
    device.verify_tree(
        &shape,
        root_hash,
        blocks(&range, block, data_blocks),
        too_few,
    )?;
    Ok(superblock)
}

fn read_superblock(file: &File, hash_offset: u64) -> Result<Superblock, Error> {
    let mut bytes = [0; SUPERBLOCK];
    file.read_exact_at(&mut bytes, hash_offset)
        .map_err(Error::reading(hash_offset))?;
    let superblock = Superblock::decode(&bytes).map_err(|source| Error::Superblock {
        hash_offset,
        source,
    })?;
    let block = superblock.block.bytes();
    if hash_offset.is_multiple_of(block) {
        Ok(superblock)
    } else {
        Err(Error::HashOffset { hash_offset, block })
    }
}

/// Checks that bytes after the data or the superblock are zeros; there are less than [`ALIGNMENT`].
fn check_zeros(file: &File, range: Range<u64>) -> Result<(), Error> {
    let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
    file.read_exact_at(&mut bytes, range.start)
        .map_err(Error::reading(range.start))?;
    let found = bytes.iter().position(|byte| *byte != 0);
    found.map_or(Ok(()), |at| Err(Error::Padding(range.start + at as u64)))
}

/// Returns the data blocks that have bytes of the range.
fn blocks(range: &impl RangeBounds<u64>, block: BlockSize, data_blocks: u64) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    let end = end.div_ceil(block.bytes()).min(data_blocks);
    if start < end.saturating_mul(block.bytes()) {
        start / block.bytes()..end
    } else {
        0..0
    }
}

/// A device that is being verified.
struct Device<'a> {
    file: &'a File,
    block: BlockSize,
    salted: Salted,
    work: Work<'a>,
}

impl Device<'_> {
    /// Verifies the tree from the root down, then the data blocks `data`.
    fn verify_tree(
        &self,
        shape: &Shape,
        root_hash: &RootHash,
        data: Range<u64>,
        too_few: impl Fn() -> Error,
    ) -> Result<(), Error> {
        for depth in (0..shape.regions.len()).rev() {
            let mut wanted = data.clone();
            for _ in 0..depth {
                wanted =
                    wanted.start / self.block.digests()..wanted.end.div_ceil(self.block.digests());
            }
            self.verify_blocks(shape, depth, root_hash, wanted.clone())?;
            // The last block of each level proves that the tree has no more digests.
            let last = shape.regions[depth].blocks - 1;
            if depth > 0 {
                if !wanted.contains(&last) {
                    self.verify_blocks(shape, depth, root_hash, last..last + 1)?;
                }
                if !self.is_full_of(shape, depth)? {
                    return Err(too_few());
                }
            }
        }
        Ok(())
    }

    /// Verifies blocks of a region against the digests in the region above it.
    fn verify_blocks(
        &self,
        shape: &Shape,
        depth: usize,
        root_hash: &RootHash,
        wanted: Range<u64>,
    ) -> Result<(), Error> {
        let region = shape.regions[depth];
        let above = shape.regions.get(depth + 1).map(|above| above.start);
        let blocks = PIECE / self.block.bytes();
        let pieces = (wanted.end - wanted.start).div_ceil(blocks);
        let scratch = || (Vec::new(), Vec::new());
        self.work.run(pieces, scratch, |(input, digests), piece| {
            let first = wanted.start + piece * blocks;
            let count = blocks.min(wanted.end - first) as usize;
            input.resize(count * self.block.len(), 0);
            self.read(input, region.start + first * self.block.bytes())?;
            digests.resize(count * DIGEST, 0);
            match above {
                Some(above) => self.read(digests, above + first * DIGEST as u64)?,
                None => digests.copy_from_slice(&root_hash.0),
            }
            let found = input.chunks_exact(self.block.len());
            let mut pairs = found.zip(digests.chunks_exact(DIGEST));
            match pairs.position(|(block, digest)| self.salted.digest(block) != digest) {
                Some(at) => Err(Error::Corrupt(place(depth, first + at as u64))),
                None => Ok(()),
            }
        })
    }

    /// Returns whether a level has nothing but the digests of the region below.
    fn is_full_of(&self, shape: &Shape, depth: usize) -> Result<bool, Error> {
        let (level, below) = (shape.regions[depth], shape.regions[depth - 1]);
        let end = level.start + level.blocks * self.block.bytes();
        let used = level.start + below.blocks * DIGEST as u64;
        let mut rest = vec![0; (end - used) as usize];
        self.read(&mut rest, used)?;
        Ok(rest.iter().all(|byte| *byte == 0))
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(Error::reading(offset))
    }
}

fn place(depth: usize, block: u64) -> Place {
    match depth.checked_sub(1) {
        Some(level) => Place::Hash { level, block },
        None => Place::Data(block),
    }
}
