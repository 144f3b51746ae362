// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The stream, through one buffer.

use std::io::{ErrorKind, Read};

use crate::error::Fault;

/// What everything in a tar stream is a multiple of, in bytes.
pub(crate) const BLOCK: usize = 512;

/// Large enough that a read costs nothing beside the bytes, small enough for a second-level cache.
const BUFFER: usize = 256 * 1024;

/// Data of up to this many bytes comes in one piece.
const WHOLE: usize = 64 * 1024;

/// Returns the number of bytes that pad `size` bytes to whole blocks.
pub(crate) fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// A stream that is read through one buffer, which never grows.
#[derive(Debug)]
pub(crate) struct Source<R> {
    stream: R,
    buffer: Vec<u8>,
    /// `buffer[start..end]` is read and not used.
    start: usize,
    end: usize,
    /// Where `start` is in the stream.
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

    /// How much of the stream has been used, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next block; `None` at the end of the stream.
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

    /// The next bytes, at most `limit` of them and at least one where the stream has not ended; all
    /// of them where `limit` is small.
    pub(crate) fn bytes(&mut self, limit: u64) -> Result<&[u8], Fault> {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        self.fill(limit.min(WHOLE))?;
        let start = self.start;
        let length = limit.min(self.end - start);
        self.take(length);
        Ok(self.buffer.get(start..start + length).unwrap_or_default())
    }

    /// Passes over `count` bytes; how many the stream still had.
    pub(crate) fn skip(&mut self, count: u64) -> Result<u64, Fault> {
        let mut left = count;
        while left > 0 {
            // One byte is enough to go on: nothing is moved for bytes that nobody looks at.
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

    /// Has `wanted` bytes at hand, or all that the stream has left.
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
                // A stream that says more than there is room for is wrong, not trusted.
                Ok(count) => self.end += count.min(most),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Read(error)),
            }
        }
        Ok(())
    }
}
