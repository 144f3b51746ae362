// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Frames that come from a client, and what becomes of each.

use http::uri::Authority;

use crate::hpack::{Decoder, Field, Malformed};

/// The largest header block that is followed, with the heads of its frames; and the largest list of
/// headers that is written anew, by the size that RFC 9113 gives it.
pub const MAX_BLOCK: usize = 1 << 20;

/// What a connection begins with.
const PREFACE: usize = 24;

/// What a frame begins with: the length of the rest, a kind, flags, a stream.
const HEAD: usize = 9;

/// The longest rest of a frame that a server takes that has not said otherwise.
const MAX_FRAME: usize = 16 << 10;

const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// What servers take in the place of what they do not.
const INSTEAD: &[u8] = b"localhost";

/// What becomes of the next bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// So many go on as they are.
    Pass(usize),
    /// So many are left out, and these are in their place.
    Replace(usize, Vec<u8>),
    /// That can be told when there are more.
    More,
}

/// What is known of a client's connection.
#[derive(Debug)]
pub(crate) struct Frames {
    /// How much is to come of what passes.
    passing: usize,
    /// How much of a block has been looked at that is not complete yet.
    walked: usize,
    decoder: Decoder,
    /// Whether a block was changed.
    changes: bool,
    /// Whether something was broken: the codec sees it, and ends the connection.
    broken: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            passing: PREFACE,
            walked: 0,
            decoder: Decoder::default(),
            changes: false,
            broken: false,
        }
    }
}

impl Frames {
    /// Looks at the next bytes, of which there is at least one. What passes or is left out is not
    /// shown again; other bytes are, with more behind them.
    pub(crate) fn step(&mut self, bytes: &[u8]) -> Step {
        if self.broken {
            return Step::Pass(bytes.len());
        }
        if self.passing > 0 {
            let count = self.passing.min(bytes.len());
            self.passing -= count;
            return Step::Pass(count);
        }
        let Some(head) = Head::read(bytes) else {
            return Step::More;
        };
        if head.kind != HEADERS {
            self.passing = HEAD + head.length;
            return self.step(bytes);
        }
        let end = match self.end_of_block(&head, bytes) {
            Ok(Some(end)) => end,
            Ok(None) => return Step::More,
            Err(Malformed) => return self.breaks(bytes),
        };
        self.walked = 0;
        match self.block(&head, &bytes[..end]) {
            Ok(None) => Step::Pass(end),
            Ok(Some(block)) => Step::Replace(end, frames(&head, &block)),
            Err(Malformed) => self.breaks(bytes),
        }
    }

    /// Where the block that begins here ends, once all of its frames are there.
    fn end_of_block(&mut self, first: &Head, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        loop {
            if self.walked > MAX_BLOCK {
                return Err(Malformed);
            }
            let Some(head) = Head::read(&bytes[self.walked..]) else {
                return Ok(None);
            };
            let is_next =
                self.walked == 0 || (head.kind == CONTINUATION && head.stream == first.stream);
            if !is_next || head.length > MAX_FRAME {
                return Err(Malformed);
            }
            let end = self.walked + HEAD + head.length;
            if end > bytes.len() {
                return Ok(None);
            }
            self.walked = end;
            if head.flags & END_HEADERS != 0 {
                return Ok(Some(end));
            }
        }
    }

    /// Reads a block of whole frames; gives it anew if it is to be another.
    fn block(&mut self, head: &Head, bytes: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
        let first = HEAD + head.length;
        let begin = fragment(head, &bytes[HEAD..first])?;
        if first == bytes.len() {
            return self.read(begin);
        }
        let mut whole = begin.to_vec();
        let mut rest = &bytes[first..];
        while let Some(head) = Head::read(rest) {
            let end = HEAD + head.length;
            whole.extend_from_slice(rest.get(HEAD..end).ok_or(Malformed)?);
            rest = &rest[end..];
        }
        self.read(&whole)
    }

    fn read(&mut self, block: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
        let mut out = self.changes.then(Vec::new);
        let mut size = 0_usize;
        self.decoder.read(block, |at, field| {
            size = size.saturating_add(field.size());
            // Of a list that is too long the codec has seen enough.
            let is_read = size <= 2 * MAX_BLOCK;
            let authority = field.authority().filter(|_| is_read);
            let is_taken = authority.is_none_or(|text| Authority::try_from(text).is_ok());
            if !is_taken && out.is_none() {
                // What is before it puts the same into both tables.
                out = Some(block[..at].to_vec());
            }
            let field = match is_taken {
                true => field,
                false => Field::Text {
                    name: b":authority",
                    value: INSTEAD,
                    never_indexed: false,
                },
            };
            if let Some(out) = &mut out
                && is_read
            {
                field.write(out);
            }
        })?;
        self.changes |= out.is_some();
        Ok(out)
    }

    fn breaks(&mut self, bytes: &[u8]) -> Step {
        self.broken = true;
        if !self.changes {
            return Step::Pass(bytes.len());
        }
        // Its table is another: it gets what is malformed with any. Index 0 is.
        let head = Head {
            length: 0,
            kind: HEADERS,
            flags: 0,
            stream: [0, 0, 0, 1],
        };
        Step::Replace(bytes.len(), frames(&head, &[0x80]))
    }
}

/// The first bytes of a frame.
#[derive(Debug)]
struct Head {
    length: usize,
    kind: u8,
    flags: u8,
    stream: [u8; 4],
}

impl Head {
    fn read(bytes: &[u8]) -> Option<Self> {
        let &[a, b, c, kind, flags, ref stream @ ..] = bytes.first_chunk::<HEAD>()?;
        let length = u32::from_be_bytes([0, a, b, c]);
        Some(Self {
            length: usize::try_from(length).ok()?,
            kind,
            flags,
            stream: *stream,
        })
    }
}

/// What of a frame's rest is of a block.
fn fragment<'a>(head: &Head, rest: &'a [u8]) -> Result<&'a [u8], Malformed> {
    let (mut begin, mut end) = (0, rest.len());
    if head.flags & PADDED != 0 {
        let padding = *rest.first().ok_or(Malformed)?;
        begin += 1;
        end = end.checked_sub(usize::from(padding)).ok_or(Malformed)?;
    }
    if head.flags & PRIORITY != 0 {
        begin += 5;
    }
    rest.get(begin..end).ok_or(Malformed)
}

/// The frames of a block that takes the place of another.
fn frames(head: &Head, block: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(block.len() + HEAD);
    let mut pieces = block.chunks(MAX_FRAME).peekable();
    let (mut kind, mut flags) = (HEADERS, head.flags & END_STREAM);
    while let Some(piece) = pieces.next() {
        if pieces.peek().is_none() {
            flags |= END_HEADERS;
        }
        let length = u32::try_from(piece.len()).unwrap_or(u32::MAX).to_be_bytes();
        out.extend_from_slice(&length[1..]);
        out.extend_from_slice(&[kind, flags]);
        out.extend_from_slice(&head.stream);
        out.extend_from_slice(piece);
        (kind, flags) = (CONTINUATION, 0);
    }
    out
}

#[cfg(test)]
mod tests;
