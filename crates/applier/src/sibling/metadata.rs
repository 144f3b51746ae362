// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The metadata of files that is copied.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use resnap_layer::{Limits, Metadata, Xattr};
use rustix::fs::{self, Stat};
use rustix::io::Errno;

use super::fault::Fault;
use crate::copy_fault::EntryFault;
use crate::inode::mtime;
use crate::xattr::OPAQUE_VALUE;

/// The longest list of names and the longest value that Linux has (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const LONGEST: usize = 65536;

/// Attributes that are copied, besides `user.*`. All others belong to the host.
const COPIED: [&[u8]; 3] = [
    b"security.capability",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
];

const OVERLAY: &[u8] = b"trusted.overlay.";

/// Attributes of overlayfs that do not change what a layer shows.
const HARMLESS: [&[u8]; 5] = [b"origin", b"impure", b"nlink", b"upper", b"uuid"];

/// Most lists and values are shorter. The kernel clears as much memory as the buffer has at each call.
const SHORT: usize = 256;

/// The use of an attribute.
enum Use {
    Copied,
    Opaque,
    Ignored,
}

/// Reads metadata.
#[derive(Debug)]
pub(super) struct MetadataReader {
    names: Vec<u8>,
    value: Vec<u8>,
}

impl Default for MetadataReader {
    fn default() -> Self {
        Self {
            names: vec![0; SHORT],
            value: vec![0; SHORT],
        }
    }
}

/// An inode with attributes.
pub(super) enum At<'a> {
    /// An open file or directory.
    Open(&'a OwnedFd),
    /// Another, which is not opened: opening a device has effects.
    Path(PathBuf),
}

impl At<'_> {
    /// Returns the inode of a name.
    pub(super) fn name(parent: &OwnedFd, name: &[u8]) -> Self {
        // There is no system call that reads attributes by descriptor and name.
        let mut path = PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd()));
        path.push(OsStr::from_bytes(name));
        Self::Path(path)
    }

    /// Returns the list of names.
    fn list<'b>(&self, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
        let list = |buffer: &mut [u8]| match self {
            Self::Open(fd) => fs::flistxattr(fd, buffer),
            Self::Path(path) => fs::llistxattr(path, buffer),
        };
        match fill(buffer, list) {
            Err(Errno::OPNOTSUPP) => Ok(&[]),
            list => Ok(list?),
        }
    }

    /// Returns the value of an attribute, or `None` if it is not set.
    fn get<'b>(&self, name: &[u8], buffer: &'b mut Vec<u8>) -> io::Result<Option<&'b [u8]>> {
        let get = |buffer: &mut [u8]| match self {
            Self::Open(fd) => fs::fgetxattr(fd, name, buffer),
            Self::Path(path) => fs::lgetxattr(path, name, buffer),
        };
        match fill(buffer, get) {
            Err(Errno::NODATA) => Ok(None),
            value => Ok(Some(value?)),
        }
    }
}

/// Fills a buffer, which grows if it is too short.
fn fill(
    buffer: &mut Vec<u8>,
    read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>,
) -> rustix::io::Result<&[u8]> {
    let length = match read(buffer) {
        Err(Errno::RANGE) if buffer.len() < LONGEST => {
            buffer.resize(LONGEST, 0);
            read(buffer)?
        }
        length => length?,
    };
    Ok(buffer.get(..length).unwrap_or_default())
}

impl MetadataReader {
    /// Returns the metadata of an inode, and whether it is an opaque directory.
    pub(super) fn read(&mut self, at: &At<'_>, stat: &Stat) -> Result<(Metadata, bool), Fault> {
        let mut metadata = Metadata {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: mtime(stat),
            xattrs: Vec::new(),
        };
        let mut is_opaque = false;
        let (names, mut total) = (at.list(&mut self.names)?, 0);
        for name in names.split(|byte| *byte == 0) {
            match of(name)? {
                Use::Ignored => {}
                Use::Opaque => match at.get(name, &mut self.value)? {
                    Some(value) if value != OPAQUE_VALUE => {
                        return Err(EntryFault::Attribute(name.to_vec()).into());
                    }
                    found => is_opaque |= found.is_some(),
                },
                Use::Copied => {
                    let Some(value) = at.get(name, &mut self.value)? else {
                        continue;
                    };
                    total += name.len() + value.len();
                    let limit = Limits::default().xattrs;
                    if total > limit {
                        return Err(EntryFault::Attributes(limit).into());
                    }
                    metadata.xattrs.push(Xattr {
                        name: name.to_vec(),
                        value: value.to_vec(),
                    });
                }
            }
        }
        metadata.xattrs.sort_unstable();
        Ok((metadata, is_opaque))
    }
}

/// Removes the attributes that are not copied. Returns whether this is an opaque directory.
pub(super) fn copied(metadata: &mut Metadata) -> Result<bool, EntryFault> {
    let mut is_opaque = false;
    let mut kept = Vec::new();
    for xattr in std::mem::take(&mut metadata.xattrs) {
        match of(&xattr.name)? {
            Use::Ignored => {}
            Use::Opaque if xattr.value == OPAQUE_VALUE => is_opaque = true,
            Use::Opaque => return Err(EntryFault::Attribute(xattr.name)),
            Use::Copied => kept.push(xattr),
        }
    }
    metadata.xattrs = kept;
    Ok(is_opaque)
}

/// Returns the use of an attribute.
fn of(name: &[u8]) -> Result<Use, EntryFault> {
    if name.starts_with(b"user.overlay.") {
        return Err(EntryFault::Attribute(name.to_vec()));
    }
    if let Some(own) = name.strip_prefix(OVERLAY) {
        return match own {
            b"opaque" => Ok(Use::Opaque),
            own if HARMLESS.contains(&own) => Ok(Use::Ignored),
            _ => Err(EntryFault::Attribute(name.to_vec())),
        };
    }
    Ok(match name.starts_with(b"user.") || COPIED.contains(&name) {
        true => Use::Copied,
        false => Use::Ignored,
    })
}
