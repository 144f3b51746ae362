// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A file of which parts are kept in memory: the inodes of an image are small, and near each other.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use resnap_erofs::ReadAt;

/// Bytes of a part.
const PART: usize = 32 * 1024;

/// The number of parts: inodes, directories, attributes and their neighbours.
const PARTS: usize = 4;

/// A file of which parts are kept in memory.
#[derive(Debug)]
pub(super) struct Window {
    file: Arc<File>,
    parts: RefCell<Parts>,
}

#[derive(Debug, Default)]
struct Parts {
    /// The offsets and bytes of parts, which may be short at the end of the file.
    parts: [(u64, Vec<u8>); PARTS],
    /// The part that is replaced next.
    next: usize,
}

impl Window {
    pub(super) fn new(file: Arc<File>) -> Self {
        Self {
            file,
            parts: RefCell::default(),
        }
    }
}

impl Parts {
    /// Returns the bytes at an offset, if they are in a part.
    fn get(&self, offset: u64, length: usize) -> Option<&[u8]> {
        self.parts.iter().find_map(|(start, bytes)| {
            let start = usize::try_from(offset.checked_sub(*start)?).ok()?;
            bytes.get(start..start.checked_add(length)?)
        })
    }
}

impl ReadAt for Window {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut parts = self.parts.borrow_mut();
        if let Some(found) = parts.get(offset, buffer.len()) {
            buffer.copy_from_slice(found);
            return Ok(());
        }
        if buffer.len() > PART {
            return self.file.read_exact_at(buffer, offset);
        }
        let next = parts.next % PARTS;
        parts.next = next + 1;
        if let Some((start, bytes)) = parts.parts.get_mut(next) {
            *start = offset;
            bytes.resize(PART, 0);
            let count = self.file.read_at(bytes, offset);
            bytes.truncate(*count.as_ref().unwrap_or(&0));
            count?;
        }
        match parts.get(offset, buffer.len()) {
            Some(found) => buffer.copy_from_slice(found),
            None => self.file.read_exact_at(buffer, offset)?,
        }
        Ok(())
    }
}
