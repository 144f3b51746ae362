// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What extension headers say of the entry that follows them.

use crate::entry::{Time, Xattr};
use crate::error::Fault;
use crate::number;
use crate::reader::Limits;

const XATTR: &[u8] = b"SCHILY.xattr.";

/// What takes precedence over an entry's own header.
#[derive(Debug, Default)]
pub(crate) struct Extended {
    /// GNU's names go before those of pax.
    pub(crate) gnu_path: Option<Vec<u8>>,
    pub(crate) gnu_link: Option<Vec<u8>>,
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<Time>,
    pub(crate) xattrs: Vec<Xattr>,
    pub(crate) sparse: Sparse,
}

/// The records `GNU.sparse.*`.
#[derive(Debug, Default)]
pub(crate) struct Sparse {
    pub(crate) major: Vec<u8>,
    pub(crate) minor: Vec<u8>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) real_size: Option<u64>,
    /// The map of version 0.1, or that of 0.0 in the same form.
    pub(crate) map: Vec<u8>,
    /// How many extents the map has, where it says so.
    pub(crate) count: Option<u64>,
}

impl Extended {
    /// Takes in the records of one header of type `x`, which replaces an earlier one.
    pub(crate) fn records(&mut self, mut text: &[u8], limits: &Limits) -> Result<(), Fault> {
        *self = Self {
            gnu_path: self.gnu_path.take(),
            gnu_link: self.gnu_link.take(),
            ..Self::default()
        };
        let mut xattrs = 0;
        while !text.is_empty() {
            let (key, value, rest) = record(text).ok_or(Fault::Records)?;
            text = rest;
            if let Some(name) = key.strip_prefix(XATTR) {
                xattrs += name.len() + value.len();
                if xattrs > limits.xattrs {
                    return Err(Fault::limit("bytes of extended attributes", limits.xattrs));
                }
                if name.is_empty() {
                    return Err(Fault::Name("an extended attribute has no name"));
                }
                self.xattrs.push(Xattr {
                    name: name.to_vec(),
                    value: value.to_vec(),
                });
            } else {
                self.record(key, value)?;
            }
        }
        // Of a repeated name the last stays: the sort keeps order, and the first of equals survives.
        self.xattrs.reverse();
        self.xattrs
            .sort_by(|left, right| left.name.cmp(&right.name));
        self.xattrs.dedup_by(|next, kept| next.name == kept.name);
        Ok(())
    }

    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let sparse = &mut self.sparse;
        // An empty value leaves things to the entry's own header.
        if value.is_empty() {
            return Ok(());
        }
        let size = |name| number::size(value).ok_or(Fault::Number(name)).map(Some);
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = size("size")?,
            b"uid" => self.uid = Some(number::decimal(value).ok_or(Fault::Number("uid"))?),
            b"gid" => self.gid = Some(number::decimal(value).ok_or(Fault::Number("gid"))?),
            b"mtime" => self.mtime = Some(number::time(value).ok_or(Fault::Number("mtime"))?),
            b"GNU.sparse.major" => sparse.major = value.to_vec(),
            b"GNU.sparse.minor" => sparse.minor = value.to_vec(),
            b"GNU.sparse.name" => sparse.name = Some(value.to_vec()),
            b"GNU.sparse.size" => sparse.size = size("GNU.sparse.size")?,
            b"GNU.sparse.realsize" => sparse.real_size = size("GNU.sparse.realsize")?,
            b"GNU.sparse.numblocks" => sparse.count = size("GNU.sparse.numblocks")?,
            b"GNU.sparse.map" => sparse.map = value.to_vec(),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                if !sparse.map.is_empty() {
                    sparse.map.push(b',');
                }
                sparse.map.extend_from_slice(value);
            }
            _ => {}
        }
        Ok(())
    }
}

/// The key, the value and what follows of `LENGTH KEY=VALUE\n`, where the length is that of it all.
fn record(text: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // A length that takes more digits than these is longer than any limit.
    let space = text.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(number::size(text.get(..space)?)?).ok()?;
    let (body, newline) = text
        .get(space + 1..length)?
        .split_last()
        .map(|(last, body)| (body, last))?;
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
