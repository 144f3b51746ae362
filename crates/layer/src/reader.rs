// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A reader of the entries of a layer.

use std::io::Read;

use crate::compose::Composer;
use crate::current::CurrentEntry;
use crate::entry::{Entry, Piece};
use crate::error::{Error, Fault};
use crate::header::Header;
use crate::limits::Limits;
use crate::name::{self, Name};
use crate::number::until_nul;
use crate::pax::{Extended, Records};
use crate::source::{BLOCK, Source, padding};

/// A reader of the entries of a layer.
///
/// After an error it returns no further entries.
#[derive(Debug)]
pub struct Layer<R> {
    source: Source<R>,
    limits: Limits,
    entries: usize,
    current: CurrentEntry,
    ended: bool,
    /// The buffer for extension headers.
    scratch: Vec<u8>,
}

impl<R: Read> Layer<R> {
    /// Returns a reader of `stream`, which must be uncompressed. It is read in large pieces.
    pub fn new(stream: R, limits: Limits) -> Self {
        Self {
            source: Source::new(stream),
            limits,
            entries: 0,
            current: CurrentEntry::default(),
            ended: false,
            scratch: Vec::new(),
        }
    }

    /// Returns the number of bytes of the stream that have been consumed.
    pub fn position(&self) -> u64 {
        self.source.offset()
    }

    /// Returns the next entry, or `None` after the last one. Data of the previous entry that was not read
    /// is skipped.
    ///
    /// # Errors
    ///
    /// The stream is malformed or cannot be read: see [`Fault`].
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

    /// Returns the offset in the stream of the current file's data, or `None` for entries without data and
    /// for sparse files, whose data is not in one piece.
    pub fn tar_offset(&self) -> Option<u64> {
        let current = &self.current;
        let has_data = current.left + current.offset > 0;
        let is_in_one_piece = !current.is_hidden && current.extents.is_none();
        // As long as it is in one piece, the position in the file is what was read of it.
        (has_data && is_in_one_piece).then(|| self.source.offset() - current.offset)
    }

    /// Returns the next piece of the current file's data, or `None` after the last one and for entries
    /// without data. Data of up to 64 KiB comes in one piece unless the file is sparse. Holes are left out.
    ///
    /// # Errors
    ///
    /// The stream cannot be read, or ends early.
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

    /// Reads the stream to its end, past the layer's trailer, and returns it. A stream that hashes its
    /// bytes has then seen all of them.
    ///
    /// # Errors
    ///
    /// The stream cannot be read.
    pub fn finish(self) -> Result<R, Error> {
        let offset = self.source.offset();
        self.source.finish().map_err(|fault| Error {
            offset,
            entry: None,
            fault,
        })
    }

    /// Returns an error that names the current entry.
    fn error(&mut self, fault: Fault) -> Error {
        let path = std::mem::take(&mut self.current.path);
        Error {
            offset: self.current.header,
            entry: Some(path).filter(|path| !path.is_empty()),
            fault,
        }
    }

    fn skip_data(&mut self) -> Result<(), Fault> {
        let CurrentEntry { left, padding, .. } = self.current;
        if self.source.skip(left)? < left {
            return Err(Fault::Truncated);
        }
        // A stream may end without the padding of its last entry.
        self.source.skip(padding)?;
        self.current = CurrentEntry {
            header: self.source.offset(),
            ..CurrentEntry::default()
        };
        Ok(())
    }

    /// Returns the next header, or `None` at the trailer or the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let is_zero = |block: &[u8; BLOCK]| block.iter().all(|byte| *byte == 0);
        let is_first = self.source.offset() == 0;
        let block = match self.source.block() {
            Ok(Some(block)) => *block,
            Ok(None) => return Ok(None),
            Err(Fault::Truncated) if is_first => {
                let is_tar = has_magic(self.source.bytes(BLOCK as u64)?);
                return Err(if is_tar {
                    Fault::Truncated
                } else {
                    Fault::NotTar
                });
            }
            Err(fault) => return Err(fault),
        };
        if is_zero(&block) {
            return match self.source.block()? {
                Some(block) if !is_zero(block) => Err(Fault::Trailer),
                _ => Ok(None),
            };
        }
        match Header::new(block) {
            Err(Fault::Checksum) if is_first && !has_magic(&block) => Err(Fault::NotTar),
            header => header.map(Some),
        }
    }

    fn entry(&mut self) -> Result<Option<Entry>, Fault> {
        let mut extended = Extended::default();
        let mut budget = self.limits.extensions as u64;
        let mut pending = false;
        loop {
            let Some(header) = self.header()? else {
                // The entry of the extension headers is missing.
                return if pending {
                    Err(Fault::Truncated)
                } else {
                    Ok(None)
                };
            };
            let kind = header.kind();
            if matches!(kind, b'g' | b'x' | b'L' | b'K') {
                self.extension(&header, &mut budget)?;
            }
            let name = || Some(until_nul(&self.scratch).to_vec()).filter(|name| !name.is_empty());
            match kind {
                b'g' if pending => {
                    return Err(Fault::Ambiguous(
                        "a global header between an extension header and its entry",
                    ));
                }
                b'g' => self.global(&header)?,
                b'x' => extended.records = Records::new(&self.scratch, self.limits.xattrs)?,
                b'L' => extended.path = name(),
                b'K' => extended.link = name(),
                _ => {
                    if let Some(entry) = self
                        .composer()
                        .entry(&header, std::mem::take(&mut extended))?
                    {
                        return Ok(Some(entry));
                    }
                    self.skip_data()?;
                    budget = self.limits.extensions as u64;
                }
            }
            pending = matches!(kind, b'x' | b'L' | b'K');
        }
    }

    fn composer(&mut self) -> Composer<'_, R> {
        Composer {
            limits: &self.limits,
            source: &mut self.source,
            current: &mut self.current,
            entries: &mut self.entries,
        }
    }

    /// Checks a global header. Its records have no effect, but containerd creates the parents of its name,
    /// applies it as a whiteout, and removes what the layer has at the name. So only a name is accepted
    /// for which none of this happens.
    fn global(&mut self, header: &Header) -> Result<(), Fault> {
        let records = Records::new(&self.scratch, self.limits.xattrs)?;
        // Go uses the name of a record only if no record before it, in random order, is malformed.
        for path in [Some(header.path()), records.name("path")].iter().flatten() {
            let is_harmless = match name::parse(name::clean(path))? {
                Name::Plain(path) => path.is_empty() || self.entries == 0 && !path.contains(&b'/'),
                Name::Whiteout(_) | Name::Opaque(_) => false,
            };
            if !is_harmless {
                return Err(Fault::Ambiguous(
                    "a global header after an entry, in a directory or with the name of a whiteout",
                ));
            }
        }
        Ok(())
    }

    /// Reads the data of an extension header.
    fn extension(&mut self, header: &Header, budget: &mut u64) -> Result<(), Fault> {
        let size = u64::try_from(header.size).map_err(|_| Fault::Number("size"))?;
        let left = budget.checked_sub(size.saturating_add(BLOCK as u64));
        *budget = left.ok_or(Fault::limit(
            "bytes of extension headers",
            self.limits.extensions,
        ))?;
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
}

/// Returns whether bytes have the magic of a header. The oldest format has none.
fn has_magic(bytes: &[u8]) -> bool {
    bytes.get(257..262) == Some(b"ustar")
}

#[cfg(test)]
mod hostile;
#[cfg(test)]
mod tests;
