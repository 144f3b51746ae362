// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Extended attributes of files and directories.

use std::io;
use std::os::fd::AsFd;

use resnap_layer::Xattr;
use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

/// The value that marks an opaque directory (Linux `Documentation/filesystems/overlayfs.rst`).
pub(crate) const OPAQUE_VALUE: &[u8] = b"y";

/// The attribute with the access control list that new children of a directory inherit.
pub(crate) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// The namespace of the attributes of overlayfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum XattrNamespace {
    /// `trusted.overlay.*`.
    Trusted,
    /// `user.overlay.*`, in a user namespace. Devices cannot be created there either.
    User,
}

impl XattrNamespace {
    /// Returns the attribute that marks an opaque directory.
    pub(crate) fn opaque_name(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.opaque",
            Self::User => "user.overlay.opaque",
        }
    }

    /// Returns the attribute that marks a directory with whiteouts.
    pub(crate) fn origin_name(self) -> &'static str {
        match self {
            Self::Trusted => "trusted.overlay.origin",
            Self::User => "user.overlay.origin",
        }
    }

    /// Returns whether an attribute belongs to overlayfs.
    pub(crate) fn is_overlay(self, name: &[u8]) -> bool {
        name.starts_with(match self {
            Self::Trusted => b"trusted.overlay.",
            Self::User => b"user.overlay.",
        })
    }

    /// Returns whether an attribute of a layer is set. As in containerd, those that overlayfs and other
    /// drivers would interpret are not.
    pub(crate) fn is_applicable(self, xattr: &Xattr) -> bool {
        !xattr.name.starts_with(b"trusted.") && !self.is_overlay(&xattr.name)
    }
}

/// Returns whether these attributes include a default access control list.
pub(crate) fn has_default_acl(xattrs: &[Xattr]) -> bool {
    xattrs.iter().any(|xattr| xattr.name == DEFAULT_ACL)
}

/// Sets an attribute.
pub(crate) fn set(fd: &impl AsFd, name: &str, value: &[u8]) -> rustix::io::Result<()> {
    fs::fsetxattr(fd, name, value, XattrFlags::empty())
}

/// Returns the names of the attributes.
pub(crate) fn list(fd: &impl AsFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let size = match fs::flistxattr_query(fd) {
        Err(Errno::OPNOTSUPP) => 0,
        size => size?,
    };
    if size == 0 {
        return Ok(Vec::new());
    }
    let mut list = vec![0; size];
    let size = fs::flistxattr(fd, &mut list[..])?;
    list.truncate(size);
    let names = list.split(|byte| *byte == 0);
    Ok(names
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

/// Returns the value of an attribute, or `None` if it is not set.
pub(crate) fn get(fd: &impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    loop {
        let size = match fs::fgetxattr_query(fd, name) {
            Err(Errno::NODATA | Errno::OPNOTSUPP) => return Ok(None),
            size => size?,
        };
        let mut value = vec![0; size];
        match fs::fgetxattr(fd, name, &mut value[..]) {
            // The value has grown since the query.
            Err(Errno::RANGE) => {}
            Err(Errno::NODATA) => return Ok(None),
            size => {
                value.truncate(size?);
                return Ok(Some(value));
            }
        }
    }
}
