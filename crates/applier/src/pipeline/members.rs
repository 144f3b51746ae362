// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Compressed streams of several members or frames. Zero bytes behind the last one are ignored: some
//! tools fill a blob up with them.

use std::io::{self, BufRead, Read};

use flate2::bufread::GzDecoder;
use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use super::CHUNK;

use crate::error::Through;
use crate::guard::Guard;
use crate::memory::Denied;

/// A blob through one buffer, which is looked into before it is read.
pub(super) struct Blob<R> {
    source: R,
    buffer: Vec<u8>,
    /// `buffer[start..end]` is not read yet.
    start: usize,
    end: usize,
}

impl<R: Read> Blob<R> {
    pub(super) fn new(source: R) -> Self {
        Self {
            source,
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
        }
    }

    /// The next bytes, at least so many where the blob has them.
    pub(super) fn ahead(&mut self, wanted: usize) -> io::Result<&[u8]> {
        while self.end - self.start < wanted {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let room = self.buffer.get_mut(self.end..).unwrap_or_default();
            match self.source.read(room) {
                Ok(0) => break,
                Ok(count) => self.end += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let ahead = self.buffer.get(self.start..self.end);
        Ok(ahead.unwrap_or_default())
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
        self.ahead(1)
    }

    fn consume(&mut self, count: usize) {
        self.start = self.end.min(self.start + count);
    }
}

/// Whether another member follows.
fn next(blob: &mut impl BufRead) -> io::Result<bool> {
    let mut has_zeros = false;
    loop {
        let bytes = blob.fill_buf()?;
        let length = bytes.len();
        match bytes.iter().position(|byte| *byte != 0) {
            None if length == 0 => return Ok(false),
            None => has_zeros = true,
            Some(0) if !has_zeros => return Ok(true),
            Some(_) => {
                let text = "something else follows zeros behind the compressed data";
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
        }
        blob.consume(length);
    }
}

/// gzip (RFC 1952).
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
                && next(&mut blob)?
            {
                self.0 = Some(GzDecoder::new(blob));
            }
        }
        Ok(0)
    }
}

/// The largest window that there is, as an exponent of two.
const WINDOW: u32 = 31;

/// Bytes that decompressing takes beside the window: blocks, and tables.
const BESIDE: u64 = 512 << 10;

/// zstd (RFC 8878). The memory for its window comes out of the layer's.
pub(super) struct Zstd<'a, R> {
    blob: Blob<R>,
    context: DCtx<'static>,
    guard: &'a Guard,
    /// Bytes of the layer's memory.
    taken: u64,
    is_inside: bool,
    /// Whether anything has come out.
    has_begun: bool,
}

impl<'a, R: Read> Zstd<'a, R> {
    pub(super) fn new(blob: Blob<R>, guard: &'a Guard) -> io::Result<Self> {
        let mut context = DCtx::create();
        let set = context.set_parameter(DParameter::WindowLogMax(WINDOW));
        set.map_err(of_zstd)?;
        Ok(Self {
            blob,
            context,
            guard,
            taken: 0,
            is_inside: false,
            has_begun: false,
        })
    }

    /// Takes the memory for another frame; `None` at the end.
    fn begin(&mut self) -> io::Result<Option<()>> {
        if !next(&mut self.blob)? {
            return Ok(None);
        }
        let window = window(self.blob.ahead(HEADER)?);
        let wanted = window.saturating_add(BESIDE);
        if let Some(more) = wanted.checked_sub(self.taken).filter(|more| *more > 0) {
            let taken = match window > 1 << WINDOW {
                true => Err(Denied::Layer(1 << WINDOW)),
                false => self.guard.take(more),
            };
            taken.map_err(|denied| match denied {
                // Nothing has come of the layer: another may do it.
                Denied::Layer(_) if !self.has_begun => Through::Denied(Denied::Window(window)),
                denied => Through::Denied(denied),
            })?;
            self.taken = wanted;
        }
        self.is_inside = true;
        Ok(Some(()))
    }
}

impl<R: Read> Read for Zstd<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.is_inside && self.begin()?.is_none() {
                return Ok(0);
            }
            let bytes = self.blob.fill_buf()?;
            let is_over = bytes.is_empty();
            let mut from = InBuffer::around(bytes);
            let mut to = OutBuffer::around(&mut *buffer);
            let left = self.context.decompress_stream(&mut to, &mut from);
            self.is_inside = left.map_err(of_zstd)? > 0;
            let (used, count) = (from.pos(), to.pos());
            self.blob.consume(used);
            self.has_begun |= count > 0;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            if is_over && self.is_inside {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

impl<R> Drop for Zstd<'_, R> {
    fn drop(&mut self) {
        self.guard.give(self.taken);
    }
}

fn of_zstd(code: usize) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, get_error_name(code))
}

/// As many bytes as the header of a frame has at most.
const HEADER: usize = 18;

/// The window of the frame with this header, or its content if that is less. 0 for one that is to be
/// skipped, and for what is none.
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
