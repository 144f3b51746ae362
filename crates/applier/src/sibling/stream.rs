// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The tar stream of a layer's directory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;

use resnap_layer::Extent;
use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

use super::item::{Item, ItemKind};
use super::tar::{BLOCK, MAP, Size, header, map};
use super::walk::Walk;
use crate::copy_fault::EntryFault;
use crate::error::StreamError;
use crate::inode::mtime;

/// The most extents of a file that are kept. Holes between more are read as zeros.
const EXTENTS: usize = 1 << 16;

/// The smallest hole that is kept.
const HOLE: u64 = 4096;

/// The tar stream of a layer's directory, made while it is read.
pub(crate) struct LayerStream {
    walk: Walk,
    /// Bytes that come next, up to this position.
    pending: Vec<u8>,
    used: usize,
    data: Option<Data>,
    is_at_end: bool,
}

/// The data of a file.
struct Data {
    item: Item,
    /// The extents that are left to read.
    extents: VecDeque<Extent>,
    padding: usize,
}

impl LayerStream {
    pub(super) fn new(walk: Walk) -> Self {
        Self {
            walk,
            pending: Vec::new(),
            used: 0,
            data: None,
            is_at_end: false,
        }
    }

    /// Puts the header of the next item, or the end of the stream, into `pending`.
    fn advance(&mut self) -> Result<(), StreamError> {
        self.pending.clear();
        self.used = 0;
        let Some(item) = self.walk.next()? else {
            self.is_at_end = true;
            self.pending.resize(2 * BLOCK, 0);
            return Ok(());
        };
        let size = match &item.kind {
            ItemKind::File { size, .. } => *size,
            ItemKind::Other(_) => 0,
        };
        if size == 0 {
            header(&mut self.pending, &item, Size::default());
            return Ok(());
        }
        let all = Extent {
            offset: 0,
            length: size,
        };
        let extents = match &item.kind {
            ItemKind::File {
                file,
                may_have_holes: true,
                ..
            } => extents(file, size).map_err(|error| self.walk.error(error))?,
            _ => vec![all],
        };
        let is_sparse = extents != [all];
        let text = match is_sparse {
            true => map(&extents),
            false => Vec::new(),
        };
        let stored: u64 = extents.iter().map(|extent| extent.length).sum();
        let size = Size {
            stored: text.len() as u64 + stored,
            real: is_sparse.then_some(size),
        };
        header(&mut self.pending, &item, size);
        self.pending.extend_from_slice(&text);
        let padding = stored.next_multiple_of(BLOCK as u64) - stored;
        self.data = Some(Data {
            item,
            extents: extents.into(),
            padding: usize::try_from(padding).unwrap_or_default(),
        });
        Ok(())
    }

    /// Reads data of the current file. Returns 0 at its end, and puts what follows into `pending`.
    fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize, StreamError> {
        let Some(data) = &mut self.data else {
            return Ok(0);
        };
        let ItemKind::File { file, size, .. } = &data.item.kind else {
            return Ok(0);
        };
        while let Some(extent) = data.extents.front_mut() {
            if extent.length == 0 {
                data.extents.pop_front();
                continue;
            }
            let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
            let length = length.min(buffer.len());
            let part = buffer.get_mut(..length).unwrap_or_default();
            let count = file
                .read_at(part, extent.offset)
                .map_err(|error| self.walk.error(error))?;
            if count == 0 {
                return Err(self.walk.error(EntryFault::Changed));
            }
            extent.offset += count as u64;
            extent.length -= count as u64;
            return Ok(count);
        }
        let stat = rustix::fs::fstat(file).map_err(|error| self.walk.error(error))?;
        let is_same =
            u64::try_from(stat.st_size) == Ok(*size) && mtime(&stat) == data.item.metadata.mtime;
        if !is_same {
            return Err(self.walk.error(EntryFault::Changed));
        }
        self.pending.clear();
        self.used = 0;
        self.pending.resize(data.padding, 0);
        self.data = None;
        Ok(0)
    }
}

impl Read for LayerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let rest = self.pending.get(self.used..).unwrap_or_default();
            let count = rest.len().min(buffer.len());
            if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count))
                && count > 0
            {
                to.copy_from_slice(from);
                self.used += count;
                return Ok(count);
            }
            if self.data.is_some() {
                match self.read_data(buffer)? {
                    0 => continue,
                    count => return Ok(count),
                }
            }
            if self.is_at_end {
                return Ok(0);
            }
            self.advance()?;
        }
    }
}

/// Returns the extents of a file that hold data.
fn extents(file: &File, size: u64) -> rustix::io::Result<Vec<Extent>> {
    let (mut extents, mut hole) = (Vec::<Extent>::new(), HOLE);
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // There is no more data.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        if start >= end {
            break;
        }
        push(&mut extents, start, end, hole);
        at = end;
        while extents.len() > EXTENTS || map_length(&extents) > MAP {
            hole = hole.saturating_mul(2);
            let all = std::mem::take(&mut extents);
            for Extent { offset, length } in all {
                push(&mut extents, offset, offset + length, hole);
            }
        }
    }
    Ok(extents)
}

/// Returns at least the length of the map of these extents.
fn map_length(extents: &[Extent]) -> usize {
    // Two numbers of a file smaller than the last offset, and a line end each.
    let end = extents.last().map_or(0, |last| last.offset + last.length);
    let digits = end.checked_ilog10().unwrap_or_default() as usize + 1;
    (extents.len() + 1).saturating_mul(2 * (digits + 1))
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
