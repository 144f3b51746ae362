// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The sizes of blocks of images that are written here.

use crate::error::Fault;
use crate::format::NO_BLOCK;

/// The size of an image's blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockSize {
    pub(crate) bits: u8,
    /// The unit of addresses, for messages.
    what: &'static str,
}

impl BlockSize {
    /// The pages of most machines: no kernel supports larger blocks than its pages.
    pub(crate) const PAGE: Self = Self {
        bits: 12,
        what: "blocks of 4096 bytes",
    };

    /// The blocks of tars, which align data to them.
    pub(crate) const TAR: Self = Self {
        bits: 9,
        what: "blocks of 512 bytes",
    };

    pub(crate) fn bytes(self) -> u64 {
        1 << self.bits
    }

    /// Returns the number of blocks that hold this many bytes.
    pub(crate) fn count(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.bytes())
    }

    /// Returns the first start of a block at `offset` or later.
    pub(crate) fn align(self, offset: u64) -> u64 {
        offset.next_multiple_of(self.bytes())
    }

    /// Returns how far `offset` is from the start of its block.
    pub(crate) fn remainder(self, offset: u64) -> u64 {
        offset & (self.bytes() - 1)
    }

    /// Returns the block at `offset`. Refuses `size` bytes that exceed the block addresses, of which some
    /// are left for the metadata.
    pub(crate) fn address(self, offset: u64, size: u64) -> Result<u32, Fault> {
        let first = offset >> self.bits;
        if first + self.count(size) >= u64::from(NO_BLOCK) {
            return Err(Fault::limit(self.what, NO_BLOCK.into()));
        }
        Ok(u32::try_from(first).unwrap_or(NO_BLOCK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_limited() {
        for (size, terabytes) in [(BlockSize::PAGE, 16), (BlockSize::TAR, 2)] {
            let end = terabytes << 40;
            let block = size.bytes();
            assert_eq!(size.address(3 * block, 1).unwrap(), 3);
            assert!(size.address(0, end - 2 * block).is_ok());
            for (offset, length) in [(0, end), (end - 2 * block, block + 1), (1 << 63, 1 << 62)] {
                let fault = size.address(offset, length).unwrap_err().to_string();
                assert_eq!(
                    fault,
                    format!("more than 4294967295 blocks of {block} bytes")
                );
            }
        }
    }
}
