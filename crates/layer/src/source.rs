// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A buffered stream.

use std::io::{ErrorKind, Read};

use crate::error::Fault;

/// Bytes of a block; everything in a tar stream is a multiple of it.
pub(crate) const BLOCK: usize = 512;

/// Bytes of the buffer: large compared to the cost of a read, small compared to a second-level cache.
const BUFFER: usize = 256 * 1024;

/// The most bytes of data that always come in one piece.
const WHOLE: usize = 64 * 1024;

/// Returns the number of bytes that pad `size` bytes to whole blocks.
pub(crate) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// A stream that is read through one buffer of fixed size.
#[derive(Debug)]
pub(crate) struct Source<R> {
    stream: R,
    buffer: Vec<u8>,
    /// `buffer[start..end]` is read and not consumed.
    start: usize,
    end: usize,
    /// The offset of `start` in the stream.
    offset: u64,
}

impl<R: Read> Source<R> {
    pub(crate) fn new(stream: R) -> Self {
        Self {
            stream,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            offset: 0,
        }
    }

    /// Returns the number of bytes of the stream that have been consumed.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the next block, or `None` at the end of the stream.
    pub(crate) fn block(&mut self) -> Result<Option<&[u8; BLOCK]>, Fault> {
        self.fill(BLOCK)?;
        if self.start == self.end {
            return Ok(None);
        }
        let start = self.start;
        if self.end - start < BLOCK {
            return Err(Fault::Truncated);
        }
        self.take(BLOCK);
        let block = self.buffer.get(start..).and_then(<[u8]>::first_chunk);
        Ok(block)
    }

    /// Returns the next bytes, at most `limit`. They are empty only at the end of the stream, and complete
    /// if `limit` is small.
    pub(crate) fn bytes(&mut self, limit: u64) -> Result<&[u8], Fault> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        self.fill(limit.min(WHOLE))?;
        let start = self.start;
        let length = limit.min(self.end - start);
        self.take(length);
        Ok(self.buffer.get(start..start + length).unwrap_or_default())
    }

    /// Skips `count` bytes. Returns how many the stream had.
    pub(crate) fn skip(&mut self, count: u64) -> Result<u64, Fault> {
        let mut left = count;
        while left > 0 {
            // One byte is enough: skipped bytes are not moved in the buffer.
            self.fill(1)?;
            let here = u64::try_from(self.end - self.start).unwrap_or(u64::MAX);
            if here == 0 {
                break;
            }
            let step = here.min(left);
            self.take(usize::try_from(step).unwrap_or(0));
            left -= step;
        }
        Ok(count - left)
    }

    /// Reads the stream to its end.
    pub(crate) fn finish(mut self) -> Result<R, Fault> {
        self.skip(u64::MAX)?;
        Ok(self.stream)
    }

    fn take(&mut self, count: usize) {
        self.start += count;
        self.offset += count as u64;
    }

    /// Fills the buffer with `wanted` bytes, or with all that the stream has left.
    fn fill(&mut self, wanted: usize) -> Result<(), Fault> {
        if self.end - self.start >= wanted {
            return Ok(());
        }
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.start + wanted > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        while self.end - self.start < wanted {
            let space = self.buffer.get_mut(self.end..).unwrap_or_default();
            let most = space.len();
            match self.stream.read(space) {
                Ok(0) => break,
                // A wrong `Read` may return more than the length of the buffer.
                Ok(count) => self.end += count.min(most),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Read(error)),
            }
        }
        Ok(())
    }
}
