// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Extended attributes: inline ones, and those that inodes share. What begins their names has a
//! number: one that Linux gives, or the image.

use resnap_layer::Xattr;

use super::{ErofsReader, ImageError, Node, ReadAt, Result, read};
use crate::format::{Get, XATTR_HEADER};
use crate::xattr::PREFIXES;

/// Bytes of an attribute before its name.
const ENTRY: usize = 4;

/// Marks the index of a prefix that is the image's own.
const LONG_PREFIX: u8 = 0x80;

/// Bytes of all attributes of an inode, names and values, as many as the format has room for behind
/// one. With shared ones there could be more.
const MOST: usize = 1 << 18;

/// As long as a name may be, in bytes.
const LONGEST: usize = 255;

impl<R: ReadAt> ErofsReader<R> {
    /// The extended attributes of a node, ordered by name. Those of kinds that have no name on Linux
    /// are left out.
    ///
    /// # Errors
    ///
    /// They are malformed, or the file cannot be read.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>> {
        let mut xattrs = Vec::new();
        let mut size = 0;
        self.each(node, &mut |entry, text| {
            let (name, value) = text()?;
            size += name.len() + value.len();
            if size > MOST {
                let what = "more than 256 KiB of extended attributes at an inode";
                return Err(ImageError::Unsupported(what));
            }
            xattrs.extend(self.decode(entry.index, &name, value)?);
            Ok(true)
        })?;
        xattrs.sort();
        Ok(xattrs)
    }

    /// Whether a node has this attribute with this value. Others are not read.
    ///
    /// # Errors
    ///
    /// As [`Self::xattrs`].
    pub fn has_xattr(&self, node: &Node, name: &[u8], value: &[u8]) -> Result<bool> {
        let mut is_found = false;
        self.each(node, &mut |entry, text| {
            if entry.value == value.len() && entry.name <= name.len() {
                let (rest, found) = text()?;
                let found = self.decode(entry.index, &rest, found)?;
                is_found = found.is_some_and(|xattr| xattr.name == name && xattr.value == value);
            }
            Ok(!is_found)
        })?;
        Ok(is_found)
    }

    /// Goes through the attributes of a node as long as `each` says so, which reads them or not.
    fn each(&self, node: &Node, each: &mut Each<'_>) -> Result<()> {
        let corrupt = || ImageError::Corrupt {
            what: "extended attributes",
            offset: node.offset,
        };
        if node.inode.xattrs == 0 {
            return Ok(());
        }
        // At most 256 KiB: the count in the inode has 16 bits.
        let mut body = vec![0; node.inode.xattrs];
        read(
            &self.source,
            node.offset + node.inode.length as u64,
            &mut body,
        )?;
        let shared = usize::from(Get(&body).u8(4));
        let mut rest = body.get(XATTR_HEADER + 4 * shared..).ok_or_else(corrupt)?;
        for index in 0..shared {
            let id = Get(&body).u32(XATTR_HEADER + 4 * index);
            let offset = self.block(self.superblock.xattrs) + 4 * u64::from(id);
            let mut head = [0; ENTRY];
            read(&self.source, offset, &mut head)?;
            let entry = Entry::of(&head);
            let text = &|| {
                let mut text = vec![0; entry.name + entry.value];
                read(&self.source, offset + ENTRY as u64, &mut text)?;
                let value = text.split_off(entry.name);
                Ok((text, value))
            };
            if !each(entry, text)? {
                return Ok(());
            }
        }
        while rest.len() >= ENTRY {
            let entry = Entry::of(rest);
            let text = rest.get(ENTRY..ENTRY + entry.name + entry.value);
            let (name, value) = text.ok_or_else(corrupt)?.split_at(entry.name);
            if !each(entry, &|| Ok((name.to_vec(), value.to_vec())))? {
                return Ok(());
            }
            let used = (ENTRY + entry.name + entry.value).next_multiple_of(ENTRY);
            rest = rest.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    fn decode(&self, index: u8, rest: &[u8], value: Vec<u8>) -> Result<Option<Xattr>> {
        let prefix = match index & LONG_PREFIX {
            0 => prefix(index),
            _ => {
                let found = self.prefixes()?.get(usize::from(index ^ LONG_PREFIX));
                found.and_then(Option::as_deref)
            }
        };
        Ok(prefix.map(|prefix| Xattr {
            name: [prefix, rest].concat(),
            value,
        }))
    }

    /// The image's own prefixes; `None` for those that begin with none of Linux.
    fn prefixes(&self) -> Result<&[Option<Vec<u8>>]> {
        match self.prefixes.get() {
            Some(prefixes) => Ok(prefixes),
            None => {
                let prefixes = self.read_prefixes()?;
                Ok(self.prefixes.get_or_init(|| prefixes))
            }
        }
    }

    /// Each is the length of what follows (2 bytes), the index of what it begins with, and the rest,
    /// filled up to 4 bytes.
    fn read_prefixes(&self) -> Result<Vec<Option<Vec<u8>>>> {
        let place = self.superblock.prefixes;
        let node = place.node.map(|id| self.node(id)).transpose()?;
        let corrupt = |offset| ImageError::Corrupt {
            what: "prefix of extended attributes",
            offset,
        };
        let fill = |buffer: &mut [u8], at| match &node {
            None => read(&self.source, at, buffer),
            Some(node) if self.read(node, at, buffer)? < buffer.len() => Err(corrupt(node.offset)),
            Some(_) => Ok(()),
        };
        let mut prefixes = Vec::new();
        let mut at = place.start;
        for _ in 0..place.count {
            let mut length = [0; 2];
            fill(&mut length, at)?;
            let length = usize::from(u16::from_le_bytes(length));
            if !(1..=1 + LONGEST).contains(&length) {
                return Err(corrupt(at));
            }
            let mut text = vec![0; length];
            fill(&mut text, at + 2)?;
            let begin = text.first().and_then(|index| prefix(*index));
            let rest = text.get(1..).unwrap_or_default();
            prefixes.push(begin.map(|begin| [begin, rest].concat()));
            at = (at + 2 + length as u64).next_multiple_of(ENTRY as u64);
        }
        Ok(prefixes)
    }
}

/// What is before the name of an attribute.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Bytes of its name, but for the prefix.
    name: usize,
    /// What the prefix is.
    index: u8,
    /// Bytes of its value.
    value: usize,
}

impl Entry {
    fn of(bytes: &[u8]) -> Self {
        Self {
            name: Get(bytes).u8(0).into(),
            index: Get(bytes).u8(1),
            value: Get(bytes).u16(2).into(),
        }
    }
}

/// Reads the name, without its prefix, and the value of an attribute.
type Text<'a> = &'a dyn Fn() -> Result<(Vec<u8>, Vec<u8>)>;

/// What is done with each attribute: whether to go on.
type Each<'a> = dyn FnMut(Entry, Text<'_>) -> Result<bool> + 'a;

/// What an index that Linux gives stands for.
fn prefix(index: u8) -> Option<&'static [u8]> {
    let found = PREFIXES.iter().find(|(number, _)| *number == index);
    found.map(|(_, prefix)| *prefix)
}
