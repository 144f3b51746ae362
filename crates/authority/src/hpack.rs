// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Header blocks (RFC 7541): read with the table that their sender has, and written without one.

use std::borrow::Cow;
use std::collections::VecDeque;

use bytes::Bytes;

use crate::huffman;

/// How large a sender's table may become, as no server here says otherwise.
const MAX_TABLE: usize = 4096;

/// What an entry takes of it beside its name and value.
const OVERHEAD: usize = 32;

/// The longest string; no block is as long.
const MAX_INTEGER: usize = 1 << 27;

/// The names of the static table; the first has index 1.
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

/// The only entry of the static table whose value may have to be another.
const AUTHORITY: usize = 1;

/// A field of a block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    /// An entry of the static table, which is everybody's.
    Static(usize),
    Text {
        name: &'a [u8],
        value: &'a [u8],
        /// Whether nobody on its way may put it into a table.
        never_indexed: bool,
    },
}

impl<'a> Field<'a> {
    /// The authority, if it is that.
    pub(crate) fn authority(&self) -> Option<&'a [u8]> {
        match *self {
            Self::Static(AUTHORITY) => Some(b""),
            Self::Text { name, value, .. } if name == b":authority" => Some(value),
            _ => None,
        }
    }

    /// What it takes of a list of headers.
    pub(crate) fn size(&self) -> usize {
        match *self {
            Self::Static(_) => OVERHEAD,
            Self::Text { name, value, .. } => OVERHEAD + name.len() + value.len(),
        }
    }

    /// Writes it so that it changes no table, and needs none but the static one.
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

/// What cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

/// Reads blocks, in the order in which they come.
#[derive(Debug)]
pub(crate) struct Decoder {
    /// The newest is the first.
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
    /// Reads a block; `each` is told where a field begins, and what it is.
    pub(crate) fn read(
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
            0 => Name::Own(string(rest)?),
            1..=61 => Name::Kept(Bytes::from_static(STATIC[index - 1].as_bytes())),
            _ => {
                let kept = self.table.get(index - STATIC.len() - 1);
                Name::Kept(kept.ok_or(Malformed)?.0.clone())
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
        // One that is larger than the table empties it.
        if size <= self.max {
            let name = match name {
                Name::Own(name) => Bytes::copy_from_slice(&name),
                Name::Kept(name) => name,
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

/// A name in a block, or in a table.
enum Name<'a> {
    Own(Cow<'a, [u8]>),
    Kept(Bytes),
}

impl Name<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(name) => name,
            Self::Kept(name) => name,
        }
    }
}

fn string<'a>(rest: &mut &'a [u8]) -> Result<Cow<'a, [u8]>, Malformed> {
    let is_huffman = *rest.first().ok_or(Malformed)? & 0x80 != 0;
    let length = integer(rest, 7)?;
    let (text, behind) = rest.split_at_checked(length).ok_or(Malformed)?;
    *rest = behind;
    if !is_huffman {
        return Ok(Cow::Borrowed(text));
    }
    // The shortest code has five bits.
    let mut out = Vec::with_capacity(text.len() * 8 / 5);
    huffman::decode(text, &mut out).ok_or(Malformed)?;
    Ok(Cow::Owned(out))
}

/// A number that begins in the last `prefix` bits of a byte.
fn integer(rest: &mut &[u8], prefix: u32) -> Result<usize, Malformed> {
    let mut next = || {
        let (&byte, behind) = rest.split_first().ok_or(Malformed)?;
        *rest = behind;
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

    fn read(decoder: &mut Decoder, block: &[u8]) -> Result<Pairs, Malformed> {
        let mut pairs = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        decoder.read(block, |_, field| {
            pairs.push(match field {
                Field::Static(index) => (STATIC[index - 1].to_owned(), index.to_string()),
                Field::Text { name, value, .. } => (text(name), text(value)),
            });
        })?;
        Ok(pairs)
    }

    #[test]
    fn the_examples_of_the_specification() {
        // RFC 7541, C.4: the second and third refer to what the first put into the table.
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
            let pairs = read(&mut decoder, block).unwrap();
            let authority = (":authority".to_owned(), "www.example.com".to_owned());
            assert_eq!(pairs[3], authority);
            let (name, value) = pairs.last().unwrap();
            assert_eq!((&**name, &**value), last);
            assert_eq!(decoder.size, size);
        }
    }

    #[test]
    fn what_is_no_block_is_malformed() {
        for block in [
            // Index 0, one that nobody set, a name that nobody set, a string that is cut off, a
            // number that does not end, one that is too large, a table that is.
            &b"\x80"[..],
            b"\xbe",
            b"\x7e\x00",
            b"\x00\x03ab",
            b"\x00",
            b"\x00\x7f\xff\xff\xff\xff\xff\xff",
            b"\x00\x7f\xff\xff\xff\x7f",
            b"\x3f\xe2\x1f",
        ] {
            let read = read(&mut Decoder::default(), block);
            assert_eq!(read, Err(Malformed), "{block:x?}");
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
        read(&mut decoder, &block).unwrap();
        assert_eq!(decoder.table.len(), MAX_TABLE / 133);
        // To nothing and back, as a sender may.
        read(&mut decoder, b"\x20\x3f\xe1\x1f").unwrap();
        assert_eq!((decoder.table.len(), decoder.size), (0, 0));
        read(&mut decoder, b"\x40\x01a\x01b\xbe").unwrap();
        // One that has no room empties it.
        let mut large = b"\x40\x01a\x7f\x81\x1f".to_vec();
        large.extend([b'b'; 0x7f + 0x81 - 0x80 + (0x1f << 7)]);
        read(&mut decoder, &large).unwrap();
        assert_eq!((decoder.table.len(), decoder.size), (0, 0));
    }
}
