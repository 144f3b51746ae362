// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Header blocks.
//!
//! Offsets in bytes: name 0, mode 100, uid 108, gid 116, size 124, mtime 136, checksum 148, type
//! 156, link name 157, magic 257, device major 329 and minor 337; prefix 345 (POSIX, star); access
//! time 345 and change time 357 (GNU), 476 and 488 (star); sparse map 386, "more follow" 482 and real
//! size 483 (GNU).

use crate::entry::Time;
use crate::error::Fault;
use crate::number::{self, until_nul};
use crate::source::BLOCK;

/// A header block with a valid checksum and valid numbers.
#[derive(Debug, Clone)]
pub(crate) struct Header {
    block: Block,
    pub(crate) format: Format,
    pub(crate) mode: i64,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    /// Negative only if no data follows.
    pub(crate) size: i64,
    pub(crate) mtime: Time,
    /// Major and minor number, 0 in formats that have none.
    pub(crate) device: (i64, i64),
}

/// A format of tar headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Unix version 7, and any header with an unknown magic.
    Old,
    Gnu,
    /// ustar and pax.
    Posix,
    Star,
}

#[derive(Debug, Clone)]
struct Block([u8; BLOCK]);

impl Header {
    /// Parses the fields that Go's reader parses, also those that are not used, to refuse the same headers.
    pub(crate) fn new(block: [u8; BLOCK]) -> Result<Self, Fault> {
        let block = Block(block);
        block.check()?;
        let format = block.format();
        let device = match format {
            Format::Old => (0, 0),
            _ => (
                block.number(329, 8, "devmajor")?,
                block.number(337, 8, "devminor")?,
            ),
        };
        if format == Format::Star {
            block.number(476, 12, "atime")?;
            block.number(488, 12, "ctime")?;
        }
        let header = Self {
            format,
            mode: block.number(100, 8, "mode")?,
            uid: block.number(108, 8, "uid")?,
            gid: block.number(116, 8, "gid")?,
            size: block.number(124, 12, "size")?,
            mtime: Time {
                seconds: block.number(136, 12, "mtime")?,
                nanoseconds: 0,
            },
            device,
            block,
        };
        if header.size < 0 && !header.has_no_data() {
            return Err(Fault::Number("size"));
        }
        Ok(header)
    }

    /// Returns the type of the entry.
    pub(crate) fn kind(&self) -> u8 {
        self.block.byte(156)
    }

    /// Returns whether no data follows this type, whatever the size is.
    pub(crate) fn has_no_data(&self) -> bool {
        matches!(self.kind(), b'1'..=b'6')
    }

    /// Returns the name, with its prefix if the format has one.
    pub(crate) fn path(&self) -> Vec<u8> {
        let name = self.block.string(0, 100);
        let prefix = match self.format {
            Format::Posix => self.block.string(345, 155),
            Format::Star => self.block.string(345, 131),
            Format::Gnu => self.block.misplaced_prefix(),
            Format::Old => &[],
        };
        match prefix {
            b"" => name.to_vec(),
            _ => [prefix, b"/", name].concat(),
        }
    }

    /// Returns the target of a link.
    pub(crate) fn link(&self) -> Vec<u8> {
        self.block.string(157, 100).to_vec()
    }

    /// Returns the start of a GNU sparse map, whether it continues in further blocks, and the file's size.
    pub(crate) fn sparse(&self) -> Result<(&[u8], bool, u64), Fault> {
        let size = self.block.number(483, 12, "real size")?;
        let size = u64::try_from(size).map_err(|_| Fault::Number("real size"))?;
        Ok((self.block.bytes(386, 96), self.block.byte(482) != 0, size))
    }
}

impl Block {
    fn check(&self) -> Result<(), Fault> {
        let said = number::octal(self.bytes(148, 8)).ok_or(Fault::Checksum)?;
        // Old programs added up signed characters.
        if said != self.sum(i64::from) && said != self.sum(|byte| i8::from_ne_bytes([byte]).into())
        {
            return Err(Fault::Checksum);
        }
        Ok(())
    }

    /// Returns the sum of all bytes, with spaces in place of the checksum.
    fn sum(&self, value: impl Fn(u8) -> i64) -> i64 {
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| value(*byte)).sum::<i64>();
        sum(&self.0) - sum(self.bytes(148, 8)) + 8 * i64::from(b' ')
    }

    fn format(&self) -> Format {
        match (self.bytes(257, 6), self.bytes(263, 2)) {
            (b"ustar\0", _) if self.bytes(508, 4) == b"tar\0" => Format::Star,
            (b"ustar\0", _) => Format::Posix,
            (b"ustar ", b" \0") => Format::Gnu,
            _ => Format::Old,
        }
    }

    /// Returns a prefix that Go before 1.8 wrote where GNU's format has two times: ASCII that is not a
    /// number.
    fn misplaced_prefix(&self) -> &[u8] {
        let is_time =
            |offset| self.byte(offset) == 0 || number::field(self.bytes(offset, 12)).is_some();
        let prefix = self.string(345, 155);
        if (is_time(345) && is_time(357)) || !prefix.is_ascii() {
            return &[];
        }
        prefix
    }

    fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        self.0.get(offset..offset + length).unwrap_or_default()
    }

    fn byte(&self, offset: usize) -> u8 {
        self.0.get(offset).copied().unwrap_or_default()
    }

    fn string(&self, offset: usize, length: usize) -> &[u8] {
        until_nul(self.bytes(offset, length))
    }

    fn number(&self, offset: usize, length: usize, name: &'static str) -> Result<i64, Fault> {
        number::field(self.bytes(offset, length)).ok_or(Fault::Number(name))
    }
}
