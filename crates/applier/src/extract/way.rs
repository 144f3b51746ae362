// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The way to a directory, inside the root.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use resnap_layer::way::{self, End, Found, join, names, split};
use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Extraction, Place, Style, inode};
use crate::error::{Doing as _, Fault};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Whether `path` is in the directory `top`.
pub(crate) fn below(top: &[u8], path: &[u8]) -> bool {
    match path.strip_prefix(top) {
        Some(rest) => (top.is_empty() && !rest.is_empty()) || rest.starts_with(b"/"),
        None => false,
    }
}

/// Opens the directory at `path` if no symbolic link is on the way.
pub(crate) fn open_below(root: &OwnedFd, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    if path.is_empty() {
        return fs::openat(root, ".", DIRECTORY, Mode::empty());
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match fs::openat2(root, path, DIRECTORY, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // Before Linux 5.6, or forbidden by a filter of system calls.
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

impl Extraction {
    /// Opens a directory by its own path, as the maps have it.
    pub(super) fn open(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        open_below(&self.root, path)
    }

    /// The directory at `path`, which is made if it is not there, with all its parents. Symbolic
    /// links are followed inside the root.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Place, Fault> {
        if let Some((recent, place)) = &self.recent
            && recent == path
        {
            return Ok(place.clone());
        }
        let place = match self.open_at_once(path)? {
            Some(place) => place,
            None => {
                let end = self.go(path)?;
                self.make_missing(end)?
            }
        };
        self.recent = Some((path.to_vec(), place.clone()));
        Ok(place)
    }

    /// The directory at `path`, if it is there.
    pub(super) fn find(&mut self, path: &[u8]) -> Result<Option<Place>, Fault> {
        if let Some((recent, place)) = &self.recent
            && recent == path
        {
            return Ok(Some(place.clone()));
        }
        if let Some(place) = self.open_at_once(path)? {
            return Ok(Some(place));
        }
        let End {
            path,
            missing,
            directory,
        } = self.go(path)?;
        let place = Place {
            path,
            fd: directory,
        };
        Ok((missing == 0).then_some(place))
    }

    /// Mostly no link is on the way, and all is there.
    fn open_at_once(&mut self, path: &[u8]) -> Result<Option<Place>, Fault> {
        self.ways.take(names(path))?;
        let Ok(fd) = self.open(path) else {
            return Ok(None);
        };
        self.note(path)?;
        Ok(Some(Place {
            path: path.to_vec(),
            fd: Arc::new(fd),
        }))
    }

    fn go(&mut self, path: &[u8]) -> Result<End<Arc<OwnedFd>>, Fault> {
        let mut ways = self.ways;
        let end = way::go(self, path, &mut ways);
        self.ways = ways;
        end
    }

    /// Makes the directories at the end of a way that are not there.
    fn make_missing(&mut self, end: End<Arc<OwnedFd>>) -> Result<Place, Fault> {
        let names = end.path.rsplit(|byte| *byte == b'/');
        let names: Vec<_> = names.take(end.missing).collect();
        let mut path = &end.path[..];
        for _ in &names {
            path = split(path).0;
        }
        let (mut path, mut fd) = (path.to_vec(), end.directory);
        for name in names.into_iter().rev() {
            path = join(&path, name);
            match fs::mkdirat(&*fd, name, Mode::RWXU) {
                Ok(()) => self.made(&path)?,
                Err(Errno::EXIST) => self.make_way(&fd, name, &path)?,
                made => made.doing("make a parent")?,
            }
            let made = fs::openat(&*fd, name, DIRECTORY, Mode::empty());
            fd = Arc::new(made.doing("open a parent")?);
        }
        Ok(Place { path, fd })
    }

    /// Makes a directory in the place of a whiteout, or of what a lower layer has there.
    fn make_way(&mut self, fd: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), Fault> {
        self.clear(fd, name, path)?;
        fs::mkdirat(fd, name, Mode::RWXU).doing("make a parent")?;
        self.made(path)
    }

    /// Whether what is there gives way to a directory: what this layer has does not.
    fn is_lower(&self, fd: &OwnedFd, name: &[u8], path: &[u8]) -> Result<bool, Fault> {
        Ok(match self.style {
            Style::Upper => inode::kind(fd, name)?.is_none(),
            Style::Base => false,
            Style::Copy => !self.is_ours(path),
        })
    }
}

impl way::Tree for Extraction {
    type Directory = Arc<OwnedFd>;
    type Error = Fault;

    fn root(&mut self) -> Result<Arc<OwnedFd>, Fault> {
        Ok(Arc::new(self.open(&[]).doing("open the root")?))
    }

    fn look(
        &mut self,
        directory: &Arc<OwnedFd>,
        path: &[u8],
        name: &[u8],
    ) -> Result<Found<Arc<OwnedFd>>, Fault> {
        match fs::openat(&**directory, name, DIRECTORY, Mode::empty()) {
            Ok(opened) => {
                self.note(path)?;
                return Ok(Found::Directory(Arc::new(opened)));
            }
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(error).doing("open a parent"),
        }
        match fs::readlinkat(&**directory, name, Vec::new()) {
            Ok(target) => Ok(Found::Link(target.into_bytes())),
            Err(Errno::INVAL) if self.is_lower(directory, name, path)? => Ok(Found::Nothing),
            Err(Errno::INVAL) => Err(Fault::NotADirectory(path.to_vec())),
            Err(error) => Err(error).doing("read a link on the way"),
        }
    }

    /// Nobody but this process moves directories here.
    fn parent(&mut self, directory: &Arc<OwnedFd>) -> Result<Arc<OwnedFd>, Fault> {
        let parent = fs::openat(&**directory, "..", DIRECTORY, Mode::empty());
        Ok(Arc::new(parent.doing("open a parent")?))
    }
}
