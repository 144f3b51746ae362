// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One header block.
//!
//! Offsets in bytes: name 0, mode 100, uid 108, gid 116, size 124, mtime 136, checksum 148, type
//! 156, link name 157, magic 257, device major 329 and minor 337; prefix 345 (POSIX); sparse map
//! 386, "more follow" 482 and real size 483 (GNU).

use crate::error::Fault;
use crate::number;
use crate::source::BLOCK;

/// A header block whose checksum is right.
#[derive(Debug, Clone)]
pub(crate) struct Header([u8; BLOCK]);

impl Header {
    pub(crate) fn new(block: [u8; BLOCK]) -> Result<Self, Fault> {
        let header = Self(block);
        let said = header.number(148, 8, "checksum")?;
        // Old programs added up signed characters.
        if said != header.sum(i64::from)
            && said != header.sum(|byte| i8::from_ne_bytes([byte]).into())
        {
            return Err(Fault::Checksum);
        }
        Ok(header)
    }

    /// The sum of all bytes, with spaces in the place of the checksum.
    fn sum(&self, value: impl Fn(u8) -> i64) -> i64 {
        let sum = |bytes: &[u8]| bytes.iter().map(|byte| value(*byte)).sum::<i64>();
        sum(&self.0) - sum(self.bytes(148, 8)) + 8 * i64::from(b' ')
    }

    fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        self.0.get(offset..offset + length).unwrap_or_default()
    }

    /// Up to the first NUL.
    fn string(&self, offset: usize, length: usize) -> &[u8] {
        until_nul(self.bytes(offset, length))
    }

    fn number(&self, offset: usize, length: usize, name: &'static str) -> Result<i64, Fault> {
        number::field(self.bytes(offset, length)).ok_or(Fault::Number(name))
    }

    pub(crate) fn kind(&self) -> u8 {
        self.bytes(156, 1).first().copied().unwrap_or_default()
    }

    pub(crate) fn is_gnu(&self) -> bool {
        self.bytes(257, 8) == b"ustar  \0"
    }

    fn is_posix(&self) -> bool {
        self.bytes(257, 6) == b"ustar\0"
    }

    /// The name, with its prefix where the format has one.
    pub(crate) fn path(&self) -> Vec<u8> {
        let name = self.string(0, 100);
        let prefix = match (self.is_posix(), self.bytes(508, 4)) {
            (true, b"tar\0") => self.string(345, 131),
            (true, _) => self.string(345, 155),
            (false, _) => &[],
        };
        match prefix {
            b"" => name.to_vec(),
            _ => [prefix, b"/", name].concat(),
        }
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        self.string(157, 100).to_vec()
    }

    pub(crate) fn mode(&self) -> Result<i64, Fault> {
        self.number(100, 8, "mode")
    }

    pub(crate) fn uid(&self) -> Result<i64, Fault> {
        self.number(108, 8, "uid")
    }

    pub(crate) fn gid(&self) -> Result<i64, Fault> {
        self.number(116, 8, "gid")
    }

    pub(crate) fn size(&self) -> Result<u64, Fault> {
        u64::try_from(self.number(124, 12, "size")?).map_err(|_| Fault::Number("size"))
    }

    pub(crate) fn mtime(&self) -> Result<i64, Fault> {
        self.number(136, 12, "mtime")
    }

    /// Major and minor number.
    pub(crate) fn device(&self) -> Result<(u32, u32), Fault> {
        if !self.is_gnu() && !self.is_posix() {
            return Ok((0, 0));
        }
        let part = |offset, name| {
            u32::try_from(self.number(offset, 8, name)?).map_err(|_| Fault::Number(name))
        };
        Ok((part(329, "devmajor")?, part(337, "devminor")?))
    }

    /// The beginning of a GNU sparse map, whether it goes on in further blocks, and the file's size.
    pub(crate) fn sparse(&self) -> Result<(&[u8], bool, u64), Fault> {
        let size = self.number(483, 12, "real size")?;
        let size = u64::try_from(size).map_err(|_| Fault::Number("real size"))?;
        Ok((self.bytes(386, 96), self.bytes(482, 1) != [0], size))
    }
}

pub(crate) fn until_nul(bytes: &[u8]) -> &[u8] {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    bytes.get(..end).unwrap_or(bytes)
}
