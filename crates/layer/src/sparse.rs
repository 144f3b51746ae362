// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Maps of sparse files ("Storing Sparse Files" in GNU tar's manual).

use std::io::Read;

use crate::entry::Extent;
use crate::error::Fault;
use crate::header::{Format, Header};
use crate::limits::Limits;
use crate::number;
use crate::source::{BLOCK, Source};

/// Bytes of a pair: an offset and a length, twelve bytes each.
const PAIR: usize = 24;

/// The most blocks of one file's map, the same as in Go.
const BLOCKS: u64 = (1 << 20) / BLOCK as u64;

/// A map under construction.
#[derive(Debug)]
pub(crate) struct Map {
    extents: Vec<Extent>,
    limit: usize,
    /// The end of the last extent.
    end: u64,
    /// Bytes of data.
    pub(crate) data: u64,
}

impl Map {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self {
            extents: Vec::new(),
            limit: limits.extents,
            end: 0,
            data: 0,
        }
    }

    fn push(&mut self, offset: u64, length: u64) -> Result<(), Fault> {
        if offset < self.end {
            return Err(Fault::Sparse("extents overlap or are out of order"));
        }
        self.end = offset
            .checked_add(length)
            .ok_or(Fault::Sparse("an extent ends nowhere"))?;
        self.data += length;
        if length == 0 {
            return Ok(());
        }
        if self.extents.len() >= self.limit {
            return Err(Fault::limit("extents of a sparse file", self.limit));
        }
        self.extents.push(Extent { offset, length });
        Ok(())
    }

    /// Returns the extents. They must lie within `size` bytes, and have `packed` bytes of data.
    pub(crate) fn finish(self, size: u64, packed: u64) -> Result<Vec<Extent>, Fault> {
        if self.end > size {
            return Err(Fault::Sparse("an extent lies outside of the file"));
        }
        if self.data != packed {
            return Err(Fault::Sparse("it has more or less data than its entry"));
        }
        Ok(self.extents)
    }

    /// Adds pairs of GNU's own format, up to one that starts with NUL.
    fn pairs(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        for pair in bytes.chunks_exact(PAIR) {
            let (offset, length) = pair.split_at(PAIR / 2);
            if offset.first() == Some(&0) {
                break;
            }
            let part = |bytes| {
                let value = number::field(bytes).and_then(|value| u64::try_from(value).ok());
                value.ok_or(Fault::Sparse("bad number"))
            };
            self.push(part(offset)?, part(length)?)?;
        }
        Ok(())
    }

    /// Reads the map of type `S`: four pairs in the header, further ones in blocks of 21 after it. Returns
    /// the size of the file.
    pub(crate) fn gnu(
        &mut self,
        header: &Header,
        source: &mut Source<impl Read>,
    ) -> Result<u64, Fault> {
        if header.format != Format::Gnu {
            return Err(Fault::Sparse("it is not in GNU's format"));
        }
        let (pairs, mut more, size) = header.sparse()?;
        self.pairs(pairs)?;
        // The limit of extents is not enough: empty ones are not stored.
        let mut blocks = 1;
        while more {
            blocks += 1;
            if blocks > BLOCKS {
                return Err(Fault::Sparse("its map is longer than 1 MiB"));
            }
            let block = source.block()?.ok_or(Fault::Truncated)?;
            let (pairs, rest) = block.split_at(21 * PAIR);
            more = rest.first() != Some(&0);
            self.pairs(pairs)?;
        }
        Ok(size)
    }

    /// Reads the map of pax 0.0 and 0.1: all numbers joined by commas, and the number of pairs.
    pub(crate) fn records(&mut self, map: &[u8], said: Option<i64>) -> Result<(), Fault> {
        let mut numbers = map.split(|byte| *byte == b',');
        let mut count = 0;
        if map.is_empty() {
            numbers.next();
        }
        while let Some(offset) = numbers.next() {
            let length = numbers
                .next()
                .ok_or(Fault::Sparse("an extent without a length"))?;
            let part = |text| {
                let value = number::decimal(text).and_then(|value| u64::try_from(value).ok());
                value.ok_or(Fault::Sparse("bad number"))
            };
            self.push(part(offset)?, part(length)?)?;
            count += 1;
        }
        if said != Some(count) {
            return Err(Fault::Sparse("it has more or fewer extents than it says"));
        }
        Ok(())
    }

    /// Reads the map of pax 1.0: lines before the data, padded to a whole block, with the number of
    /// extents and then the numbers. Returns how many of the `packed` bytes it took.
    pub(crate) fn lines(
        &mut self,
        source: &mut Source<impl Read>,
        packed: u64,
    ) -> Result<u64, Fault> {
        let mut lines = Lines {
            used: 0,
            packed,
            value: None,
        };
        let mut count = None;
        let mut offset = None;
        while count != Some(0) {
            let block = lines.block(source)?;
            for byte in block {
                let Some(value) = lines.byte(*byte)? else {
                    continue;
                };
                match (count, offset.take()) {
                    (None, _) if value > self.limit as u64 => {
                        return Err(Fault::limit("extents of a sparse file", self.limit));
                    }
                    (None, _) => count = Some(value),
                    (Some(_), None) => offset = Some(value),
                    (Some(left), Some(offset)) => {
                        self.push(offset, value)?;
                        count = left.checked_sub(1);
                    }
                }
                if count == Some(0) {
                    break;
                }
            }
        }
        Ok(lines.used)
    }
}

/// A parser of decimal numbers, one in each line.
struct Lines {
    used: u64,
    packed: u64,
    value: Option<u64>,
}

impl Lines {
    fn block<'a>(&mut self, source: &'a mut Source<impl Read>) -> Result<&'a [u8; BLOCK], Fault> {
        self.used += BLOCK as u64;
        if self.used > self.packed {
            return Err(Fault::Sparse("it is longer than its entry"));
        }
        if self.used > BLOCKS * BLOCK as u64 {
            return Err(Fault::Sparse("its map is longer than 1 MiB"));
        }
        source.block()?.ok_or(Fault::Truncated)
    }

    /// Returns the number that ends with this byte, if one does.
    fn byte(&mut self, byte: u8) -> Result<Option<u64>, Fault> {
        let bad = Fault::Sparse("bad number");
        match byte {
            b'\n' => self.value.take().ok_or(bad).map(Some),
            b'0'..=b'9' => {
                let value = self.value.unwrap_or(0).checked_mul(10);
                let value = value.and_then(|value| value.checked_add(u64::from(byte - b'0')));
                // The same limit as for all other numbers.
                self.value = Some(
                    value
                        .filter(|value| i64::try_from(*value).is_ok())
                        .ok_or(bad)?,
                );
                Ok(None)
            }
            _ => Err(bad),
        }
    }
}
