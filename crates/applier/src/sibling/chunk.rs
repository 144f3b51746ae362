// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Parts of a layer that one thread reads and another writes.

use std::collections::VecDeque;
use std::ops::Range;

use resnap_layer::{Entry, Extent};

use super::data::FileData;
use super::fault::Fault;
use super::item::Item;
use super::place::Place;
use crate::error::StreamError;

/// Bytes of a chunk: large compared to the cost of passing it, small compared to a second-level cache.
const CHUNK: usize = 256 * 1024;

/// The most bytes of a file that are read ahead. The data of larger files is read when it is written, once.
const AHEAD: u64 = 64 * 1024;

/// The bytes that an entry counts for besides its path and attributes.
const ENTRY: usize = size_of::<Record>();

/// The most bytes of data in a chunk: the last file may begin just before its end.
const BUFFER: usize = CHUNK + AHEAD as usize;

/// Entries of a layer, with the data of small files.
#[derive(Default)]
pub(super) struct Chunk {
    pub(super) records: VecDeque<Record>,
    /// The data, and what is left of the buffer's former use.
    pub(super) bytes: Vec<u8>,
    /// The bytes of the buffer that are used.
    used: usize,
    /// The bytes of data of all entries.
    pub(super) size: u64,
}

/// An entry of a layer.
pub(super) struct Record {
    pub(super) entry: Entry,
    pub(super) data: Data,
}

/// The data of an entry.
pub(super) enum Data {
    None,
    /// The part of the chunk's bytes that has all of it.
    Ahead(Range<usize>),
    /// The file, and the extents that are left to read.
    File(FileData, VecDeque<Extent>),
}

impl Chunk {
    /// Reads the data of the next items into this buffer. Returns no entry at the end of the layer.
    pub(super) fn read(
        place: &Place,
        items: &mut impl Iterator<Item = Result<Item, StreamError>>,
        buffer: Vec<u8>,
    ) -> Result<Self, StreamError> {
        let mut chunk = Self {
            bytes: buffer,
            ..Self::default()
        };
        let mut weight = 0;
        while weight < CHUNK {
            let Some(item) = items.next().transpose()? else {
                break;
            };
            let xattrs = item.entry.metadata.xattrs.iter();
            let xattrs = xattrs.map(|xattr| xattr.name.len() + xattr.value.len());
            weight += ENTRY + item.entry.path.len() + xattrs.sum::<usize>();
            let before = chunk.used;
            let Item { entry, data } = item;
            let data = match data {
                None => Data::None,
                Some(data) => {
                    let read = chunk.data(data);
                    read.map_err(|fault| place.error(&entry.path, fault))?
                }
            };
            weight += chunk.used - before;
            let is_open = matches!(data, Data::File(..));
            chunk.records.push_back(Record { entry, data });
            // Only so many files are open.
            if is_open {
                break;
            }
        }
        Ok(chunk)
    }

    /// Reads the data of a small file.
    fn data(&mut self, data: FileData) -> Result<Data, Fault> {
        let extents = data.extents()?;
        self.size += extents.iter().map(|extent| extent.length).sum::<u64>();
        let is_dense = matches!(extents[..], [extent] if extent.length == data.size);
        if self.bytes.is_empty() {
            self.bytes.resize(BUFFER, 0);
        }
        let size = usize::try_from(data.size).unwrap_or(usize::MAX);
        let (start, end) = (self.used, self.used.saturating_add(size));
        let bytes = self.bytes.get_mut(start..end);
        let Some(bytes) = bytes.filter(|_| is_dense && data.size <= AHEAD) else {
            return Ok(Data::File(data, extents.into()));
        };
        data.read(0, bytes)?;
        data.check()?;
        self.used = end;
        Ok(Data::Ahead(start..end))
    }
}
