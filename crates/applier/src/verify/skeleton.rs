// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! An image without its data, of which only the digests of blocks are kept.

use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;

use resnap_verity::{BlockSize, Leaves};
use rustix::fs::{MemfdFlags, memfd_create};

use crate::error::StreamError;
use crate::guard::Guard;

/// Bytes of a block.
pub(super) const BLOCK: u64 = 4096;

/// The blocks whose digests are allocated at once: those of 128 MiB, in 1 MiB of memory.
const PART: u64 = 32 * 1024;

/// Bytes of a digest.
const DIGEST: u64 = 32;

/// The digests of an image's blocks.
#[derive(Debug, Default)]
pub(super) struct Digests(Vec<Leaves>);

impl Digests {
    /// Returns whether a block of the image has these bytes.
    pub(super) fn is_block(&self, number: u64, bytes: &[u8]) -> bool {
        let part = usize::try_from(number / PART).ok();
        let part = part.and_then(|part| self.0.get(part));
        let number = usize::try_from(number % PART).ok();
        let same = part
            .zip(number)
            .and_then(|(part, number)| part.is_block(number, bytes));
        same == Some(true)
    }
}

/// A target for an image, written from front to back.
#[derive(Debug)]
pub(super) struct Skeleton {
    /// The metadata, in memory, at its offsets in the image.
    file: File,
    digests: Digests,
    guard: Guard,
    is_data: bool,
    position: u64,
    /// The offset of the next byte of data.
    end: u64,
}

impl Skeleton {
    pub(super) fn new(guard: Guard) -> io::Result<Self> {
        Ok(Self {
            file: memfd_create("resnap-verify", MemfdFlags::CLOEXEC)?.into(),
            digests: Digests::default(),
            guard,
            is_data: true,
            position: 0,
            end: 0,
        })
    }

    /// Keeps all that is written from now on. The last block of data ends with zeros.
    pub(super) fn end_data(&mut self) -> io::Result<()> {
        // A hole may be the last that was written.
        let end = self.end.max(self.position).next_multiple_of(BLOCK);
        self.is_data = false;
        self.hash(None, end - self.end)
    }

    /// Returns the metadata, and the digests of the data.
    pub(super) fn into_parts(self) -> (File, Digests) {
        (self.file, self.digests)
    }

    /// Hashes the next `count` bytes of data: those of `bytes`, or zeros.
    fn hash(&mut self, mut bytes: Option<&[u8]>, mut count: u64) -> io::Result<()> {
        while count > 0 {
            let used = self.end % (PART * BLOCK);
            if used == 0 {
                self.take_memory(PART * DIGEST)?;
                let limit = usize::try_from(PART).unwrap_or(usize::MAX);
                self.digests.0.push(Leaves::new(BlockSize::B4096, limit));
            }
            let piece = count.min(PART * BLOCK - used);
            if let Some(leaves) = self.digests.0.last_mut() {
                match &mut bytes {
                    None => leaves.hole(piece),
                    Some(bytes) => {
                        let piece = usize::try_from(piece).unwrap_or(usize::MAX);
                        let (now, rest) = bytes.split_at(piece.min(bytes.len()));
                        leaves.update(now);
                        *bytes = rest;
                    }
                }
            }
            self.end += piece;
            count -= piece;
        }
        Ok(())
    }

    fn take_memory(&self, bytes: u64) -> io::Result<()> {
        let taken = self.guard.take_memory(bytes);
        Ok(taken.map_err(StreamError::Stopped)?)
    }
}

impl Write for Skeleton {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len() as u64;
        if self.is_data {
            let hole = self.position.checked_sub(self.end);
            let hole = hole.ok_or_else(|| io::Error::other("data is written twice"))?;
            self.hash(None, hole)?;
            self.hash(Some(bytes), length)?;
        } else {
            self.take_memory(length)?;
            self.file.write_all_at(bytes, self.position)?;
        }
        self.position += length;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for Skeleton {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match to {
            SeekFrom::Start(position) => self.position = position,
            SeekFrom::Current(_) | SeekFrom::End(_) => {
                return Err(io::ErrorKind::Unsupported.into());
            }
        }
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn data_is_hashed_and_metadata_kept() {
        let mut image = Skeleton::new(Guard::from(CancellationToken::new())).unwrap();
        image.seek(SeekFrom::Start(BLOCK)).unwrap();
        image.write_all(&[1; 5000]).unwrap();
        image.write_all(&[2; 3192]).unwrap();
        // In another part of the digests.
        let far = (PART + 5) * BLOCK;
        image.seek(SeekFrom::Start(far)).unwrap();
        image.write_all(&[3; 100]).unwrap();
        image.seek(SeekFrom::Start(far + 2 * BLOCK)).unwrap();
        image.end_data().unwrap();
        image.write_all(&[4; 100]).unwrap();
        image.seek(SeekFrom::Start(0)).unwrap();
        image.write_all(&[5; 10]).unwrap();
        let (file, digests) = image.into_parts();
        let mut second = [2; 4096];
        second[..904].fill(1);
        let mut last = [0; 4096];
        last[..100].fill(3);
        for (number, bytes) in [
            (1, [1; 4096]),
            (2, second),
            (3, [0; 4096]),
            (PART + 5, last),
        ] {
            assert!(digests.is_block(number, &bytes), "{number}");
            assert!(!digests.is_block(number + 1, &bytes) || number == 3);
        }
        assert!(digests.is_block(PART + 6, &[0; 4096]));
        assert!(!digests.is_block(PART + 7, &[4; 4096]));
        let mut kept = [0; 110];
        file.read_exact_at(&mut kept[..100], far + 2 * BLOCK)
            .unwrap();
        file.read_exact_at(&mut kept[100..], 0).unwrap();
        assert_eq!(kept[..100], [4; 100]);
        assert_eq!(kept[100..], [5; 10]);
    }
}
