// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Extended attributes: inline ones, and those that inodes share.

use resnap_layer::Xattr;

use super::{Image, ImageError, Node, ReadAt, Result, read};
use crate::format::{Get, XATTR_HEADER};
use crate::xattr::PREFIXES;

/// Bytes of an attribute before its name.
const ENTRY: usize = 4;

/// Marks a name whose prefix is in a table of the image.
const LONG_PREFIX: u8 = 0x80;

impl<R: ReadAt> Image<R> {
    /// The extended attributes of a node, ordered by name. Those of kinds that have no name on Linux
    /// are left out.
    ///
    /// # Errors
    ///
    /// They are malformed, or the file cannot be read.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>> {
        let corrupt = || ImageError::Corrupt {
            what: "extended attributes",
            offset: node.offset,
        };
        let mut xattrs = Vec::new();
        if node.inode.xattrs == 0 {
            return Ok(xattrs);
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
            xattrs.extend(self.shared(id)?);
        }
        while rest.len() >= ENTRY {
            let (name, value) = lengths(rest);
            let text = rest.get(ENTRY..ENTRY + name + value).ok_or_else(corrupt)?;
            let (name, value) = text.split_at(name);
            xattrs.extend(decode(Get(rest).u8(1), name, value)?);
            let used = (ENTRY + text.len()).next_multiple_of(ENTRY);
            rest = rest.get(used..).unwrap_or_default();
        }
        xattrs.sort();
        Ok(xattrs)
    }

    fn shared(&self, id: u32) -> Result<Option<Xattr>> {
        let offset = self.block(self.superblock.xattrs) + 4 * u64::from(id);
        let mut head = [0; ENTRY];
        read(&self.source, offset, &mut head)?;
        let (name, value) = lengths(&head);
        let mut text = vec![0; name + value];
        read(&self.source, offset + ENTRY as u64, &mut text)?;
        let (name, value) = text.split_at(name);
        decode(Get(&head).u8(1), name, value)
    }
}

fn lengths(entry: &[u8]) -> (usize, usize) {
    (Get(entry).u8(0).into(), Get(entry).u16(2).into())
}

fn decode(index: u8, rest: &[u8], value: &[u8]) -> Result<Option<Xattr>> {
    if index & LONG_PREFIX != 0 {
        return Err(ImageError::Unsupported(
            "long prefixes of extended attributes",
        ));
    }
    let prefix = PREFIXES.iter().find(|(number, _)| *number == index);
    Ok(prefix.map(|(_, prefix)| Xattr {
        name: [prefix, rest].concat(),
        value: value.to_vec(),
    }))
}
