// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Headers of a tar stream in pax format, as [`resnap_layer`] reads them.

use resnap_layer::path::{join, split};
use resnap_layer::{EntryKind, Extent, Time};

use super::item::{Item, ItemKind};

/// Bytes of a block.
pub(super) const BLOCK: usize = 512;

/// The most bytes of the map of a sparse file that readers accept, with its padding.
pub(super) const MAP: usize = (1 << 20) - BLOCK;

/// The size of an entry's data.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Size {
    /// The bytes in the stream.
    pub(super) stored: u64,
    /// The real size of a sparse file.
    pub(super) real: Option<u64>,
}

/// Appends the header of an item, with its extended header.
pub(super) fn header(to: &mut Vec<u8>, item: &Item, size: Size) {
    let metadata = &item.metadata;
    let (mut kind, mut link, mut device) = (b'0', &[][..], (0, 0));
    let mut path = item.path.clone();
    if let ItemKind::Other(other) = &item.kind {
        match other {
            EntryKind::File(_) => {}
            EntryKind::Directory => {
                kind = b'5';
                path.push(b'/');
            }
            EntryKind::Symlink(target) => (kind, link) = (b'2', target),
            EntryKind::Hardlink(target) => (kind, link) = (b'1', target),
            EntryKind::Character { major, minor } => (kind, device) = (b'3', (*major, *minor)),
            EntryKind::Block { major, minor } => (kind, device) = (b'4', (*major, *minor)),
            EntryKind::Fifo => kind = b'6',
            EntryKind::Whiteout => {
                let (parent, name) = split(&item.path);
                path = join(parent, &[b".wh.", name].concat());
            }
            EntryKind::Opaque => path = join(&item.path, b".wh..wh..opq"),
        }
    }
    let mut records = Vec::new();
    let mut block = Block::new(kind);
    block.text(0, 100, "path", &path, &mut records);
    block.text(157, 100, "linkpath", link, &mut records);
    block.number(100, 8, "mode", metadata.mode.into(), &mut records);
    block.number(108, 8, "uid", metadata.uid.into(), &mut records);
    block.number(116, 8, "gid", metadata.gid.into(), &mut records);
    block.number(124, 12, "size", size.stored, &mut records);
    block.number(329, 8, "devmajor", device.0.into(), &mut records);
    block.number(337, 8, "devminor", device.1.into(), &mut records);
    match u64::try_from(metadata.mtime.seconds) {
        Ok(seconds) if metadata.mtime.nanoseconds == 0 => {
            block.number(136, 12, "mtime", seconds, &mut records);
        }
        _ => record(&mut records, b"mtime", time(metadata.mtime).as_bytes()),
    }
    if let Some(real) = size.real {
        record(&mut records, b"GNU.sparse.major", b"1");
        record(&mut records, b"GNU.sparse.minor", b"0");
        record(
            &mut records,
            b"GNU.sparse.realsize",
            real.to_string().as_bytes(),
        );
    }
    for xattr in &metadata.xattrs {
        let key = [b"SCHILY.xattr.", &xattr.name[..]].concat();
        record(&mut records, &key, &xattr.value);
    }
    if !records.is_empty() {
        let mut extended = Block::new(b'x');
        let mut none = Vec::new();
        extended.text(0, 100, "path", b"pax", &mut none);
        extended.number(124, 12, "size", records.len() as u64, &mut none);
        to.extend_from_slice(&extended.finish());
        pad(&mut records);
        to.append(&mut records);
    }
    to.extend_from_slice(&block.finish());
}

/// Returns the map of a sparse file, padded to a whole block.
pub(super) fn map(extents: &[Extent]) -> Vec<u8> {
    let mut map = format!("{}\n", extents.len());
    for Extent { offset, length } in extents {
        map.push_str(&format!("{offset}\n{length}\n"));
    }
    let mut map = map.into_bytes();
    pad(&mut map);
    map
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
}

/// A header under construction.
struct Block([u8; BLOCK]);

impl Block {
    fn new(kind: u8) -> Self {
        let mut block = Self([0; BLOCK]);
        block.put(156, &[kind]);
        block.put(257, b"ustar\x0000");
        // All numbers, so that the header is valid in any case.
        for (at, width) in [(100, 8), (108, 8), (116, 8), (124, 12), (136, 12)] {
            block.octal(at, width, 0);
        }
        block
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (to, from) in self.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    }

    fn octal(&mut self, at: usize, width: usize, value: u64) {
        let digits = width - 1;
        self.put(at, format!("{value:0digits$o}").as_bytes());
    }

    /// Puts a text, or adds a record if it is too long.
    fn text(&mut self, at: usize, width: usize, key: &str, text: &[u8], records: &mut Vec<u8>) {
        match text.len() <= width {
            true => self.put(at, text),
            false => record(records, key.as_bytes(), text),
        }
    }

    /// Puts a number, or adds a record if it is too large.
    fn number(&mut self, at: usize, width: usize, key: &str, value: u64, records: &mut Vec<u8>) {
        match value >> (3 * (width - 1)) {
            0 => self.octal(at, width, value),
            _ => record(records, key.as_bytes(), value.to_string().as_bytes()),
        }
    }

    fn finish(mut self) -> [u8; BLOCK] {
        self.put(148, b"        ");
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.octal(148, 7, sum);
        self.put(154, &[0]);
        self.0
    }
}

/// Adds a record of an extended header: `LENGTH KEY=VALUE\n`, where the length includes all of it.
fn record(to: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    to.extend_from_slice(length.to_string().as_bytes());
    for part in [b" ", key, b"=", value, b"\n"] {
        to.extend_from_slice(part);
    }
}

/// Returns a time in decimal seconds.
fn time(time: Time) -> String {
    let Time {
        seconds,
        nanoseconds,
    } = time;
    match (seconds < 0, nanoseconds) {
        (_, 0) => seconds.to_string(),
        (false, _) => format!("{seconds}.{nanoseconds:09}"),
        // The seconds are rounded down, and the fraction of the text counts away from zero.
        (true, _) => {
            let rest = 1_000_000_000_u32.saturating_sub(nanoseconds);
            format!("-{}.{rest:09}", (seconds + 1).unsigned_abs())
        }
    }
}
