// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Lookups of the directories of entries. Symbolic links are followed inside the root.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use resnap_layer::path::{depth, join, split};
use resnap_layer::resolve::{self, Found, Resolved};
use rustix::fs::{self, Mode};
use rustix::io::Errno;

use super::destination::{Destination, OpenDir};
use crate::beneath::DIRECTORY;
use crate::error::{Fault, IoContext as _};
use crate::inode;
use crate::whiteout::WhiteoutMode;

/// Returns the directory at `path`. It and its parents are created if they do not exist.
pub(super) fn directory(to: &mut Destination, path: &[u8]) -> Result<OpenDir, Fault> {
    if let Some((recent, directory)) = &to.recent
        && recent == path
    {
        return Ok(directory.clone());
    }
    let directory = match open_directly(to, path)? {
        Some(directory) => directory,
        None => {
            let resolved = resolve(to, path)?;
            create_missing(to, resolved)?
        }
    };
    to.recent = Some((path.to_vec(), directory.clone()));
    Ok(directory)
}

/// Returns the directory at `path` if it exists.
pub(super) fn existing(to: &mut Destination, path: &[u8]) -> Result<Option<OpenDir>, Fault> {
    if let Some((recent, directory)) = &to.recent
        && recent == path
    {
        return Ok(Some(directory.clone()));
    }
    if let Some(directory) = open_directly(to, path)? {
        return Ok(Some(directory));
    }
    let Resolved {
        path,
        missing,
        directory,
    } = resolve(to, path)?;
    let directory = OpenDir {
        path,
        fd: directory,
    };
    Ok((missing == 0).then_some(directory))
}

/// Opens the directory at `path` in one call. This works for most paths, which exist and have no links.
fn open_directly(to: &mut Destination, path: &[u8]) -> Result<Option<OpenDir>, Fault> {
    to.lookups.take(depth(path))?;
    let Ok(fd) = to.open(path) else {
        return Ok(None);
    };
    to.track_existing(path)?;
    Ok(Some(OpenDir {
        path: path.to_vec(),
        fd: Arc::new(fd),
    }))
}

fn resolve(to: &mut Destination, path: &[u8]) -> Result<Resolved<Arc<OwnedFd>>, Fault> {
    let mut lookups = to.lookups;
    let resolved = resolve::resolve(to, path, &mut lookups);
    to.lookups = lookups;
    resolved
}

/// Creates the missing directories at the end of a path.
fn create_missing(
    to: &mut Destination,
    resolved: Resolved<Arc<OwnedFd>>,
) -> Result<OpenDir, Fault> {
    let names = resolved.path.rsplit(|byte| *byte == b'/');
    let names: Vec<_> = names.take(resolved.missing).collect();
    let mut path = &resolved.path[..];
    for _ in &names {
        path = split(path).0;
    }
    let (mut path, mut fd) = (path.to_vec(), resolved.directory);
    for name in names.into_iter().rev() {
        path = join(&path, name);
        match fs::mkdirat(&*fd, name, Mode::RWXU) {
            Ok(()) => to.track_new(&path)?,
            Err(Errno::EXIST) => {
                // A whiteout, or a file of a lower layer.
                to.clear(&fd, name, &path)?;
                fs::mkdirat(&*fd, name, Mode::RWXU).entry_context("make a parent")?;
                to.track_new(&path)?;
            }
            made => made.entry_context("make a parent")?,
        }
        let made = fs::openat(&*fd, name, DIRECTORY, Mode::empty());
        fd = Arc::new(made.entry_context("open a parent")?);
    }
    Ok(OpenDir { path, fd })
}

/// Returns whether a directory may replace the file at a name. Files of this layer are not replaced.
fn is_replaceable(to: &Destination, fd: &OwnedFd, name: &[u8], path: &[u8]) -> Result<bool, Fault> {
    Ok(match to.mode {
        WhiteoutMode::Upper => inode::kind(fd, name)?.is_none(),
        WhiteoutMode::Base => false,
        WhiteoutMode::Copy => !to.is_own(path),
    })
}

impl resolve::Tree for Destination {
    type Directory = Arc<OwnedFd>;
    type Error = Fault;

    fn root(&mut self) -> Result<Arc<OwnedFd>, Fault> {
        Ok(Arc::new(self.open(&[]).entry_context("open the root")?))
    }

    fn look_up(
        &mut self,
        directory: &Arc<OwnedFd>,
        path: &[u8],
        name: &[u8],
    ) -> Result<Found<Arc<OwnedFd>>, Fault> {
        match fs::openat(&**directory, name, DIRECTORY, Mode::empty()) {
            Ok(opened) => {
                self.track_existing(path)?;
                return Ok(Found::Directory(Arc::new(opened)));
            }
            Err(Errno::NOENT) => return Ok(Found::Nothing),
            Err(Errno::NOTDIR | Errno::LOOP) => {}
            Err(error) => return Err(error).entry_context("open a parent"),
        }
        match fs::readlinkat(&**directory, name, Vec::new()) {
            Ok(target) => Ok(Found::Link(target.into_bytes())),
            Err(Errno::INVAL) if is_replaceable(self, directory, name, path)? => Ok(Found::Nothing),
            Err(Errno::INVAL) => Err(Fault::NotADirectory(path.to_vec())),
            Err(error) => Err(error).entry_context("read a link in its path"),
        }
    }

    /// `..` is safe: no other process moves directories here.
    fn parent(&mut self, directory: &Arc<OwnedFd>) -> Result<Arc<OwnedFd>, Fault> {
        let parent = fs::openat(&**directory, "..", DIRECTORY, Mode::empty());
        Ok(Arc::new(parent.entry_context("open a parent")?))
    }
}
