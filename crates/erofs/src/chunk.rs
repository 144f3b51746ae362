// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Files in chunks: the location of each chunk is behind the inode, as the address of a block, or as an
//! index, which also has a device.

use crate::block::BlockSize;
use crate::format::{Get, NO_BLOCK};

/// Bits of an inode with the size of chunks, in powers of blocks.
const SIZE: u32 = 0x1f;
/// The bit of an inode whose chunks have indexes.
const INDEXES: u32 = 0x20;

/// Bytes of an index.
pub(crate) const INDEX: u64 = 8;
/// Bytes of an address.
const ADDRESS: u64 = 4;

/// The form of a file's chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunks {
    /// Bytes of a chunk: `2^this` blocks.
    bits: u32,
    has_indexes: bool,
}

/// The location of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkPlace {
    /// The number of a device, or 0 for the image.
    pub(crate) device: u16,
    pub(crate) block: u32,
}

impl Chunks {
    /// Returns the form for a file of `size` bytes whose data is in one piece: one chunk, or as few as
    /// their size permits.
    pub(crate) fn of_piece(size: u64, block: BlockSize) -> Self {
        let blocks = block.count(size).max(1);
        let bits = u64::BITS - (blocks - 1).leading_zeros();
        Self {
            bits: bits.min(SIZE),
            has_indexes: true,
        }
    }

    /// Returns the form in an inode, or `None` if it is not known.
    pub(crate) fn decode(place: u32) -> Option<Self> {
        // The upper half is reserved.
        let form = place & 0xffff;
        (form & !(SIZE | INDEXES) == 0).then_some(Self {
            bits: form & SIZE,
            has_indexes: form & INDEXES != 0,
        })
    }

    /// Returns what an inode has instead of a block.
    pub(crate) fn encode(self) -> u32 {
        self.bits | if self.has_indexes { INDEXES } else { 0 }
    }

    /// Returns the bytes of a chunk.
    pub(crate) fn bytes(self, block_bits: u8) -> u64 {
        1 << (u32::from(block_bits) + self.bits)
    }

    /// Returns the bytes that describe each chunk.
    pub(crate) fn unit(self) -> u64 {
        if self.has_indexes { INDEX } else { ADDRESS }
    }

    /// Returns the bytes that describe all chunks of a file of `size` bytes.
    pub(crate) fn table(self, size: u64, block: BlockSize) -> u64 {
        size.div_ceil(self.bytes(block.bits)) * self.unit()
    }

    /// Returns the location that these bytes describe, or `None` for a hole.
    pub(crate) fn place(self, unit: &[u8]) -> Option<ChunkPlace> {
        let place = match self.has_indexes {
            true => ChunkPlace {
                device: Get(unit).u16(2),
                block: Get(unit).u32(4),
            },
            false => ChunkPlace {
                device: 0,
                block: Get(unit).u32(0),
            },
        };
        (place.block != NO_BLOCK).then_some(place)
    }

    /// Returns the indexes of the chunks of a piece of `size` bytes that starts at `place`.
    pub(crate) fn indexes(
        self,
        size: u64,
        block: BlockSize,
        place: ChunkPlace,
    ) -> impl Iterator<Item = [u8; INDEX as usize]> {
        let count = size.div_ceil(self.bytes(block.bits));
        (0..count).map(move |number| {
            let address = u64::from(place.block) + (number << self.bits);
            let address = u32::try_from(address).unwrap_or(NO_BLOCK);
            let [a, b] = place.device.to_le_bytes();
            let [c, d, e, f] = address.to_le_bytes();
            [0, 0, a, b, c, d, e, f]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_few_chunks() {
        let place = ChunkPlace {
            device: 1,
            block: 100,
        };
        for (size, bits, addresses) in [
            (1, 0, vec![100]),
            (512, 0, vec![100]),
            (513, 1, vec![100]),
            (1025, 2, vec![100]),
            (1 << 40, 31, vec![100]),
            ((1 << 40) + 1, 31, vec![100, 100 + (1 << 31)]),
        ] {
            let chunks = Chunks::of_piece(size, BlockSize::TAR);
            assert_eq!(chunks.bits, bits);
            assert_eq!(Chunks::decode(chunks.encode()), Some(chunks));
            let indexes = chunks.indexes(size, BlockSize::TAR, place);
            let places: Vec<_> = indexes.map(|index| chunks.place(&index).unwrap()).collect();
            let expected = addresses.iter().map(|block| ChunkPlace {
                device: 1,
                block: *block,
            });
            assert_eq!(places, expected.collect::<Vec<_>>());
        }
    }

    #[test]
    fn holes_and_unknown_forms() {
        let plain = Chunks::decode(3).unwrap();
        assert_eq!((plain.unit(), plain.bytes(9)), (4, 4096));
        assert_eq!(plain.place(&[0xff; 4]), None);
        let indexed = Chunks::decode(INDEXES | 0xabcd_0000).unwrap();
        assert_eq!(indexed.unit(), 8);
        assert_eq!(indexed.place(&[0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff]), None);
        for unknown in [0x40, 0x80, 0x8000] {
            assert_eq!(Chunks::decode(unknown), None);
        }
    }
}
