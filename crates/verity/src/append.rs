// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Trees, written behind their data.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use crate::block::{BlockSize, DIGEST, Digest, Salted};
use crate::error::Error;
use crate::leaves::Leaves;
use crate::root_hash::RootHash;
use crate::shape::{Region, Shape};
use crate::superblock::Superblock;
use crate::work::{PIECE, Work};

/// A hash offset is a multiple of this: Kata Containers takes it for a number of blocks of this size.
pub(crate) const ALIGNMENT: u64 = 4096;

/// The result of [`append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Appended {
    /// The digest of the tree.
    pub root_hash: RootHash,
    /// The offset of the superblock, in bytes: the size of the data, rounded up to 4096.
    pub hash_offset: u64,
    /// The size of the file.
    pub size: u64,
}

/// Writes a superblock and a hash tree behind the first `size` bytes of the file, and returns the root hash.
///
/// The bytes are those that `veritysetup format` writes for the same data, UUID and offset, and a salt of 32
/// zero bytes. What the file has after the data is replaced. Memory does not depend on the size. Nothing is
/// flushed to disk.
///
/// # Errors
///
/// Data that is not whole blocks is refused, and digests of other data. After an error the file has a part of
/// the tree, and needs another call before it is used as a device.
pub fn append(
    file: &File,
    size: u64,
    block: BlockSize,
    uuid: [u8; 16],
    leaves: Option<&Leaves>,
    work: Work<'_>,
) -> Result<Appended, Error> {
    let bytes = block.bytes();
    let unfit = Error::Size { size, block: bytes };
    let data_blocks = size / bytes;
    let offset = size.checked_next_multiple_of(ALIGNMENT);
    let shape = offset.and_then(|offset| Shape::new(block, data_blocks, offset));
    let (Some(hash_offset), Some(shape), true) = (offset, shape, size.is_multiple_of(bytes)) else {
        return Err(unfit);
    };
    let known = leaves.map_or(Ok(&[][..]), |leaves| known(leaves, block, data_blocks))?;
    let length = file.metadata().map_err(Error::reading(0))?.len();
    if length < size {
        let expected = size;
        return Err(Error::Short {
            size: length,
            expected,
        });
    }

    let superblock = Superblock::new(block, data_blocks, uuid);
    let tree = Tree {
        file,
        block,
        salted: Salted::new(superblock.salt()),
        work,
    };
    // Makes all padding zeros, whatever was there.
    for length in [size, shape.end] {
        file.set_len(length).map_err(Error::writing(length))?;
    }
    let root = tree.write(&shape, known)?;
    // Last, so that an interrupted call leaves no superblock.
    file.write_all_at(&superblock.encode(), hash_offset)
        .map_err(Error::writing(hash_offset))?;
    Ok(Appended {
        root_hash: RootHash(root),
        hash_offset,
        size: shape.end,
    })
}

fn known(leaves: &Leaves, block: BlockSize, data_blocks: u64) -> Result<&[Digest], Error> {
    let digests = leaves.digests();
    if leaves.block() == block && digests.len() as u64 <= data_blocks {
        return Ok(digests);
    }
    Err(Error::Leaves {
        digests: digests.len() as u64,
        block: leaves.block().bytes(),
    })
}

/// A tree that is being written.
struct Tree<'a> {
    file: &'a File,
    block: BlockSize,
    salted: Salted,
    work: Work<'a>,
}

/// The memory of a thread.
struct Scratch {
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Tree<'_> {
    /// Writes all levels and returns the root hash. The digests of the first data blocks are known.
    fn write(&self, shape: &Shape, mut known: &[Digest]) -> Result<Digest, Error> {
        for (input, output) in shape.regions.iter().zip(shape.regions.iter().skip(1)) {
            self.write_level(*input, output.start, known)?;
            known = &[];
        }
        if let Some(root) = known.first() {
            return Ok(*root);
        }
        let top = shape.regions.last().map_or(0, |region| region.start);
        let mut bytes = vec![0; self.block.len()];
        self.file
            .read_exact_at(&mut bytes, top)
            .map_err(Error::reading(top))?;
        Ok(self.salted.digest(&bytes))
    }

    /// Writes the digests of the blocks of a region.
    fn write_level(&self, input: Region, output: u64, known: &[Digest]) -> Result<(), Error> {
        let blocks = PIECE / self.block.bytes();
        let scratch = || Scratch {
            input: Vec::new(),
            output: Vec::new(),
        };
        let pieces = input.blocks.div_ceil(blocks);
        self.work.run(pieces, scratch, |scratch, piece| {
            let first = piece * blocks;
            let count = blocks.min(input.blocks - first) as usize;
            scratch.output.clear();
            let range = usize::try_from(first).ok();
            let known = range.and_then(|first| known.get(first..)?.get(..count));
            if let Some(known) = known {
                scratch.output.extend_from_slice(known.as_flattened());
            } else {
                let at = input.start + first * self.block.bytes();
                scratch.input.resize(count * self.block.len(), 0);
                self.file
                    .read_exact_at(&mut scratch.input, at)
                    .map_err(Error::reading(at))?;
                for block in scratch.input.chunks_exact(self.block.len()) {
                    scratch.output.extend_from_slice(&self.salted.digest(block));
                }
            }
            let at = output + first * DIGEST as u64;
            self.file
                .write_all_at(&scratch.output, at)
                .map_err(Error::writing(at))
        })
    }
}
