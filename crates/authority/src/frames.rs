// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The frames of a client, and what to do with each.

use http::uri::Authority;

use crate::hpack::{Decoder, Field, Malformed};

/// The largest header block that is parsed, including the headers of its frames. Also the limit for
/// the header list of a rewritten block, in the size that RFC 9113 defines.
pub const MAX_BLOCK: usize = 1 << 20;

/// The length of the connection preface.
const PREFACE_LEN: usize = 24;

/// The length of a frame header: the length of the payload, a type, flags, and a stream.
const FRAME_HEADER_LEN: usize = 9;

/// The longest payload of a frame, as servers accept it by default.
const MAX_PAYLOAD: usize = 16 << 10;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// The authority that replaces invalid ones.
const REPLACEMENT: &[u8] = b"localhost";

/// What to do with the next bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Forward this many bytes.
    Pass(usize),
    /// Forward these bytes instead of this many.
    Replace(usize, Vec<u8>),
    /// Read more bytes first.
    Incomplete,
}

/// The state of the parser of a connection.
#[derive(Debug)]
pub(crate) struct Frames {
    /// The bytes that are still to be forwarded without parsing.
    passthrough: usize,
    /// The length of the frames found so far of an incomplete header block.
    scanned: usize,
    decoder: Decoder,
    /// Whether a block was rewritten.
    rewriting: bool,
    /// Whether a frame was malformed. The codec gets it, and ends the connection.
    failed: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            passthrough: PREFACE_LEN,
            scanned: 0,
            decoder: Decoder::default(),
            rewriting: false,
            failed: false,
        }
    }
}

impl Frames {
    /// Parses the next bytes, of which there must be at least one. The next call starts behind the
    /// bytes that are forwarded or replaced, or repeats `bytes` with more behind them.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Step {
        if self.failed {
            return Step::Pass(bytes.len());
        }
        if self.passthrough > 0 {
            let count = self.passthrough.min(bytes.len());
            self.passthrough -= count;
            return Step::Pass(count);
        }
        let Some(header) = FrameHeader::read(bytes) else {
            return Step::Incomplete;
        };
        if header.kind != HEADERS {
            self.passthrough = FRAME_HEADER_LEN + header.length;
            return self.step(bytes);
        }
        let end = match self.end_of_block(&header, bytes) {
            Ok(Some(end)) => end,
            Ok(None) => return Step::Incomplete,
            Err(Malformed) => return self.fail(bytes),
        };
        self.scanned = 0;
        match self.decode_frames(&header, &bytes[..end]) {
            Ok(None) => Step::Pass(end),
            Ok(Some(block)) => Step::Replace(end, encode_frames(&header, &block)),
            Err(Malformed) => self.fail(bytes),
        }
    }

    /// Returns where the header block at the start of `bytes` ends; `None` if it is incomplete.
    fn end_of_block(
        &mut self,
        first: &FrameHeader,
        bytes: &[u8],
    ) -> Result<Option<usize>, Malformed> {
        loop {
            if self.scanned > MAX_BLOCK {
                return Err(Malformed);
            }
            let Some(header) = FrameHeader::read(&bytes[self.scanned..]) else {
                return Ok(None);
            };
            let continues =
                self.scanned == 0 || (header.kind == CONTINUATION && header.stream == first.stream);
            if !continues || header.length > MAX_PAYLOAD {
                return Err(Malformed);
            }
            let end = self.scanned + FRAME_HEADER_LEN + header.length;
            if end > bytes.len() {
                return Ok(None);
            }
            self.scanned = end;
            if header.flags & END_HEADERS != 0 {
                return Ok(Some(end));
            }
        }
    }

    /// Decodes the header block of these frames. Returns a new block if it must be rewritten.
    fn decode_frames(
        &mut self,
        header: &FrameHeader,
        bytes: &[u8],
    ) -> Result<Option<Vec<u8>>, Malformed> {
        let first = FRAME_HEADER_LEN + header.length;
        let begin = fragment(header, &bytes[FRAME_HEADER_LEN..first])?;
        if first == bytes.len() {
            return self.decode_block(begin);
        }
        let mut whole = begin.to_vec();
        let mut rest = &bytes[first..];
        while let Some(header) = FrameHeader::read(rest) {
            let end = FRAME_HEADER_LEN + header.length;
            whole.extend_from_slice(rest.get(FRAME_HEADER_LEN..end).ok_or(Malformed)?);
            rest = &rest[end..];
        }
        self.decode_block(&whole)
    }

    fn decode_block(&mut self, block: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
        let mut out = self.rewriting.then(Vec::new);
        let mut size = 0_usize;
        self.decoder.decode(block, |at, field| {
            size = size.saturating_add(field.size());
            // The codec rejects a list of this size: the rest is neither validated nor written.
            let in_limit = size <= 2 * MAX_BLOCK;
            let authority = field.authority().filter(|_| in_limit);
            let is_valid = authority.is_none_or(|text| Authority::try_from(text).is_ok());
            if !is_valid && out.is_none() {
                // The fields before this one have the same effect on both tables.
                out = Some(block[..at].to_vec());
            }
            let field = if is_valid {
                field
            } else {
                Field::Text {
                    name: b":authority",
                    value: REPLACEMENT,
                    never_indexed: false,
                }
            };
            if let Some(out) = &mut out
                && in_limit
            {
                field.write(out);
            }
        })?;
        self.rewriting |= out.is_some();
        Ok(out)
    }

    fn fail(&mut self, bytes: &[u8]) -> Step {
        self.failed = true;
        if !self.rewriting {
            return Step::Pass(bytes.len());
        }
        // The table of the codec differs from the client's. Index 0 is malformed with any table.
        let header = FrameHeader {
            length: 0,
            kind: HEADERS,
            flags: 0,
            stream: [0, 0, 0, 1],
        };
        Step::Replace(bytes.len(), encode_frames(&header, &[0x80]))
    }
}

/// The header of a frame.
#[derive(Debug)]
struct FrameHeader {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

impl FrameHeader {
    fn read(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, ref stream @ ..] = bytes.first_chunk::<FRAME_HEADER_LEN>()?;
        let length = u32::from_be_bytes([0, a, b, c]);
        Some(Self {
            length: usize::try_from(length).ok()?,
            kind,
            flags,
            stream: *stream,
        })
    }
}

/// Returns the part of a payload that belongs to the header block.
fn fragment<'a>(header: &FrameHeader, payload: &'a [u8]) -> Result<&'a [u8], Malformed> {
    let (mut begin, mut end) = (0, payload.len());
    if header.flags & PADDED != 0 {
        let padding = *payload.first().ok_or(Malformed)?;
        begin += 1;
        end = end.checked_sub(usize::from(padding)).ok_or(Malformed)?;
    }
    if header.flags & PRIORITY != 0 {
        begin += 5;
    }
    payload.get(begin..end).ok_or(Malformed)
}

/// Encodes the frames of a rewritten block.
fn encode_frames(header: &FrameHeader, block: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(block.len() + FRAME_HEADER_LEN);
    let mut pieces = block.chunks(MAX_PAYLOAD).peekable();
    let (mut kind, mut flags) = (HEADERS, header.flags & END_STREAM);
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            flags |= END_HEADERS;
        }
        let length = u32::try_from(piece.len()).unwrap_or(u32::MAX).to_be_bytes();
        out.extend_from_slice(&length[1..]);
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&header.stream);
        out.extend_from_slice(piece);
        (kind, flags) = (CONTINUATION, 0);
    }
    out
}

#[cfg(test)]
mod tests;
