// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! HPACK (RFC 7541): header blocks are decoded with the dynamic table of their sender, and encoded
//! without one.

use std::borrow::Cow;
use std::collections::VecDeque;

use bytes::Bytes;

use crate::huffman;

/// The largest dynamic table of a sender: the default, since no server here changes it.
const MAX_TABLE: usize = 4096;

/// The size of a table entry beside its name and value.
const OVERHEAD: usize = 32;

/// The largest integer that is decoded. No block is as long.
const MAX_INTEGER: usize = 1 << 27;

/// The names in the static table. The first has index 1.
const STATIC: [&str; 61] = [
    ":authority",
    ":method",
    ":method",
    ":path",
    ":path",
    ":scheme",
    ":scheme",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    ":status",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "accept",
    "access-control-allow-origin",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "link",
    "location",
    "max-forwards",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "refresh",
    "retry-after",
    "server",
    "set-cookie",
    "strict-transport-security",
    "transfer-encoding",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
];

/// The index of `:authority` in the static table, with an empty value.
const AUTHORITY: usize = 1;

/// A field of a header block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    /// An entry of the static table.
    Static(usize),
    Text {
        name: &'a [u8],
        value: &'a [u8],
        /// Whether no intermediary may add the field to a table.
        never_indexed: bool,
    },
}

impl<'a> Field<'a> {
    /// Returns the value, if the field is `:authority`.
    pub(crate) fn authority(&self) -> Option<&'a [u8]> {
        match *self {
            Self::Static(AUTHORITY) => Some(b""),
            Self::Text { name, value, .. } if name == b":authority" => Some(value),
            _ => None,
        }
    }

    /// Returns the size of the field in a header list.
    pub(crate) fn size(&self) -> usize {
        match *self {
            Self::Static(_) => OVERHEAD,
            Self::Text { name, value, .. } => OVERHEAD + name.len() + value.len(),
        }
    }

    /// Encodes the field without changing or referring to a dynamic table.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Static(index) => write_integer(0x80, 7, index, out),
            Self::Text {
                name,
                value,
                never_indexed,
            } => {
                out.push(if never_indexed { 0x10 } else { 0 });
                for text in [name, value] {
                    write_integer(0, 7, text.len(), out);
                    out.extend_from_slice(text);
                }
            }
        }
    }
}

/// The error for a malformed block or frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A decoder of header blocks, which must be decoded in the order in which they arrive.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The dynamic table, the newest entry first.
    table: VecDeque<(Bytes, Bytes)>,
    size: usize,
    max: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            table: VecDeque::new(),
            size: 0,
            max: MAX_TABLE,
        }
    }
}

impl Decoder {
    /// Decodes a block. Calls `each` with the position of each field, and the field.
    pub(crate) fn decode(
        &mut self,
        block: &[u8],
        mut each: impl FnMut(usize, Field<'_>),
    ) -> Result<(), Malformed> {
        let mut rest = block;
        while let Some(&first) = rest.first() {
            let at = block.len() - rest.len();
            if first & 0x80 != 0 {
                let index = integer(&mut rest, 7)?;
                each(at, self.indexed(index)?);
            } else if first & 0xe0 == 0x20 {
                let max = integer(&mut rest, 5)?;
                self.resize(max)?;
            } else {
                self.literal(first, &mut rest, |field| each(at, field))?;
            }
        }
        Ok(())
    }

    fn indexed(&self, index: usize) -> Result<Field<'_>, Malformed> {
        if (1..=STATIC.len()).contains(&index) {
            return Ok(Field::Static(index));
        }
        let index = index.checked_sub(STATIC.len() + 1).ok_or(Malformed)?;
        let (name, value) = self.table.get(index).ok_or(Malformed)?;
        Ok(Field::Text {
            name,
            value,
            never_indexed: false,
        })
    }

    fn literal(
        &mut self,
        first: u8,
        rest: &mut &[u8],
        each: impl FnOnce(Field<'_>),
    ) -> Result<(), Malformed> {
        let is_indexed = first & 0x40 != 0;
        let index = integer(rest, if is_indexed { 6 } else { 4 })?;
        let name = match index {
            0 => Name::Literal(string(rest)?),
            1..=61 => Name::Indexed(Bytes::from_static(STATIC[index - 1].as_bytes())),
            _ => {
                let entry = self.table.get(index - STATIC.len() - 1);
                Name::Indexed(entry.ok_or(Malformed)?.0.clone())
            }
        };
        let value = string(rest)?;
        each(Field::Text {
            name: name.bytes(),
            value: &value,
            never_indexed: first & 0xf0 == 0x10,
        });
        if is_indexed {
            self.insert(name, &value);
        }
        Ok(())
    }

    fn insert(&mut self, name: Name<'_>, value: &[u8]) {
        let size = OVERHEAD + name.bytes().len() + value.len();
        self.shrink(self.max.saturating_sub(size));
        // An entry larger than the table empties it.
        if size <= self.max {
            let name = match name {
                Name::Literal(name) => Bytes::copy_from_slice(&name),
                Name::Indexed(name) => name,
            };
            self.table.push_front((name, Bytes::copy_from_slice(value)));
            self.size += size;
        }
    }

    fn resize(&mut self, max: usize) -> Result<(), Malformed> {
        if max > MAX_TABLE {
            return Err(Malformed);
        }
        self.max = max;
        self.shrink(max);
        Ok(())
    }

    fn shrink(&mut self, size: usize) {
        while self.size > size
            && let Some((name, value)) = self.table.pop_back()
        {
            self.size -= OVERHEAD + name.len() + value.len();
        }
    }
}

/// The name of a field: from the block, or from a table.
enum Name<'a> {
    Literal(Cow<'a, [u8]>),
    Indexed(Bytes),
}

impl Name<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Literal(name) => name,
            Self::Indexed(name) => name,
        }
    }
}

fn string<'a>(rest: &mut &'a [u8]) -> Result<Cow<'a, [u8]>, Malformed> {
    let is_huffman = *rest.first().ok_or(Malformed)? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (text, remaining) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = remaining;
    if !is_huffman {
        return Ok(Cow::Borrowed(text));
    }
    // The shortest Huffman code has five bits.
    let mut out = Vec::with_capacity(text.len() * 8 / 5);
    huffman::decode(text, &mut out).ok_or(Malformed)?;
    Ok(Cow::Owned(out))
}

/// Decodes an integer that begins in the last `prefix` bits of a byte.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let mut next = || {
        let (&byte, remaining) = rest.split_first().ok_or(Malformed)?;
        *rest = remaining;
        Ok(usize::from(byte))
    };
    let mask = (1 << prefix) - 1;
    let mut number = next()? & mask;
    if number < mask {
        return Ok(number);
    }
    for shift in [0, 7, 14, 21] {
        let byte = next()?;
        number += (byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number)
                .filter(|&number| number <= MAX_INTEGER)
                .ok_or(Malformed);
        }
    }
    Err(Malformed)
}

fn write_integer(first: u8, prefix: u32, number: usize, out: &mut Vec<u8>) {
    let mask = (1 << prefix) - 1;
    let byte = |number: usize| u8::try_from(number).unwrap_or(u8::MAX);
    if number < mask {
        out.push(first | byte(number));
        return;
    }
    out.push(first | byte(mask));
    let mut rest = number - mask;
    while rest >= 0x80 {
        out.push(byte(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    out.push(byte(rest));
}

#[cfg(test)]
mod tests {
    use super::*;

    type Pairs = Vec<(String, String)>;

    fn decode(decoder: &mut Decoder, block: &[u8]) -> Result<Pairs, Malformed> {
        let mut pairs = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        decoder.decode(block, |_, field| {
            pairs.push(match field {
                Field::Static(index) => (STATIC[index - 1].to_owned(), index.to_string()),
                Field::Text { name, value, .. } => (text(name), text(value)),
            });
        })?;
        Ok(pairs)
    }

    #[test]
    fn the_examples_of_the_specification() {
        // RFC 7541, C.4: the second and third block refer to entries that the first adds.
        let mut decoder = Decoder::default();
        for (block, last, size) in [
            (
                &b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"[..],
                (":authority", "www.example.com"),
                57,
            ),
            (
                b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf",
                ("cache-control", "no-cache"),
                110,
            ),
            (
                b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\
                  \xb8\xe8\xb4\xbf",
                ("custom-key", "custom-value"),
                164,
            ),
        ] {
            let pairs = decode(&mut decoder, block).unwrap();
            let authority = (":authority".to_owned(), "www.example.com".to_owned());
            assert_eq!(pairs[3], authority);
            let (name, value) = pairs.last().unwrap();
            assert_eq!((&**name, &**value), last);
            assert_eq!(decoder.size, size);
        }
    }

    #[test]
    fn malformed_blocks_are_refused() {
        for block in [
            // Index 0, an index and a name that no entry has, a string that is cut off, an integer
            // without an end, one that is too large, a table that is too large.
            &b"\x80"[..],
            b"\xbe",
            b"\x7e\x00",
            b"\x00\x03ab",
            b"\x00",
            b"\x00\x7f\xff\xff\xff\xff\xff\xff",
            b"\x00\x7f\xff\xff\xff\x7f",
            b"\x3f\xe2\x1f",
        ] {
            let decoded = decode(&mut Decoder::default(), block);
            assert_eq!(decoded, Err(Malformed), "{block:x?}");
        }
    }

    #[test]
    fn a_table_keeps_to_its_size() {
        let mut decoder = Decoder::default();
        let mut block = Vec::new();
        for _ in 0..200 {
            block.push(0x40);
            write_integer(0, 7, 1, &mut block);
            block.push(b'a');
            write_integer(0, 7, 100, &mut block);
            block.extend([b'b'; 100]);
        }
        decode(&mut decoder, &block).unwrap();
        assert_eq!(decoder.table.len(), MAX_TABLE / 133);
        // A sender may shrink the table to nothing and grow it again.
        decode(&mut decoder, b"\x20\x3f\xe1\x1f").unwrap();
        assert_eq!((decoder.table.len(), decoder.size), (0, 0));
        decode(&mut decoder, b"\x40\x01a\x01b\xbe").unwrap();
        // An entry that does not fit empties it.
        let mut large = b"\x40\x01a\x7f\x81\x1f".to_vec();
        large.extend([b'b'; 0x7f + 0x81 - 0x80 + (0x1f << 7)]);
        decode(&mut decoder, &large).unwrap();
        assert_eq!((decoder.table.len(), decoder.size), (0, 0));
    }
}
