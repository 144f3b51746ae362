// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Decompression of streams with several members or frames. Zero bytes after the last one are ignored:
//! some tools pad blobs with them.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use crate::error::StreamError;
use crate::guard::Guard;
use crate::memory::StopReason;

/// Bytes of the buffer for a blob.
const BUFFER: usize = 256 * 1024;

/// A buffered blob with lookahead.
pub(super) struct Blob<R> {
    source: R,
    buffer: Vec<u8>,
    /// `buffer[start..end]` is not consumed yet.
    start: usize,
    end: usize,
}

impl<R: Read> Blob<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
        }
    }

    /// Returns the next bytes, at least `wanted` unless the blob ends before.
    pub(super) fn peek(&mut self, wanted: usize) -> io::Result<&[u8]> {
        while self.end - self.start < wanted {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let space = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.source.read(space) {
                Ok(0) => break,
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let bytes = self.buffer.get(self.start..self.end);
        Ok(bytes.unwrap_or_default())
    }
}

impl<R: Read> Read for Blob<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.fill_buf()?.read(buffer)?;
        self.consume(count);
        Ok(count)
    }
}

impl<R: Read> BufRead for Blob<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.peek(1)
    }

    fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }
}

/// Skips zeros, and returns whether another member follows.
fn has_next(blob: &mut impl BufRead) -> io::Result<bool> {
    let mut has_zeros = false;
    loop {
        let bytes = blob.fill_buf()?;
        let length = bytes.len();
        match bytes.iter().position(|byte| *byte != 0) {
            None if length == 0 => return Ok(false),
            None => has_zeros = true,
            Some(0) if !has_zeros => return Ok(true),
            Some(_) => {
                let text = "the compressed data is followed by zeros and then other data";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        blob.consume(length);
    }
}

/// A decoder of gzip (RFC 1952).
pub(super) struct Gzip<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Gzip<R> {
    pub(super) fn new(blob: R) -> Self {
        Self(Some(GzDecoder::new(blob)))
    }
}

impl<R: BufRead> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let count = member.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            let ended = self.0.take().map(GzDecoder::into_inner);
            if let Some(mut blob) = ended
                && has_next(&mut blob)?
            {
                self.0 = Some(GzDecoder::new(blob));
            }
        }
        Ok(0)
    }
}

/// The largest window of the format, as an exponent of two.
const MAX_WINDOW_LOG: u32 = 31;

/// Bytes that decompression takes besides the window, for blocks and tables.
const OVERHEAD: u64 = 512 << 10;

/// A decoder of zstd (RFC 8878). Its window counts as memory of the layer.
pub(super) struct Zstd<'a, R> {
    blob: Blob<R>,
    context: DCtx<'static>,
    guard: &'a Guard,
    /// Bytes taken of the layer's memory.
    taken: u64,
    /// Whether a frame has begun and not ended.
    is_in_frame: bool,
    /// Whether there was any output.
    has_output: bool,
}

impl<'a, R: Read> Zstd<'a, R> {
    pub(super) fn new(blob: Blob<R>, guard: &'a Guard) -> io::Result<Self> {
        let mut context = DCtx::create();
        let set = context.set_parameter(DParameter::WindowLogMax(MAX_WINDOW_LOG));
        set.map_err(zstd_error)?;
        Ok(Self {
            blob,
            context,
            guard,
            taken: 0,
            is_in_frame: false,
            has_output: false,
        })
    }

    /// Begins the next frame and takes the memory for it. Returns `false` at the end.
    fn begin_frame(&mut self) -> io::Result<bool> {
        if !has_next(&mut self.blob)? {
            return Ok(false);
        }
        let window = window(self.blob.peek(MAX_HEADER)?);
        let wanted = window.saturating_add(OVERHEAD);
        if let Some(more) = wanted.checked_sub(self.taken).filter(|more| *more > 0) {
            let taken = match window > 1 << MAX_WINDOW_LOG {
                true => Err(StopReason::LayerMemory(1 << MAX_WINDOW_LOG)),
                false => self.guard.take_memory(more),
            };
            taken.map_err(|reason| match reason {
                // There was no output yet, so the fallback can still write the layer.
                StopReason::LayerMemory(_) if !self.has_output => {
                    StreamError::Stopped(StopReason::Window(window))
                }
                reason => StreamError::Stopped(reason),
            })?;
            self.taken = wanted;
        }
        self.is_in_frame = true;
        Ok(true)
    }
}

impl<R: Read> Read for Zstd<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.is_in_frame && !self.begin_frame()? {
                return Ok(0);
            }
            let bytes = self.blob.fill_buf()?;
            let is_over = bytes.is_empty();
            let mut from = InBuffer::around(bytes);
            let mut to = OutBuffer::around(&mut *buffer);
            let left = self.context.decompress_stream(&mut to, &mut from);
            self.is_in_frame = left.map_err(zstd_error)? > 0;
            let (used, count) = (from.pos(), to.pos());
            self.blob.consume(used);
            self.has_output |= count > 0;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            if is_over && self.is_in_frame {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl<R> Drop for Zstd<'_, R> {
    fn drop(&mut self) {
        self.guard.give_memory(self.taken);
    }
}

fn zstd_error(code: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, get_error_name(code))
}

/// The most bytes of a frame's header.
const MAX_HEADER: usize = 18;

/// Returns the window of the frame with this header, or the size of its content if that is less. Returns
/// 0 for a skippable frame, and for what is not a frame.
pub(super) fn window(header: &[u8]) -> u64 {
    let Some((&[0x28, 0xb5, 0x2f, 0xfd, descriptor], rest)) = header.split_first_chunk() else {
        return 0;
    };
    let is_single = descriptor & 0x20 != 0;
    let number = |bytes: &[u8]| {
        let digits = bytes.iter().rev();
        digits.fold(0, |number: u64, digit| (number << 8) | u64::from(*digit))
    };
    let (window, rest) = match (is_single, rest) {
        (false, [window, rest @ ..]) => {
            let base = 1u64 << (10 + (window >> 3));
            (base + base / 8 * u64::from(window & 7), rest)
        }
        _ => (u64::MAX, rest),
    };
    let dictionary = [0, 1, 2, 4].get(usize::from(descriptor & 3));
    let rest = rest.get(*dictionary.unwrap_or(&0)..).unwrap_or_default();
    let content = match (descriptor >> 6, is_single) {
        (0, false) => return window,
        (0, true) => number(rest.get(..1).unwrap_or_default()),
        (1, _) => number(rest.get(..2).unwrap_or_default()) + 256,
        (2, _) => number(rest.get(..4).unwrap_or_default()),
        _ => number(rest.get(..8).unwrap_or_default()),
    };
    window.min(content)
}
