// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Digests of data blocks, computed while the data is written.

use sha2::{Digest as _, Sha256};

use crate::block::{BlockSize, DIGEST, Digest, Salted};
use crate::superblock::Superblock;

/// The digests of the first data blocks of a device, made from its bytes as they are written from front to
/// back.
///
/// [`append`](crate::append) reads and hashes the blocks that have no digest here.
#[derive(Debug)]
pub struct Leaves {
    block: BlockSize,
    salted: Salted,
    /// The digest of a block of zeros.
    zeros: Digest,
    digests: Vec<Digest>,
    limit: usize,
    /// A block of which some bytes are known.
    partial: Option<(Sha256, usize)>,
}

const ZEROS: [u8; 4096] = [0; 4096];

impl Leaves {
    /// Creates digests for blocks of this size. The first `limit` are kept, which take 32 bytes each.
    pub fn new(block: BlockSize, limit: usize) -> Self {
        let salted = Salted::new(Superblock::new(block, 0, [0; 16]).salt());
        Self {
            block,
            zeros: salted.digest(&ZEROS[..block.len()]),
            salted,
            digests: Vec::new(),
            limit,
            partial: None,
        }
    }

    /// Adds the next bytes of the device.
    pub fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.digests.len() < self.limit {
            if self.partial.is_none()
                && let Some((block, rest)) = bytes.split_at_checked(self.block.len())
            {
                self.push(self.salted.digest(block));
                bytes = rest;
                continue;
            }
            let start = || (self.salted.start(), 0);
            let (mut hash, filled) = self.partial.take().unwrap_or_else(start);
            let missing = self.block.len() - filled;
            let (part, rest) = bytes.split_at(missing.min(bytes.len()));
            hash.update(part);
            if part.len() == missing {
                self.push(hash.finalize().into());
            } else {
                self.partial = Some((hash, filled + part.len()));
            }
            bytes = rest;
        }
    }

    /// Adds zeros. Their number costs nothing but the memory for their digests.
    pub fn hole(&mut self, mut count: u64) {
        if let Some((_, filled)) = &self.partial {
            let missing = (self.block.len() - filled) as u64;
            let fill = missing.min(count);
            self.update(&ZEROS[..fill as usize]);
            count -= fill;
        }
        let room = (self.limit - self.digests.len()) as u64;
        for _ in 0..room.min(count / self.block.bytes()) {
            self.push(self.zeros);
        }
        self.update(&ZEROS[..(count % self.block.bytes()) as usize]);
    }

    /// Replaces the digests of whole blocks that were written again at `offset`. If it is not whole blocks,
    /// or if some have no digest yet, the digests from there on are given up.
    pub fn rewrite(&mut self, offset: u64, bytes: &[u8]) {
        let first = usize::try_from(offset / self.block.bytes()).unwrap_or(usize::MAX);
        let last = first.saturating_add(bytes.len().div_ceil(self.block.len()));
        let whole = offset.is_multiple_of(self.block.bytes())
            && bytes.len().is_multiple_of(self.block.len());
        let known = self.digests.get_mut(first..last).filter(|_| whole);
        match known {
            Some(digests) => {
                for (digest, block) in digests.iter_mut().zip(bytes.chunks(self.block.len())) {
                    *digest = self.salted.digest(block);
                }
            }
            None if bytes.is_empty() => {}
            None => {
                self.digests.truncate(first);
                self.limit = self.limit.min(first);
                self.partial = None;
            }
        }
    }

    /// Returns whether a block of the device, counted from 0, has these bytes, or `None` if its digest is not
    /// kept.
    pub fn is_block(&self, number: usize, bytes: &[u8]) -> Option<bool> {
        let digest = self.digests.get(number)?;
        Some(self.salted.digest(bytes) == *digest)
    }

    /// Returns the number of blocks whose digests are kept.
    pub fn len(&self) -> usize {
        self.digests.len()
    }

    /// Returns whether no digests are kept.
    pub fn is_empty(&self) -> bool {
        self.digests.is_empty()
    }

    pub(crate) fn block(&self) -> BlockSize {
        self.block
    }

    pub(crate) fn digests(&self) -> &[Digest] {
        &self.digests
    }

    fn push(&mut self, digest: Digest) {
        if self.digests.len() == self.digests.capacity() {
            // Doubled like any other vector, but never beyond the limit.
            let room = self.limit - self.digests.len();
            let more = self.digests.len().max(PAGE / DIGEST).min(room);
            self.digests.reserve_exact(more);
        }
        self.digests.push(digest);
    }
}

/// The first allocation, in bytes.
const PAGE: usize = 4096;
