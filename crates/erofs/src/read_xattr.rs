// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A reader of extended attributes: those inline in an inode, and those that inodes share. The prefix
//! of a name is stored as a number that is defined by Linux or by the image.

use std::sync::OnceLock;

use resnap_layer::Xattr;

use crate::format::{Get, XATTR_HEADER};
use crate::image::{Image, Node};
use crate::source::{ImageError, ReadAt, Result, read};
use crate::xattr::PREFIXES;

/// Bytes of an attribute before its name.
const ENTRY: usize = 4;

/// The bit that marks a prefix of the image's own.
const LONG_PREFIX: u8 = 0x80;

/// The most bytes of names and values of an inode's attributes: as many as the format can store
/// behind an inode. Shared attributes could exceed it.
const MAX_BYTES: usize = 1 << 18;

/// The longest name in bytes.
const MAX_NAME: usize = 255;

/// The image's own prefixes, read when the first is needed. A prefix is `None` if it starts with no
/// prefix of Linux.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prefixes(OnceLock<Vec<Option<Vec<u8>>>>);

/// Returns the extended attributes of a node, ordered by name.
pub(crate) fn all<R: ReadAt>(
    image: &Image<R>,
    prefixes: &Prefixes,
    node: &Node,
) -> Result<Vec<Xattr>> {
    let mut xattrs = Vec::new();
    let mut size = 0;
    for_each(image, node, &mut |entry, text| {
        let (name, value) = text()?;
        size += name.len() + value.len();
        if size > MAX_BYTES {
            let what = "more than 256 KiB of extended attributes at an inode";
            return Err(ImageError::Unsupported(what));
        }
        xattrs.extend(decode(image, prefixes, entry.prefix, &name, value)?);
        Ok(true)
    })?;
    xattrs.sort();
    Ok(xattrs)
}

/// Returns whether a node has this attribute with this value. Other attributes are not read.
pub(crate) fn has<R: ReadAt>(
    image: &Image<R>,
    prefixes: &Prefixes,
    node: &Node,
    name: &[u8],
    value: &[u8],
) -> Result<bool> {
    let mut is_found = false;
    for_each(image, node, &mut |entry, text| {
        if entry.value == value.len() && entry.name <= name.len() {
            let (rest, found) = text()?;
            let found = decode(image, prefixes, entry.prefix, &rest, found)?;
            is_found = found.is_some_and(|xattr| xattr.name == name && xattr.value == value);
        }
        Ok(!is_found)
    })?;
    Ok(is_found)
}

/// Calls `visit` with each attribute of a node, until it returns `false`.
fn for_each<R: ReadAt>(image: &Image<R>, node: &Node, visit: &mut Visit<'_>) -> Result<()> {
    let corrupt = || ImageError::Corrupt {
        what: "extended attributes",
        offset: node.offset,
    };
    if node.inode.xattrs == 0 {
        return Ok(());
    }
    // At most 256 KiB: the count in the inode has 16 bits.
    let mut body = vec![0; node.inode.xattrs];
    let start = node.offset + node.inode.length as u64;
    read(&image.source, start, &mut body)?;
    let shared = usize::from(Get(&body).u8(4));
    let mut rest = body.get(XATTR_HEADER + 4 * shared..).ok_or_else(corrupt)?;
    for index in 0..shared {
        let id = Get(&body).u32(XATTR_HEADER + 4 * index);
        let offset = image.block_offset(image.superblock.xattrs) + 4 * u64::from(id);
        let mut head = [0; ENTRY];
        read(&image.source, offset, &mut head)?;
        let entry = Entry::decode(&head);
        let text = &|| {
            let mut text = vec![0; entry.name + entry.value];
            read(&image.source, offset + ENTRY as u64, &mut text)?;
            let value = text.split_off(entry.name);
            Ok((text, value))
        };
        if !visit(entry, text)? {
            return Ok(());
        }
    }
    while rest.len() >= ENTRY {
        let entry = Entry::decode(rest);
        let text = rest.get(ENTRY..ENTRY + entry.name + entry.value);
        let (name, value) = text.ok_or_else(corrupt)?.split_at(entry.name);
        if !visit(entry, &|| Ok((name.to_vec(), value.to_vec())))? {
            return Ok(());
        }
        let used = (ENTRY + entry.name + entry.value).next_multiple_of(ENTRY);
        rest = rest.get(used..).unwrap_or_default();
    }
    Ok(())
}

/// Returns an attribute with its full name, or `None` if its prefix has no name on Linux.
fn decode<R: ReadAt>(
    image: &Image<R>,
    prefixes: &Prefixes,
    prefix: u8,
    rest: &[u8],
    value: Vec<u8>,
) -> Result<Option<Xattr>> {
    let prefix = match prefix & LONG_PREFIX {
        0 => linux_prefix(prefix),
        _ => {
            let found = own_prefixes(image, prefixes)?.get(usize::from(prefix ^ LONG_PREFIX));
            found.and_then(Option::as_deref)
        }
    };
    Ok(prefix.map(|prefix| Xattr {
        name: [prefix, rest].concat(),
        value,
    }))
}

/// Returns the image's own prefixes.
fn own_prefixes<'a, R: ReadAt>(
    image: &Image<R>,
    prefixes: &'a Prefixes,
) -> Result<&'a [Option<Vec<u8>>]> {
    match prefixes.0.get() {
        Some(prefixes) => Ok(prefixes),
        None => {
            let read = read_prefixes(image)?;
            Ok(prefixes.0.get_or_init(|| read))
        }
    }
}

/// Reads the image's own prefixes. Each is stored as the length of what follows (2 bytes), the number
/// of the prefix it starts with, and the rest, padded to 4 bytes.
fn read_prefixes<R: ReadAt>(image: &Image<R>) -> Result<Vec<Option<Vec<u8>>>> {
    let place = image.superblock.prefixes;
    let node = place.node.map(|id| image.node(id)).transpose()?;
    let corrupt = |offset| ImageError::Corrupt {
        what: "prefix of extended attributes",
        offset,
    };
    let fill = |buffer: &mut [u8], at| match &node {
        None => read(&image.source, at, buffer),
        Some(node) if image.read(node, at, buffer)? < buffer.len() => Err(corrupt(node.offset)),
        Some(_) => Ok(()),
    };
    let mut prefixes = Vec::new();
    let mut at = place.start;
    for _ in 0..place.count {
        let mut length = [0; 2];
        fill(&mut length, at)?;
        let length = usize::from(u16::from_le_bytes(length));
        if !(1..=1 + MAX_NAME).contains(&length) {
            return Err(corrupt(at));
        }
        let mut text = vec![0; length];
        fill(&mut text, at + 2)?;
        let start = text.first().and_then(|number| linux_prefix(*number));
        let rest = text.get(1..).unwrap_or_default();
        prefixes.push(start.map(|start| [start, rest].concat()));
        at = (at + 2 + length as u64).next_multiple_of(ENTRY as u64);
    }
    Ok(prefixes)
}

/// The part of an attribute before its name.
#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Bytes of the name without the prefix.
    name: usize,
    /// The number of the prefix.
    prefix: u8,
    /// Bytes of the value.
    value: usize,
}

impl Entry {
    fn decode(bytes: &[u8]) -> Self {
        Self {
            name: Get(bytes).u8(0).into(),
            prefix: Get(bytes).u8(1),
            value: Get(bytes).u16(2).into(),
        }
    }
}

/// Reads the name, without its prefix, and the value of an attribute.
type ReadText<'a> = &'a dyn Fn() -> Result<(Vec<u8>, Vec<u8>)>;

/// Visits an attribute. Returns whether to continue.
type Visit<'a> = dyn FnMut(Entry, ReadText<'_>) -> Result<bool> + 'a;

/// Returns the prefix that Linux defines for a number.
fn linux_prefix(number: u8) -> Option<&'static [u8]> {
    let found = PREFIXES.iter().find(|(known, _)| *known == number);
    found.map(|(_, prefix)| *prefix)
}
