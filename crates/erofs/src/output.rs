// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The image file, written from front to back.

use std::io::{self, Seek, SeekFrom, Write};

use crate::format::BLOCK;

/// Small pieces are gathered until there are as many bytes as these.
const BUFFER: usize = 256 * 1024;

/// Pieces of at least this many bytes are not copied.
const LARGE: usize = 32 * 1024;

/// A new, empty file.
#[derive(Debug)]
pub(crate) struct Output<W> {
    target: W,
    buffer: Vec<u8>,
    /// Where the next byte goes.
    position: u64,
}

impl<W: Write + Seek> Output<W> {
    /// Leaves the first block for later.
    pub(crate) fn new(target: W) -> io::Result<Self> {
        let mut output = Self {
            target,
            buffer: Vec::new(),
            position: 0,
        };
        output.hole(BLOCK as u64)?;
        Ok(output)
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.position += bytes.len() as u64;
        if bytes.len() >= LARGE {
            self.flush()?;
            return self.target.write_all(bytes);
        }
        if self.buffer.len() + bytes.len() > BUFFER {
            self.flush()?;
        }
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(BUFFER);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Goes on `count` bytes later, which read as zeros. Whole blocks of them are left out of the
    /// file.
    pub(crate) fn hole(&mut self, count: u64) -> io::Result<()> {
        if count < BLOCK as u64 {
            let zeros = [0; BLOCK];
            let count = usize::try_from(count).unwrap_or(0);
            return self.put(zeros.get(..count).unwrap_or_default());
        }
        self.flush()?;
        self.position += count;
        self.target.seek(SeekFrom::Start(self.position)).map(drop)
    }

    /// Goes on at the next multiple of a block.
    pub(crate) fn align(&mut self) -> io::Result<()> {
        self.hole(self.position.wrapping_neg() % BLOCK as u64)
    }

    /// Writes the first block, and gives the file back. Ends with a whole block, so that the file is
    /// as long as the image.
    pub(crate) fn finish(mut self, first: &[u8; BLOCK]) -> io::Result<W> {
        self.flush()?;
        self.target.seek(SeekFrom::Start(0))?;
        self.target.write_all(first)?;
        self.target.flush()?;
        Ok(self.target)
    }

    /// Keeps no memory until there is more to write.
    pub(crate) fn rest(&mut self) -> io::Result<()> {
        self.flush()?;
        self.buffer = Vec::new();
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.target.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }
}
