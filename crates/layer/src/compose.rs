// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Composes entries from headers and their extensions.

use std::io::Read;

use crate::current::CurrentEntry;
use crate::entry::{Entry, EntryKind, File, Metadata};
use crate::error::Fault;
use crate::header::Header;
use crate::limits::Limits;
use crate::name::{self, Name};
use crate::pax::{Extended, Records, Sparse};
use crate::source::{Source, padding};
use crate::sparse::Map;

/// The number of major device numbers that Linux has.
const MAJORS: u32 = 1 << 12;
/// The number of minor device numbers that Linux has.
const MINORS: u32 = 1 << 20;

/// The state of a layer that composing an entry reads and changes.
pub(crate) struct Composer<'a, R> {
    pub(crate) limits: &'a Limits,
    pub(crate) source: &'a mut Source<R>,
    pub(crate) current: &'a mut CurrentEntry,
    /// The number of entries so far.
    pub(crate) entries: &'a mut usize,
}

impl<R: Read> Composer<'_, R> {
    /// Returns the entry that a header and its extensions describe, or `None` for one that is ignored.
    pub(crate) fn entry(
        &mut self,
        header: &Header,
        extended: Extended,
    ) -> Result<Option<Entry>, Fault> {
        let Extended {
            path,
            link,
            records,
        } = extended;
        let own = path.or_else(|| records.name("path"));
        let own = own.unwrap_or_else(|| header.path());
        // GNU.sparse.name does not decide this.
        let is_directory = header.kind() == 0 && own.ends_with(b"/");
        let sparse = records.sparse().filter(|_| header.kind() != b'S');
        let name = sparse.and_then(|_| records.name("GNU.sparse.name"));
        let raw = name.unwrap_or(own);
        let raw = within(raw, self.limits.path, "bytes of a path")?;
        self.current.path.clone_from(&raw);
        *self.entries += 1;
        if *self.entries > self.limits.entries {
            return Err(Fault::limit("entries", self.limits.entries));
        }

        // Malformed numbers are refused even where the value is not used.
        let size = records.number("size")?.unwrap_or(header.size);
        let uid = records.number("uid")?.unwrap_or(header.uid);
        let gid = records.number("gid")?.unwrap_or(header.gid);
        let mtime = records.time("mtime")?.unwrap_or(header.mtime);
        records.time("atime")?;
        records.time("ctime")?;

        let kind = match header.kind() {
            0 if is_directory => EntryKind::Directory,
            0 | b'0' | b'7' | b'S' => self.file(header, &records, sparse, size)?,
            _ => self.without_data(header, link.or_else(|| records.name("linkpath")))?,
        };
        if sparse.is_some() && !matches!(kind, EntryKind::File(_)) {
            return Err(Fault::Sparse("it is no file"));
        }

        let (path, kind) = match name::parse(name::clean(&raw))? {
            Name::Plain(path) if path.is_empty() && kind != EntryKind::Directory => {
                return Ok(None);
            }
            Name::Plain(path) => (path, kind),
            Name::Whiteout(path) => (path, EntryKind::Whiteout),
            Name::Opaque(path) => (path, EntryKind::Opaque),
        };
        // A whiteout may have the data of a file.
        self.current.is_hidden = !matches!(kind, EntryKind::File(_));
        Ok(Some(Entry {
            path,
            kind,
            metadata: Metadata {
                mode: u32::try_from(header.mode & 0o7777).unwrap_or_default(),
                uid: owner("uid", uid)?,
                gid: owner("gid", gid)?,
                mtime,
                xattrs: records.xattrs,
            },
        }))
    }

    /// Returns the type of an entry without data.
    fn without_data(&self, header: &Header, link: Option<Vec<u8>>) -> Result<EntryKind, Fault> {
        let link = || {
            let link = link.unwrap_or_else(|| header.link());
            within(link, self.limits.path, "bytes of a link's target")
        };
        Ok(match header.kind() {
            b'1' => EntryKind::Hardlink(name::link_target(&link()?)?),
            b'2' => match link()? {
                target if target.is_empty() => {
                    return Err(Fault::Name("it is a symbolic link to nothing"));
                }
                target => EntryKind::Symlink(target),
            },
            b'3' => {
                let (major, minor) = device(header)?;
                EntryKind::Character { major, minor }
            }
            b'4' => {
                let (major, minor) = device(header)?;
                EntryKind::Block { major, minor }
            }
            b'5' => EntryKind::Directory,
            b'6' => EntryKind::Fifo,
            other => return Err(Fault::Type(other)),
        })
    }

    /// Returns a file whose entry has `packed` bytes, and sets the current entry's data.
    fn file(
        &mut self,
        header: &Header,
        records: &Records,
        sparse: Option<Sparse>,
        packed: i64,
    ) -> Result<EntryKind, Fault> {
        let packed = u64::try_from(packed).map_err(|_| Fault::Number("size"))?;
        let mut map = Map::new(self.limits);
        let mut data = packed;
        let size = match sparse {
            _ if header.kind() == b'S' => Some(map.gnu(header, self.source)?),
            None => None,
            Some(sparse) => {
                match sparse {
                    Sparse::InData => data -= map.lines(self.source, packed)?,
                    Sparse::InRecords => {
                        map.records(records.map(), records.number("GNU.sparse.numblocks")?)?;
                    }
                }
                Some(real_size(records, packed)?)
            }
        };
        self.current.left = data;
        self.current.padding = padding(data);
        let Some(size) = size else {
            let extents = None;
            let size = packed;
            return Ok(EntryKind::File(File { size, extents }));
        };
        let extents = map.finish(size, data)?;
        self.current.extents = Some(extents.iter().rev().copied().collect());
        let extents = Some(extents);
        Ok(EntryKind::File(File { size, extents }))
    }
}

/// Returns the size of a sparse file, including holes.
fn real_size(records: &Records, packed: u64) -> Result<u64, Fault> {
    let mut size = None;
    for key in ["GNU.sparse.size", "GNU.sparse.realsize"] {
        if size.is_none() {
            size = records.number(key)?;
        }
    }
    let negative = |_| Fault::Sparse("its size is negative");
    size.map_or(Ok(packed), |size| u64::try_from(size).map_err(negative))
}

/// Returns `bytes` if there are at most `limit` of them.
fn within(bytes: Vec<u8>, limit: usize, what: &'static str) -> Result<Vec<u8>, Fault> {
    if bytes.len() > limit {
        return Err(Fault::limit(what, limit));
    }
    Ok(bytes)
}

/// Returns a valid owner or group. `u32::MAX` is none: chown(2) takes it to mean "unchanged".
fn owner(field: &'static str, value: i64) -> Result<u32, Fault> {
    let owner = u32::try_from(value).ok().filter(|owner| *owner != u32::MAX);
    owner.ok_or(Fault::Owner { field, value })
}

/// Returns the device number of a header.
fn device(header: &Header) -> Result<(u32, u32), Fault> {
    let (major, minor) = header.device;
    let part = |value: i64, count| u32::try_from(value).ok().filter(|value| *value < count);
    match (part(major, MAJORS), part(minor, MINORS)) {
        (Some(major), Some(minor)) => Ok((major, minor)),
        _ => Err(Fault::Device { major, minor }),
    }
}
