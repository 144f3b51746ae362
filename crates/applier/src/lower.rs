// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What the lower directories of an overlay say of a directory.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use resnap_erofs::Metadata;
use resnap_layer::Xattr;
use resnap_layer::way::split;
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;

use crate::extract::{OPAQUE_VALUE, below, get, is_overlay, list, mtime, opaque_name, open_below};

/// The lower directories, the topmost first.
#[derive(Debug, Default)]
pub(crate) struct Lower(Vec<OwnedFd>);

impl Lower {
    pub(crate) fn open(paths: &[PathBuf]) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |path| Ok(fs::open(path, flags, Mode::empty())?);
        paths.iter().map(open).collect::<io::Result<_>>().map(Self)
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// A way down. `user` says whether this is a user namespace, where other attributes hide what is
    /// below a directory; `hides` says whether the one above all of these does so.
    pub(crate) fn descend<H: Fn(&[u8]) -> bool>(&self, user: bool, hides: H) -> Descent<'_, H> {
        Descent {
            lower: self.0.iter().collect(),
            user,
            hides,
            at: Vec::new(),
            way: Vec::new(),
        }
    }
}

/// A way down the lower directories. If paths are asked for in the order of their bytes, so that all
/// in a directory come one after another, each directory on the way is looked at once.
pub(crate) struct Descent<'a, H> {
    lower: Vec<&'a OwnedFd>,
    user: bool,
    hides: H,
    /// The parent of what was asked for last.
    at: Vec<u8>,
    /// The directories from below the root to there: where their paths end, and the lower directories
    /// that make them up. Not descriptors of them, which would be too many.
    way: Vec<(usize, Vec<&'a OwnedFd>)>,
}

impl<H: Fn(&[u8]) -> bool> Descent<'_, H> {
    /// The metadata of the directory at `path` as overlayfs shows it; `None` if there is none.
    pub(crate) fn directory(&mut self, path: &[u8]) -> io::Result<Option<Metadata>> {
        self.go(split(path).0)?;
        let lower = self.way.last().map_or(&self.lower, |(_, lower)| lower);
        for lower in lower {
            match open_below(lower, path) {
                Ok(fd) => return metadata(&fd, self.user).map(Some),
                // Something else hides what is below.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(None)
    }

    /// Goes up, then down to the directory at `path`.
    fn go(&mut self, path: &[u8]) -> io::Result<()> {
        if self.at == path {
            return Ok(());
        }
        let is_on_way = |top: &[u8]| top == path || below(top, path);
        while let Some((end, _)) = self.way.last()
            && !self.at.get(..*end).is_some_and(is_on_way)
        {
            self.way.pop();
        }
        self.at = path.to_vec();
        let from = self.way.last().map_or(0, |(end, _)| *end);
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        let ends = slashes.map(|(end, _)| end).chain([path.len()]);
        for end in ends.filter(|end| *end > from) {
            let Some(path) = path.get(..end) else {
                break;
            };
            let above = self.way.last().map_or(&self.lower, |(_, lower)| lower);
            let lower = match (self.hides)(path) {
                true => Vec::new(),
                false => merged(above, path, opaque_name(self.user))?,
            };
            self.way.push((end, lower));
        }
        Ok(())
    }
}

/// Those of the directories `above` whose directory at `path` shows.
fn merged<'a>(
    above: &[&'a OwnedFd],
    path: &[u8],
    opaque: &'static str,
) -> io::Result<Vec<&'a OwnedFd>> {
    let mut merged = Vec::new();
    for lower in above {
        match open_below(lower, path) {
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

fn metadata(fd: &OwnedFd, user: bool) -> io::Result<Metadata> {
    let stat = fs::fstat(fd)?;
    let mut xattrs = Vec::new();
    for name in list(fd)? {
        if !is_overlay(&name, user)
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
