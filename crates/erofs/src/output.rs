// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The file of an image, written from front to back.

use std::io::{self, Seek, SeekFrom, Write};

use crate::format::BLOCK;

/// Bytes of small writes that are buffered.
const BUFFER: usize = 256 * 1024;

/// Bytes from which on a write is not buffered.
const LARGE: usize = 32 * 1024;

/// A writer to a new, empty file.
#[derive(Debug)]
pub(crate) struct Output<W> {
    target: W,
    buffer: Vec<u8>,
    /// The offset of the next byte.
    position: u64,
}

impl<W: Write + Seek> Output<W> {
    /// Starts after the first block, which is written last.
    pub(crate) fn new(target: W) -> io::Result<Self> {
        let mut output = Self {
            target,
            buffer: Vec::new(),
            position: 0,
        };
        output.hole(BLOCK as u64)?;
        Ok(output)
    }

    /// Returns the offset of the next byte.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Writes bytes.
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

    /// Skips `count` bytes, which read as zeros. Whole blocks become a hole of the file.
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

    /// Skips to the next multiple of a block.
    pub(crate) fn align(&mut self) -> io::Result<()> {
        self.hole(self.position.wrapping_neg() % BLOCK as u64)
    }

    /// Writes the first block and returns the file. The last write must end with a whole block, so that
    /// the file is as long as the image.
    pub(crate) fn finish(mut self, first: &[u8; BLOCK]) -> io::Result<W> {
        self.flush()?;
        self.target.seek(SeekFrom::Start(0))?;
        self.target.write_all(first)?;
        self.target.flush()?;
        Ok(self.target)
    }

    /// Writes the buffer and frees it until the next write.
    pub(crate) fn free_buffer(&mut self) -> io::Result<()> {
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
