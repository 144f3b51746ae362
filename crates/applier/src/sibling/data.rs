// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The data of a file that is copied.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use resnap_layer::{Extent, Time};
use rustix::fs::{SeekFrom, copy_file_range, fstat, seek};
use rustix::io::Errno;

use super::fault::Fault;
use crate::copy_fault::EntryFault;
use crate::inode::mtime;

/// The most extents of a file that are kept. Holes between more are read as zeros.
const EXTENTS: usize = 1 << 16;

/// The smallest hole that is kept.
const HOLE: u64 = 4096;

/// The data of a file of a layer.
#[derive(Debug)]
pub(crate) struct FileData {
    /// The file that has it.
    pub(super) file: Arc<File>,
    /// The offset of the first byte in it.
    pub(crate) start: u64,
    /// The bytes, more than none.
    pub(crate) size: u64,
    pub(super) may_have_holes: bool,
    /// The time of the last modification of a file that has nothing else.
    pub(super) modified: Option<Time>,
}

impl FileData {
    /// Returns the extents that hold data.
    pub(super) fn extents(&self) -> io::Result<Vec<Extent>> {
        match self.may_have_holes {
            true => Ok(extents(&self.file, self.start, self.size)?),
            false => Ok(vec![Extent {
                offset: 0,
                length: self.size,
            }]),
        }
    }

    /// Fills a buffer, which must not reach beyond the end of the data.
    pub(crate) fn read_exact(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file
            .read_exact_at(buffer, self.start.saturating_add(offset))
    }

    /// Fills a buffer, which must not reach beyond the end of the data.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), Fault> {
        self.read_exact(offset, buffer)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => EntryFault::Changed.into(),
                _ => error.into(),
            })
    }

    /// Copies data to the same offset of another file within the kernel, which shares it if the file system
    /// can. Returns the number of bytes, which is less than `length` at the end of the file.
    pub(super) fn copy(&self, offset: u64, length: usize, to: &File) -> io::Result<usize> {
        let (mut from, mut at) = (self.start + offset, offset);
        Ok(copy_file_range(
            &*self.file,
            Some(&mut from),
            to,
            Some(&mut at),
            length,
        )?)
    }

    /// Checks that the file has not changed since it was looked at.
    pub(super) fn check(&self) -> Result<(), Fault> {
        let Some(modified) = self.modified else {
            return Ok(());
        };
        let stat = fstat(&*self.file)?;
        match u64::try_from(stat.st_size) == Ok(self.size) && mtime(&stat) == modified {
            true => Ok(()),
            false => Err(EntryFault::Changed.into()),
        }
    }
}

/// Returns the extents of a range of a file that hold data, by their offsets in the range.
fn extents(file: &File, start: u64, size: u64) -> rustix::io::Result<Vec<Extent>> {
    let (mut extents, mut hole) = (Vec::<Extent>::new(), HOLE);
    let mut at = 0;
    while at < size {
        let begin = match seek(file, SeekFrom::Data(start + at)) {
            Ok(begin) => begin.saturating_sub(start),
            // There is no more data.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        if begin >= size {
            break;
        }
        let end = seek(file, SeekFrom::Hole(start + begin))?;
        let end = end.saturating_sub(start).min(size);
        if begin >= end {
            break;
        }
        push(&mut extents, begin, end, hole);
        at = end;
        while extents.len() > EXTENTS {
            hole = hole.saturating_mul(2);
            let all = std::mem::take(&mut extents);
            for Extent { offset, length } in all {
                push(&mut extents, offset, offset + length, hole);
            }
        }
    }
    Ok(extents)
}

/// Adds an extent, and joins it with the last one if the hole between them is small.
fn push(extents: &mut Vec<Extent>, start: u64, end: u64, hole: u64) {
    match extents.last_mut() {
        Some(last) if start - (last.offset + last.length) < hole => {
            last.length = end - last.offset;
        }
        _ => extents.push(Extent {
            offset: start,
            length: end - start,
        }),
    }
}
