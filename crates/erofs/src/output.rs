// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The file of an image, written from front to back.

use std::io::{self, Seek, SeekFrom, Write};

use crate::block::BlockSize;
use crate::format::HEADER;

/// Bytes of small writes that are buffered.
const BUFFER: usize = 256 * 1024;

/// Bytes from which on a write is not buffered.
const LARGE: usize = 32 * 1024;

/// Bytes from which on zeros become a hole of the file: the blocks of most file systems.
const HOLE: usize = 4096;

/// A writer to a new, empty file.
#[derive(Debug)]
pub(crate) struct Output<W> {
    pub(crate) target: W,
    /// The blocks of the image.
    pub(crate) block: BlockSize,
    buffer: Vec<u8>,
    /// The offset of the next byte.
    position: u64,
}

impl<W: Write + Seek> Output<W> {
    /// Starts after the header, which is written last.
    pub(crate) fn new(target: W) -> io::Result<Self> {
        let mut output = Self {
            target,
            block: BlockSize::PAGE,
            buffer: Vec::new(),
            position: 0,
        };
        output.hole(HEADER as u64)?;
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

    /// Writes bytes of which zeros that are enough for a hole become one.
    pub(crate) fn put_sparse(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (zeros, rest) = bytes.split_at(run(bytes, true));
            self.hole(zeros.len() as u64)?;
            let (data, rest) = rest.split_at(run(rest, false));
            self.put(data)?;
            bytes = rest;
        }
        Ok(())
    }

    /// Skips `count` bytes, which read as zeros. If they are many, they become a hole of the file.
    pub(crate) fn hole(&mut self, count: u64) -> io::Result<()> {
        if count < HOLE as u64 {
            let zeros = [0; HOLE];
            let count = usize::try_from(count).unwrap_or(0);
            return self.put(zeros.get(..count).unwrap_or_default());
        }
        self.flush()?;
        self.position += count;
        self.target.seek(SeekFrom::Start(self.position)).map(drop)
    }

    /// Skips to the next multiple of a block.
    pub(crate) fn align(&mut self) -> io::Result<()> {
        self.hole(self.block.align(self.position) - self.position)
    }

    /// Writes the header and returns the file, which is as long as the image if that does not end with a
    /// hole.
    pub(crate) fn finish(mut self, header: &[u8; HEADER]) -> io::Result<W> {
        self.flush()?;
        self.target.seek(SeekFrom::Start(0))?;
        self.target.write_all(header)?;
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

/// Returns the bytes of the first blocks that all have zeros only, or that all have something else.
fn run(bytes: &[u8], is_zero: bool) -> usize {
    let zeros = [0; HOLE];
    let blocks = bytes.chunks(HOLE);
    let blocks = blocks.take_while(|block| zeros.starts_with(block) == is_zero);
    blocks.map(<[u8]>::len).sum()
}
