// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The entries of a layer that is copied.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use resnap_layer::{Entry, EntrySource, Error, Extent, Fault as ReadFault, Piece};

use super::chunk::{Chunk, Data, Record};
use super::data::FileData;
use super::fault::Fault;
use crate::copy_fault::EntryFault;
use crate::error::StreamError;
use crate::guard::Guard;
use crate::layer_source::LayerSource;

/// Bytes of a file that are read at once.
const PIECE: usize = 256 * 1024;

/// Bytes of a file that are copied at once.
const COPY: usize = 16 << 20;

/// The entries of a layer that another thread reads.
pub(crate) struct Entries<'a> {
    chunks: Receiver<Result<Chunk, StreamError>>,
    /// Takes the buffers of chunks back.
    used: Sender<Vec<u8>>,
    guard: &'a Guard,
    /// Returns the error of a fault at a path.
    error: &'a dyn Fn(&[u8], Fault) -> StreamError,
    chunk: Chunk,
    path: Vec<u8>,
    data: Data,
    buffer: Vec<u8>,
    /// Whether the kernel may be able to copy data by itself.
    can_copy: bool,
    /// The bytes of data that were written.
    size: u64,
    limit: u64,
    waited: Duration,
}

impl<'a> Entries<'a> {
    pub(super) fn new(
        (chunks, used): (Receiver<Result<Chunk, StreamError>>, Sender<Vec<u8>>),
        guard: &'a Guard,
        limit: u64,
        error: &'a dyn Fn(&[u8], Fault) -> StreamError,
    ) -> Self {
        Self {
            chunks,
            used,
            guard,
            error,
            chunk: Chunk::default(),
            path: Vec::new(),
            data: Data::None,
            buffer: Vec::new(),
            can_copy: true,
            size: 0,
            limit,
            waited: Duration::ZERO,
        }
    }

    /// Returns the bytes of data that were written, and the time in which nothing was.
    pub(super) fn totals(&self) -> (u64, Duration) {
        (self.size, self.waited)
    }

    fn fail(&self, error: StreamError) -> Error {
        Error {
            offset: self.size,
            entry: Some(self.path.clone()).filter(|path| !path.is_empty()),
            fault: ReadFault::Read(io::Error::from(error)),
        }
    }

    fn fault(&self, fault: impl Into<Fault>) -> Error {
        self.fail((self.error)(&self.path, fault.into()))
    }

    /// Counts bytes of data before they are written.
    fn count(&mut self, bytes: u64) -> Result<(), Error> {
        self.size = self.size.saturating_add(bytes);
        if self.size > self.limit {
            return Err(self.fail(StreamError::Limit(self.limit)));
        }
        self.guard.progress.advance();
        match self.guard.is_over() {
            true => Err(self.fail(StreamError::Cancelled)),
            false => Ok(()),
        }
    }
}

/// Returns the next bytes to read, at most `most`.
fn next(extents: &mut VecDeque<Extent>, most: usize) -> Option<(u64, usize)> {
    let extent = extents.front()?;
    let length = usize::try_from(extent.length).unwrap_or(usize::MAX);
    Some((extent.offset, length.min(most)))
}

/// Removes bytes that were read.
fn advance(extents: &mut VecDeque<Extent>, count: usize) {
    if let Some(extent) = extents.front_mut() {
        extent.offset += count as u64;
        extent.length = extent.length.saturating_sub(count as u64);
        if extent.length == 0 {
            extents.pop_front();
        }
    }
}

impl EntrySource for Entries<'_> {
    fn next(&mut self) -> Result<Option<Entry>, Error> {
        self.data = Data::None;
        while self.chunk.records.is_empty() {
            let used = std::mem::take(&mut self.chunk.bytes);
            if !used.is_empty() {
                // The reader may have ended.
                let _ = self.used.send(used);
            }
            let begin = Instant::now();
            let next = self.chunks.recv();
            self.waited += begin.elapsed();
            self.path.clear();
            match next {
                Ok(Ok(chunk)) => self.chunk = chunk,
                Ok(Err(error)) => return Err(self.fail(error)),
                Err(_) => return Ok(None),
            }
        }
        let Some(Record { entry, data }) = self.chunk.records.pop_front() else {
            return Ok(None);
        };
        self.data = data;
        self.path.clone_from(&entry.path);
        Ok(Some(entry))
    }

    fn tar_offset(&self) -> Option<u64> {
        None
    }

    fn data(&mut self) -> Result<Option<Piece<'_>>, Error> {
        let (offset, bytes) = match std::mem::replace(&mut self.data, Data::None) {
            Data::None => return Ok(None),
            Data::Ahead(range) => {
                self.count(range.len() as u64)?;
                (0, self.chunk.bytes.get(range))
            }
            Data::File(data, extents) => match self.read(data, extents)? {
                None => return Ok(None),
                Some((offset, length)) => (offset, self.buffer.get(..length)),
            },
        };
        let bytes = bytes.unwrap_or_default();
        Ok(Some(Piece { offset, bytes }))
    }
}

impl Entries<'_> {
    /// Reads the next bytes of a file into the buffer. Returns where they are, or `None` at the end.
    fn read(
        &mut self,
        data: FileData,
        mut extents: VecDeque<Extent>,
    ) -> Result<Option<(u64, usize)>, Error> {
        let Some((offset, length)) = next(&mut extents, PIECE) else {
            return data
                .check()
                .map(|()| None)
                .map_err(|fault| self.fault(fault));
        };
        self.count(length as u64)?;
        self.buffer.resize(PIECE, 0);
        let buffer = self.buffer.get_mut(..length).unwrap_or_default();
        let read = data.read(offset, buffer);
        read.map_err(|fault| self.fault(fault))?;
        advance(&mut extents, length);
        self.data = Data::File(data, extents);
        Ok(Some((offset, length)))
    }
}

impl LayerSource for Entries<'_> {
    /// Stops at the first error: if it has another reason than that the kernel cannot do it, reading
    /// or writing meets it again.
    fn copy_data(&mut self, to: &File) -> Result<u64, Error> {
        let mut end = 0;
        let (data, mut extents) = match std::mem::replace(&mut self.data, Data::None) {
            Data::File(data, extents) => (data, extents),
            other => {
                self.data = other;
                return Ok(0);
            }
        };
        while self.can_copy
            && let Some((offset, length)) = next(&mut extents, COPY)
        {
            match data.copy(offset, length, to) {
                Ok(0) => return Err(self.fault(EntryFault::Changed)),
                Ok(count) => {
                    self.count(count as u64)?;
                    advance(&mut extents, count);
                    end = offset + count as u64;
                }
                Err(_) => self.can_copy = false,
            }
        }
        self.data = Data::File(data, extents);
        Ok(end)
    }
}
