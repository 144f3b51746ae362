// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Extension headers, which precede the header of their entry.

use std::collections::BTreeMap;

use crate::entry::{Time, Xattr};
use crate::error::Fault;
use crate::number;

const XATTR: &[u8] = b"SCHILY.xattr.";

/// All other keys that this crate interprets.
const KEYS: [&[u8]; 15] = [
    b"path",
    b"linkpath",
    b"size",
    b"uid",
    b"gid",
    b"mtime",
    b"atime",
    b"ctime",
    b"GNU.sparse.major",
    b"GNU.sparse.minor",
    b"GNU.sparse.name",
    b"GNU.sparse.size",
    b"GNU.sparse.realsize",
    b"GNU.sparse.numblocks",
    b"GNU.sparse.map",
];

/// The keys whose values must not contain NUL. Some of them are not interpreted otherwise.
const NAMES: [&[u8]; 5] = [b"path", b"linkpath", b"uname", b"gname", b"GNU.sparse.name"];

/// The values that take precedence over an entry's own header.
#[derive(Debug, Default)]
pub(crate) struct Extended {
    /// A name in GNU's format, which takes precedence over pax.
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) records: Records,
}

/// The records of one header. The last record of a repeated key wins.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// The values of [`KEYS`].
    values: BTreeMap<&'static [u8], Vec<u8>>,
    /// The map of version 0.0 in the form of 0.1.
    pairs: Vec<u8>,
    /// The number of numbers in it.
    numbers: usize,
    /// Extended attributes, ordered by name, each name once.
    pub(crate) xattrs: Vec<Xattr>,
}

/// The location of a sparse file's map in pax.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sparse {
    /// In the records: versions 0.0 and 0.1.
    InRecords,
    /// Before the data: version 1.0.
    InData,
}

impl Records {
    /// Parses the data of a header. `limit` is the most bytes of extended attributes.
    pub(crate) fn new(mut text: &[u8], limit: usize) -> Result<Self, Fault> {
        let mut records = Self::default();
        let mut xattrs = 0;
        while !text.is_empty() {
            let (key, value, rest) = record(text).ok_or(Fault::Records)?;
            text = rest;
            if NAMES.contains(&key) && value.contains(&0) {
                return Err(Fault::Name("a name in its pax records has a NUL in it"));
            }
            if let Some(name) = key.strip_prefix(XATTR) {
                xattrs += name.len() + value.len();
                if xattrs > limit {
                    return Err(Fault::limit("bytes of extended attributes", limit));
                }
                if name.is_empty() {
                    return Err(Fault::Name("an extended attribute has no name"));
                }
                records.xattrs.push(Xattr {
                    name: name.to_vec(),
                    value: value.to_vec(),
                });
            } else if let b"GNU.sparse.offset" | b"GNU.sparse.numbytes" = key {
                records.pair(key == b"GNU.sparse.offset", value)?;
            } else if let Some(key) = KEYS.iter().find(|known| **known == key) {
                records.values.insert(key, value.to_vec());
            }
        }
        // The sort is stable, and the first of equals is kept.
        records.xattrs.reverse();
        records
            .xattrs
            .sort_by(|left, right| left.name.cmp(&right.name));
        records.xattrs.dedup_by(|next, kept| next.name == kept.name);
        Ok(records)
    }

    /// Adds half of an extent of version 0.0.
    fn pair(&mut self, is_offset: bool, value: &[u8]) -> Result<(), Fault> {
        if is_offset != self.numbers.is_multiple_of(2) || value.contains(&b',') {
            return Err(Fault::Sparse("its extents are not pairs of numbers"));
        }
        if self.numbers > 0 {
            self.pairs.push(b',');
        }
        self.pairs.extend_from_slice(value);
        self.numbers += 1;
        Ok(())
    }

    /// Returns the value of a key. An empty value counts as absent: the entry's own header applies.
    fn get(&self, key: &str) -> Option<&[u8]> {
        let value = self.values.get(key.as_bytes())?;
        (!value.is_empty()).then_some(value)
    }

    /// Returns a name: any bytes but NUL.
    pub(crate) fn name(&self, key: &str) -> Option<Vec<u8>> {
        self.get(key).map(<[u8]>::to_vec)
    }

    pub(crate) fn number(&self, key: &'static str) -> Result<Option<i64>, Fault> {
        let parse = |value| number::decimal(value).ok_or(Fault::Number(key));
        self.get(key).map(parse).transpose()
    }

    pub(crate) fn time(&self, key: &'static str) -> Result<Option<Time>, Fault> {
        let parse = |value| number::time(value).ok_or(Fault::Number(key));
        self.get(key).map(parse).transpose()
    }

    /// Returns the location of the sparse map, or `None` if the file is not sparse. A map of an unknown
    /// version counts as data, as in all other readers.
    pub(crate) fn sparse(&self) -> Option<Sparse> {
        let version = |key| self.get(key).unwrap_or_default();
        match (version("GNU.sparse.major"), version("GNU.sparse.minor")) {
            (b"0", b"0" | b"1") => Some(Sparse::InRecords),
            (b"1", b"0") => Some(Sparse::InData),
            (b"", b"") if !self.map().is_empty() => Some(Sparse::InRecords),
            _ => None,
        }
    }

    /// Returns the map of versions 0.0 and 0.1: all numbers joined by commas.
    pub(crate) fn map(&self) -> &[u8] {
        match self.numbers {
            0 => self.get("GNU.sparse.map").unwrap_or_default(),
            _ => &self.pairs,
        }
    }
}

/// Parses `LENGTH KEY=VALUE\n`, where the length includes all of it. Returns the key, the value and the
/// rest of the text.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // A length with more digits exceeds any limit.
    let space = text.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(number::decimal(text.get(..space)?)?).ok()?;
    let (newline, body) = text.get(space + 1..length)?.split_last()?;
    if *newline != b'\n' {
        return None;
    }
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (body.get(..equals)?, body.get(equals + 1..)?);
    if key.is_empty() || key.contains(&0) {
        return None;
    }
    Some((key, value, text.get(length..)?))
}
