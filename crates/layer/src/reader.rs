// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The stream of entries.

use std::io::Read;

use crate::entry::{Entry, Extent, File, Kind, Piece, Time};
use crate::error::{Error, Fault};
use crate::header::{Header, until_nul};
use crate::path::{self, Name};
use crate::pax::Extended;
use crate::source::{BLOCK, Source};
use crate::sparse::Map;

/// How much a layer may ask for. What is over a limit is refused, by name, before memory is taken
/// for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a path or of a link's target, as written.
    pub path: usize,
    /// Bytes of all the headers that come before one entry's own.
    pub extensions: usize,
    /// Bytes of one entry's extended attributes, names and values.
    pub xattrs: usize,
    /// Extents of one sparse file.
    pub extents: usize,
    /// Entries of the layer.
    pub entries: usize,
}

/// Paths as long as Linux takes them (`PATH_MAX`, with the NUL at the end: 4095), 1 MiB of extension
/// headers, 256 KiB of extended attributes, 2^18 extents (4 MiB of memory), 4 million entries.
impl Default for Limits {
    fn default() -> Self {
        Self {
            path: 4095,
            extensions: 1 << 20,
            xattrs: 1 << 18,
            extents: 1 << 18,
            entries: 4_000_000,
        }
    }
}

/// A layer being read.
///
/// After an error it gives no further entries.
#[derive(Debug)]
pub struct Layer<R> {
    source: Source<R>,
    limits: Limits,
    entries: usize,
    current: Current,
    ended: bool,
    /// Extension headers are read here.
    scratch: Vec<u8>,
}

/// How far the data of the current entry has been read.
#[derive(Debug, Default)]
struct Current {
    path: Vec<u8>,
    /// Where its header is in the stream.
    header: u64,
    /// Bytes that are left in the stream, without padding.
    left: u64,
    padding: u64,
    /// Where the next byte belongs.
    offset: u64,
    /// The extents of a sparse file from the one that is being read, last first.
    extents: Option<Vec<Extent>>,
    /// Whether the data is nobody's.
    is_hidden: bool,
}

impl<R: Read> Layer<R> {
    /// The layer in `stream`, which is uncompressed and read in large pieces.
    pub fn new(stream: R, limits: Limits) -> Self {
        Self {
            source: Source::new(stream),
            limits,
            entries: 0,
            current: Current::default(),
            ended: false,
            scratch: Vec::new(),
        }
    }

    /// How many bytes of the stream have been used.
    pub fn position(&self) -> u64 {
        self.source.offset()
    }

    /// The next entry; `None` after the last one. Data of the one before that was not asked for is
    /// passed over.
    ///
    /// # Errors
    ///
    /// Whatever is wrong with the stream: see [`Fault`].
    // Not an iterator: the data of an entry is read through the same `&mut self`.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<Option<Entry>, Error> {
        if self.ended {
            return Ok(None);
        }
        let next = self.skip_data().and_then(|()| self.entry());
        self.ended = !matches!(next, Ok(Some(_)));
        next.map_err(|fault| self.error(fault))
    }

    /// The next piece of the current file's data; `None` after the last one, and for whatever has no
    /// data. Data of up to 64 KiB comes in one piece, if the file is not sparse; holes are left out.
    ///
    /// # Errors
    ///
    /// The stream's own, or that it ends early.
    pub fn data(&mut self) -> Result<Option<Piece<'_>>, Error> {
        let current = &mut self.current;
        if current.is_hidden {
            return Ok(None);
        }
        let mut limit = current.left;
        if let Some(extents) = &mut current.extents {
            // An extent is shortened from its start as it is read; no extent is ever empty.
            let Some(extent) = extents.last_mut() else {
                return Ok(None);
            };
            current.offset = extent.offset;
            limit = limit.min(extent.length);
        }
        if limit == 0 {
            return Ok(None);
        }
        let (offset, header) = (current.offset, current.header);
        let fault = match self.source.bytes(limit) {
            Ok([]) => Fault::Truncated,
            Ok(bytes) => {
                current.advance(bytes.len() as u64);
                return Ok(Some(Piece { offset, bytes }));
            }
            Err(fault) => fault,
        };
        self.ended = true;
        Err(Error {
            offset: header,
            entry: Some(std::mem::take(&mut self.current.path)),
            fault,
        })
    }

    /// Reads the stream to its real end, whatever follows the layer's trailer, and gives it back: a
    /// stream that hashes what passes through has seen all of it then.
    ///
    /// # Errors
    ///
    /// The stream's own.
    pub fn finish(self) -> Result<R, Error> {
        let offset = self.source.offset();
        self.source.finish().map_err(|fault| Error {
            offset,
            entry: None,
            fault,
        })
    }

    /// Names what was being read.
    fn error(&mut self, fault: Fault) -> Error {
        let path = std::mem::take(&mut self.current.path);
        Error {
            offset: self.current.header,
            entry: Some(path).filter(|path| !path.is_empty()),
            fault,
        }
    }

    fn skip_data(&mut self) -> Result<(), Fault> {
        let Current { left, padding, .. } = self.current;
        if self.source.skip(left)? < left {
            return Err(Fault::Truncated);
        }
        // A stream may end without the padding of its last entry.
        self.source.skip(padding)?;
        self.current = Current {
            header: self.source.offset(),
            ..Current::default()
        };
        Ok(())
    }

    /// The next header that is none of the end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, Fault> {
        let is_zero = |block: &[u8; BLOCK]| block.iter().all(|byte| *byte == 0);
        match self.source.block()? {
            None => Ok(None),
            Some(block) if is_zero(block) => match self.source.block()? {
                Some(block) if !is_zero(block) => Err(Fault::Trailer),
                _ => Ok(None),
            },
            Some(block) => Ok(Some(*block)),
        }
    }

    fn entry(&mut self) -> Result<Option<Entry>, Fault> {
        let mut extended = Extended::default();
        let mut budget = self.limits.extensions as u64;
        let mut pending = false;
        loop {
            let Some(block) = self.header()? else {
                // What extension headers announced did not come.
                return if pending {
                    Err(Fault::Truncated)
                } else {
                    Ok(None)
                };
            };
            let header = Header::new(block)?;
            let size = header.size()?;
            match header.kind() {
                // It may be long, but nobody keeps it.
                b'g' => self.pass(size)?,
                kind @ (b'x' | b'L' | b'K') => {
                    budget = budget
                        .checked_sub(size.saturating_add(BLOCK as u64))
                        .ok_or(Fault::limit(
                            "bytes of extension headers",
                            self.limits.extensions,
                        ))?;
                    self.extension(size)?;
                    pending = true;
                    let name = until_nul(&self.scratch);
                    let name = Some(name)
                        .filter(|name| !name.is_empty())
                        .map(<[u8]>::to_vec);
                    match kind {
                        b'x' => extended.records(&self.scratch, &self.limits)?,
                        b'L' => extended.gnu_path = name,
                        _ => extended.gnu_link = name,
                    }
                }
                _ => {
                    if let Some(entry) = self.resolve(&header, std::mem::take(&mut extended))? {
                        return Ok(Some(entry));
                    }
                    self.skip_data()?;
                    budget = self.limits.extensions as u64;
                    pending = false;
                }
            }
        }
    }

    /// Passes over the data of a header that counts for nothing.
    fn pass(&mut self, size: u64) -> Result<(), Fault> {
        if self.source.skip(size)? < size {
            return Err(Fault::Truncated);
        }
        self.source.skip(padding(size))?;
        Ok(())
    }

    /// The data of an extension header, whose size is within the limit.
    fn extension(&mut self, size: u64) -> Result<(), Fault> {
        self.scratch.clear();
        let mut left = size;
        while left > 0 {
            let bytes = self.source.bytes(left)?;
            if bytes.is_empty() {
                return Err(Fault::Truncated);
            }
            self.scratch.extend_from_slice(bytes);
            left -= bytes.len() as u64;
        }
        self.source.skip(padding(size))?;
        Ok(())
    }

    /// The entry that a header and its extensions make; `None` for one that counts for nothing.
    fn resolve(&mut self, header: &Header, mut extended: Extended) -> Result<Option<Entry>, Fault> {
        let own = extended.gnu_path.take().or(extended.path.take());
        let raw = extended
            .sparse
            .name
            .take()
            .or(own)
            .unwrap_or_else(|| header.path());
        let raw = within(raw, self.limits.path, "bytes of a path")?;
        self.current.path.clone_from(&raw);
        self.entries += 1;
        if self.entries > self.limits.entries {
            return Err(Fault::limit("entries", self.limits.entries));
        }

        let (kind, left) = self.kind(header, &mut extended, raw.ends_with(b"/"))?;
        self.current.left = left;
        self.current.padding = padding(left);

        let (path, kind) = match path::name(path::clean(&raw)?)? {
            Name::Plain(path) if path.is_empty() && kind != Kind::Directory => return Ok(None),
            Name::Plain(path) => (path, kind),
            Name::Whiteout(path) => (path, Kind::Whiteout),
            Name::Opaque(path) => (path, Kind::Opaque),
            Name::Meta => return Ok(None),
        };
        // A whiteout may have been a file.
        self.current.is_hidden = !matches!(kind, Kind::File(_));
        Ok(Some(Entry {
            path,
            kind,
            mode: u32::try_from(header.mode()? & 0o7777).unwrap_or_default(),
            uid: owner("uid", extended.uid, header.uid())?,
            gid: owner("gid", extended.gid, header.gid())?,
            mtime: match extended.mtime {
                Some(time) => time,
                None => Time {
                    seconds: header.mtime()?,
                    nanoseconds: 0,
                },
            },
            xattrs: extended.xattrs,
        }))
    }

    /// What the entry is, and how many bytes of data follow.
    fn kind(
        &mut self,
        header: &Header,
        extended: &mut Extended,
        is_named_as_directory: bool,
    ) -> Result<(Kind, u64), Fault> {
        let packed = extended.size.map_or_else(|| header.size(), Ok)?;
        let own = extended.gnu_link.take().or(extended.link.take());
        let link = || {
            let link = own.clone().unwrap_or_else(|| header.link());
            within(link, self.limits.path, "bytes of a link's target")
        };
        let kind = match header.kind() {
            0 if is_named_as_directory => return Ok((Kind::Directory, packed)),
            0 | b'0' | b'7' | b'S' => return self.file(header, extended, packed),
            b'1' => Kind::Hardlink(path::clean(&link()?)?),
            b'2' => match link()? {
                target if target.is_empty() => {
                    return Err(Fault::Name("it is a symbolic link to nothing"));
                }
                target if target.contains(&0) => {
                    return Err(Fault::Name("its target has a NUL in it"));
                }
                target => Kind::Symlink(target),
            },
            b'3' => {
                let (major, minor) = header.device()?;
                Kind::Character { major, minor }
            }
            b'4' => {
                let (major, minor) = header.device()?;
                Kind::Block { major, minor }
            }
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => return Err(Fault::Type(other)),
        };
        Ok((kind, 0))
    }

    fn file(
        &mut self,
        header: &Header,
        extended: &Extended,
        packed: u64,
    ) -> Result<(Kind, u64), Fault> {
        let sparse = &extended.sparse;
        let is_gnu = header.kind() == b'S';
        let mut map = Map::new(&self.limits);
        let mut data = packed;
        let mut size = sparse.size.or(sparse.real_size).unwrap_or(packed);
        match (&sparse.major[..], &sparse.minor[..]) {
            _ if is_gnu => size = map.gnu(header, &mut self.source)?,
            (b"1", b"0") => data -= map.lines(&mut self.source, packed)?,
            (b"0", b"0" | b"1") => map.records(sparse)?,
            (b"", b"") if !sparse.map.is_empty() => map.records(sparse)?,
            // An unknown version is stored as it is, as everywhere.
            _ => {
                let file = File {
                    size: packed,
                    extents: None,
                };
                return Ok((Kind::File(file), packed));
            }
        }
        let extents = map.finish(size, data)?;
        self.current.extents = Some(extents.iter().rev().copied().collect());
        let file = File {
            size,
            extents: Some(extents),
        };
        Ok((Kind::File(file), data))
    }
}

impl Current {
    fn advance(&mut self, count: u64) {
        self.left -= count;
        self.offset += count;
        if let Some(extents) = &mut self.extents
            && let Some(extent) = extents.last_mut()
        {
            extent.offset += count;
            extent.length -= count;
            if extent.length == 0 {
                extents.pop();
            }
        }
    }
}

/// What fills up `size` bytes to whole blocks.
fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn within(bytes: Vec<u8>, limit: usize, what: &'static str) -> Result<Vec<u8>, Fault> {
    if bytes.len() > limit {
        return Err(Fault::limit(what, limit));
    }
    Ok(bytes)
}

fn owner(
    field: &'static str,
    extended: Option<i64>,
    own: Result<i64, Fault>,
) -> Result<u32, Fault> {
    let value = extended.map_or(own, Ok)?;
    u32::try_from(value).map_err(|_| Fault::Owner { field, value })
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
