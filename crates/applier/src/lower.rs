// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What the lower directories of an overlay say of a directory.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use resnap_erofs::Metadata;
use resnap_layer::Xattr;
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use crate::extract::{get, is_overlay, list, mtime, open_below};

/// The lower directories, the topmost first.
#[derive(Debug, Default)]
pub(crate) struct Lower(Vec<OwnedFd>);

impl Lower {
    pub(crate) fn open(paths: &[PathBuf]) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path| Ok(fs::open(path, flags, Mode::empty())?);
        paths.iter().map(open).collect::<io::Result<_>>().map(Self)
    }

    /// The metadata of the directory at `path` as overlayfs shows it; `None` if there is none.
    pub(crate) fn directory(&self, path: &[u8]) -> io::Result<Option<Metadata>> {
        for lower in &self.0 {
            match open_below(lower, path) {
                Ok(fd) => return metadata(&fd).map(Some),
                // Something else hides what is below.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(Errno::NOENT) if is_hidden(lower, path)? => return Ok(None),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }
}

/// Whether a directory on the way to what is not there hides what is below.
fn is_hidden(lower: &OwnedFd, path: &[u8]) -> io::Result<bool> {
    let ends = path.iter().enumerate();
    for (end, _) in ends.filter(|(_, byte)| **byte == b'/') {
        let Some(parent) = path.get(..end) else {
            break;
        };
        let Ok(fd) = open_below(lower, parent) else {
            break;
        };
        for name in [&b"trusted.overlay.opaque"[..], b"user.overlay.opaque"] {
            if get(&fd, name)?.as_deref() == Some(b"y") {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

fn metadata(fd: &OwnedFd) -> io::Result<Metadata> {
    let stat = fs::fstat(fd)?;
    let mut xattrs = Vec::new();
    for name in list(fd)? {
        if !is_overlay(&name)
            && let Some(value) = get(fd, &name)?
        {
            xattrs.push(Xattr { name, value });
        }
    }
    Ok(Metadata {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: mtime(&stat),
        xattrs,
    })
}
