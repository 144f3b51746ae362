// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The way to a directory, inside the root.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use resnap_layer::way::{Step, Way, split};
use rustix::fs::{self, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Extraction, Place, Style, inode};
use crate::error::{Doing as _, Fault};

/// Linux takes no longer paths.
const PATH_MAX: usize = 4096;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

pub(super) fn join(parents: &[u8], name: &[u8]) -> Vec<u8> {
    match parents.is_empty() {
        true => name.to_vec(),
        false => [parents, b"/", name].concat(),
    }
}

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
        let place = match self.walk(path, true)? {
            Some(place) => place,
            None => return Err(Fault::NotADirectory(path.to_vec())),
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
        self.walk(path, false)
    }

    fn walk(&mut self, path: &[u8], make: bool) -> Result<Option<Place>, Fault> {
        // Mostly no link is on the way, and all is there.
        if let Ok(fd) = self.open(path) {
            let path = path.to_vec();
            self.note(&path)?;
            let fd = Arc::new(fd);
            return Ok(Some(Place { path, fd }));
        }
        let mut at = Vec::new();
        let mut fd = self.open(&at).doing("open the root")?;
        let mut way = Way::to(path);
        while let Some(step) = way.step().map_err(|_| Fault::Links)? {
            let Step::Name(name) = step else {
                at.truncate(split(&at).0.len());
                fd = self.open(&at).doing("open a parent")?;
                continue;
            };
            let next = join(&at, &name);
            if next.len() >= PATH_MAX {
                return Err(Fault::Links);
            }
            let error = match fs::openat(&fd, &name[..], DIRECTORY, Mode::empty()) {
                Ok(opened) => {
                    (at, fd) = (next, opened);
                    self.note(&at)?;
                    continue;
                }
                Err(error) => error,
            };
            let target = match error {
                Errno::NOENT if !make => return Ok(None),
                Errno::NOENT => None,
                Errno::NOTDIR | Errno::LOOP => match fs::readlinkat(&fd, &name[..], Vec::new()) {
                    Ok(target) => Some(target.into_bytes()),
                    Err(Errno::INVAL) if !make => return Ok(None),
                    Err(Errno::INVAL) => {
                        self.make_way(&fd, &name, &next)?;
                        None
                    }
                    Err(error) => return Err(error).doing("read a link on the way"),
                },
                error => return Err(error).doing("open a parent"),
            };
            if let Some(target) = target {
                if way.follow(&target).map_err(|_| Fault::Links)? {
                    at.clear();
                    fd = self.open(&at).doing("open the root")?;
                }
                continue;
            }
            if error == Errno::NOENT {
                fs::mkdirat(&fd, &name[..], Mode::RWXU).doing("make a parent")?;
                self.made(&next)?;
            }
            (at, fd) = (next, self.open(&join(&at, &name)).doing("open a parent")?);
        }
        let fd = Arc::new(fd);
        Ok(Some(Place { path: at, fd }))
    }

    /// Makes a directory in the place of a whiteout, or of what a lower layer has there; what this
    /// layer has does not give way.
    fn make_way(&mut self, fd: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), Fault> {
        let is_lower = match self.style {
            Style::Upper => inode::kind(fd, name)?.is_none(),
            Style::Base => false,
            Style::Copy => !self.is_ours(path),
        };
        if !is_lower {
            return Err(Fault::NotADirectory(path.to_vec()));
        }
        self.clear(fd, name, path)?;
        fs::mkdirat(fd, name, Mode::RWXU).doing("make a parent")?;
        self.made(path)
    }
}
