// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Lookups of directories in the lower directories of an overlay.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use resnap_layer::path::split;
use resnap_layer::{Metadata, Xattr};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use crate::beneath::{is_beneath, open_beneath};
use crate::inode::mtime;
use crate::xattr::{OPAQUE_VALUE, XattrNamespace, get, list};

/// The lower directories of an overlay, the topmost first.
#[derive(Debug, Default)]
pub(crate) struct LowerDirs(Vec<OwnedFd>);

impl LowerDirs {
    pub(crate) fn open(paths: &[PathBuf]) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path| Ok(fs::open(path, flags, Mode::empty())?);
        paths.iter().map(open).collect::<io::Result<_>>().map(Self)
    }

    /// Returns the number of directories.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns a cursor for lookups. `hides` returns whether the upper directory hides the lower ones at
    /// a path.
    pub(crate) fn cursor<H: Fn(&[u8]) -> bool>(
        &self,
        namespace: XattrNamespace,
        hides: H,
    ) -> LowerCursor<'_, H> {
        LowerCursor {
            lower: self.0.iter().collect(),
            namespace,
            hides,
            parent: Vec::new(),
            merged: Vec::new(),
        }
    }
}

/// A cursor for lookups in lower directories. If paths come in the order of their bytes, so that all
/// children of a directory come one after another, each parent is looked up once.
pub(crate) struct LowerCursor<'a, H> {
    lower: Vec<&'a OwnedFd>,
    namespace: XattrNamespace,
    hides: H,
    /// The parent of the last path.
    parent: Vec<u8>,
    /// The components of that parent: where their paths end, and the lower directories that are merged
    /// there. It holds no descriptors of its own, which would be too many.
    merged: Vec<(usize, Vec<&'a OwnedFd>)>,
}

impl<H: Fn(&[u8]) -> bool> LowerCursor<'_, H> {
    /// Returns the metadata of the directory at `path` as overlayfs shows it, or `None` if there is no
    /// such directory.
    pub(crate) fn directory(&mut self, path: &[u8]) -> io::Result<Option<Metadata>> {
        self.move_to(split(path).0)?;
        let lower = self.merged.last().map_or(&self.lower, |(_, lower)| lower);
        for lower in lower {
            match open_beneath(lower, path) {
                Ok(fd) => return metadata(&fd, self.namespace).map(Some),
                // A file hides the directories below it.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Moves to the directory at `path`: up as far as needed, then down.
    fn move_to(&mut self, path: &[u8]) -> io::Result<()> {
        if self.parent == path {
            return Ok(());
        }
        let is_on_path = |top: &[u8]| top == path || is_beneath(top, path);
        while let Some((end, _)) = self.merged.last()
            && !self.parent.get(..*end).is_some_and(is_on_path)
        {
            self.merged.pop();
        }
        self.parent = path.to_vec();
        let from = self.merged.last().map_or(0, |(end, _)| *end);
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let ends = slashes.map(|(end, _)| end).chain([path.len()]);
        for end in ends.filter(|end| *end > from) {
            let Some(path) = path.get(..end) else {
                break;
            };
            let above = self.merged.last().map_or(&self.lower, |(_, lower)| lower);
            let lower = match (self.hides)(path) {
                true => Vec::new(),
                false => merge(above, path, self.namespace.opaque_name())?,
            };
            self.merged.push((end, lower));
        }
        Ok(())
    }
}

/// Returns those of the lower directories whose directory at `path` is visible.
fn merge<'a>(
    above: &[&'a OwnedFd],
    path: &[u8],
    opaque: &'static str,
) -> io::Result<Vec<&'a OwnedFd>> {
    let mut merged = Vec::new();
    for lower in above {
        match open_beneath(lower, path) {
            Ok(fd) => {
                merged.push(*lower);
                if get(&fd, opaque.as_bytes())?.as_deref() == Some(OPAQUE_VALUE) {
                    break;
                }
            }
            Err(Errno::NOTDIR | Errno::LOOP) => break,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(merged)
}

/// Returns the metadata of a directory, without the attributes of overlayfs.
fn metadata(fd: &OwnedFd, namespace: XattrNamespace) -> io::Result<Metadata> {
    let stat = fs::fstat(fd)?;
    let mut xattrs = Vec::new();
    for name in list(fd)? {
        if !namespace.is_overlay(&name)
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
