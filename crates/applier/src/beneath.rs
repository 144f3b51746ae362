// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Opening directories below a root without following symbolic links.

use std::os::fd::OwnedFd;

use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Flags that open a directory and no symbolic link.
pub(crate) const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Returns whether `path` is inside the directory `top`.
pub(crate) fn is_beneath(top: &[u8], path: &[u8]) -> bool {
    match path.strip_prefix(top) {
        Some(rest) => (top.is_empty() && !rest.is_empty()) || rest.starts_with(b"/"),
        None => false,
    }
}

/// Opens the directory at `path` if no component is a symbolic link.
pub(crate) fn open_beneath(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    if path.is_empty() {
        return fs::openat(root, ".", DIRECTORY, Mode::empty());
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match fs::openat2(root, path, DIRECTORY, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Before Linux 5.6, or forbidden by a seccomp filter.
            Err(Errno::NOSYS | Errno::PERM) => break,
            opened => return opened,
        }
    }
    let mut names = path.split(|byte| *byte == b'/');
    let root = fs::openat(root, ".", DIRECTORY, Mode::empty());
    names.try_fold(root?, |directory, name| {
        fs::openat(&directory, name, DIRECTORY, Mode::empty())
    })
}
