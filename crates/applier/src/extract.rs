// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A layer's entries as files below a directory.

mod copy;
mod inode;
mod records;
mod way;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use resnap_erofs::Metadata;
use resnap_layer::way::{Budget, join, split};
use resnap_layer::{Entry, EntryKind, Layer, Time};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

pub(crate) use self::inode::{OPAQUE_VALUE, get, is_overlay, list, mtime, opaque_name};
use self::records::{Directory, Records};
pub(crate) use self::way::{below, open_below};
use crate::error::{Doing as _, Error, Fault, Through};
use crate::guard::Guard;
use crate::lower::Lower;
use crate::remove::remove;

/// What stands for what a layer deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// The upper directory of an overlay: devices 0:0, and attributes of directories.
    Upper,
    /// The same without any layer below: nothing.
    Base,
    /// A full copy of the layers below, in which it is removed.
    Copy,
}

/// A directory that layers are written to.
pub(crate) struct Extraction {
    root: OwnedFd,
    style: Style,
    /// Whether this is a user namespace, which has no devices and no `trusted.*`.
    user: bool,
    guard: Guard,
    records: Records,
    /// Names that may be looked up on ways.
    ways: Budget,
    /// The directory that was asked for last, the path it was asked by, and its own: the next entry
    /// is mostly in it, too.
    recent: Option<(Vec<u8>, Place)>,
}

/// A directory on disk.
#[derive(Debug, Clone)]
struct Place {
    path: Vec<u8>,
    fd: Arc<OwnedFd>,
}

impl Extraction {
    /// Extracts to `root`, which must be empty unless it is a copy of the layers below.
    pub(crate) fn new(
        root: &Path,
        style: Style,
        user: bool,
        guard: impl Into<Guard>,
    ) -> Result<Self, Error> {
        let guard = guard.into();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = fs::open(root, flags, Mode::empty()).when("open the directory to write to")?;
        let mut this = Self {
            root,
            style,
            user,
            records: Records::new(guard.clone()),
            guard,
            ways: Budget::default(),
            recent: None,
        };
        this.note(&[]).map_err(|fault| Error::Entry {
            path: Vec::new(),
            fault,
        })?;
        Ok(this)
    }

    /// Writes all that the layer has, and what it says of its directories.
    pub(crate) fn add<R: Read>(&mut self, layer: &mut Layer<R>) -> Result<(), Error> {
        while let Some(entry) = layer.next()? {
            self.guard.entry()?;
            self.ways.entry();
            let file = match self.entry(&entry) {
                Ok(file) => file,
                Err(fault) => {
                    let path = entry.path;
                    return Err(Error::Entry { path, fault });
                }
            };
            if let Some(file) = file {
                self.data(&entry, file, layer)?;
            }
        }
        self.recent = None;
        self.remove_hollow()?;
        // From below: a directory may be closed to all but root.
        for (path, directory) in self.records.directories().rev() {
            let metadata = match (&directory.stated, directory.kept) {
                (Some(stated), _) => &stated.metadata(),
                (None, Some(_)) => continue,
                (None, None) if self.style == Style::Copy => &UNSTATED,
                (None, None) => continue,
            };
            self.late(path, |fd| inode::dress(fd, metadata, self.user))?;
        }
        for (path, directory) in self.records.directories().rev() {
            if let (None, Some(time)) = (&directory.stated, directory.kept) {
                self.late(path, |fd| inode::touch(fd, time))?;
            }
        }
        Ok(())
    }

    /// Gives directories that the layer does not state the metadata they have below.
    pub(crate) fn finish(self, lower: &Lower) -> Result<(), Error> {
        if self.style == Style::Copy {
            return Ok(());
        }
        let mut descent = lower.descend(self.user, |path| self.records.is_opaque(path));
        for (path, directory) in self.records.directories() {
            if directory.stated.is_some() {
                continue;
            }
            self.guard.look(lower.count())?;
            self.late(path, |fd| {
                let found = match self.records.is_deleted(path) {
                    true => None,
                    false => descent
                        .directory(path)
                        .doing("look it up in the layers below")?,
                };
                let has_default = found
                    .as_ref()
                    .is_some_and(|found| inode::has_default(&found.xattrs));
                if has_default && directory.solid && !path.is_empty() {
                    return Err(Fault::Inherits);
                }
                inode::dress(fd, found.as_ref().unwrap_or(&UNSTATED), self.user)
            })?;
        }
        Ok(())
    }

    /// Removes directories that are deleted and were made for the whiteouts in them, which are of
    /// what is gone anyway.
    fn remove_hollow(&mut self) -> Result<(), Error> {
        for path in self.records.hollow() {
            let (parents, name) = split(&path);
            self.late(parents, |parent| {
                self.remove(parent, name)?;
                match self.style {
                    Style::Upper => inode::whiteout(parent, name, self.user),
                    Style::Base | Style::Copy => Ok(()),
                }
            })?;
            self.records.forget(&path);
        }
        Ok(())
    }

    /// Does something to a directory after all entries, unless nobody wants it any more.
    fn late(
        &self,
        path: &[u8],
        set: impl FnOnce(&OwnedFd) -> Result<(), Fault>,
    ) -> Result<(), Error> {
        self.guard.step()?;
        let fd = self.open(path).doing("open it again");
        fd.and_then(|fd| set(&fd)).map_err(|fault| Error::Entry {
            path: path.to_vec(),
            fault,
        })
    }

    /// Writes an entry; a file is yet to be filled.
    fn entry(&mut self, entry: &Entry) -> Result<Option<File>, Fault> {
        if entry.kind == EntryKind::Opaque {
            let place = self.directory(&entry.path)?;
            return self.hide(&place.path, &place.fd).map(|()| None);
        }
        if entry.path.is_empty() {
            self.records.state(&[], self.taken(entry))?;
            return Ok(None);
        }
        let (parents, name) = split(&entry.path);
        let parent = self.directory(parents)?;
        let path = join(&parent.path, name);
        let inherits = matches!(
            entry.kind,
            EntryKind::File(_)
                | EntryKind::Character { .. }
                | EntryKind::Block { .. }
                | EntryKind::Fifo
        );
        if inherits && self.records.has_default(&parent.path) {
            return Err(Fault::Inherits);
        }
        match &entry.kind {
            EntryKind::Directory => self.make_directory(&parent, name, path, entry)?,
            EntryKind::Whiteout => self.whiteout(&parent, name, &path)?,
            EntryKind::Hardlink(target) => self.link(&parent, path, target, entry)?,
            EntryKind::File(_) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let flags = flags | OFlags::CLOEXEC;
                let make = || fs::openat(&*parent.fd, name, flags, Mode::RUSR | Mode::WUSR);
                let file = self.replacing(&parent, name, &path, make)?;
                self.wrote(path)?;
                return Ok(Some(File::from(file)));
            }
            kind => {
                if self.user
                    && matches!(kind, EntryKind::Character { .. } | EntryKind::Block { .. })
                {
                    return Ok(None);
                }
                let make = || inode::make(&parent.fd, name, kind);
                self.replacing(&parent, name, &path, make)?;
                let is_whiteout = matches!(kind, EntryKind::Character { major: 0, minor: 0 });
                self.dress(&parent, name, entry, is_whiteout)?;
                self.wrote(path)?;
            }
        }
        Ok(None)
    }

    /// Fills a file.
    fn data<R: Read>(
        &mut self,
        entry: &Entry,
        file: File,
        layer: &mut Layer<R>,
    ) -> Result<(), Error> {
        let EntryKind::File(what) = &entry.kind else {
            return Ok(());
        };
        let failed = |fault| Error::Entry {
            path: entry.path.clone(),
            fault,
        };
        let mut end = 0;
        while let Some(piece) = layer.data()? {
            let written = file.write_all_at(piece.bytes, piece.offset);
            written.doing("write its data").map_err(failed)?;
            end = piece.offset + piece.bytes.len() as u64;
        }
        if end < what.size {
            file.set_len(what.size)
                .doing("make room for its holes")
                .map_err(failed)?;
        }
        inode::dress(&file, &metadata(entry), self.user).map_err(failed)
    }

    /// Tries to make something where something else may be.
    fn replacing<T>(
        &mut self,
        parent: &Place,
        name: &[u8],
        path: &[u8],
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, Fault> {
        match make() {
            Err(Errno::EXIST) => {
                self.clear(&parent.fd, name, path)?;
                make().doing("make it")
            }
            made => made.doing("make it"),
        }
    }

    /// Removes what is at a name, with all that is in it, unless nobody wants it any more.
    fn remove(&self, parent: &OwnedFd, name: &[u8]) -> Result<(), Fault> {
        let guard = &self.guard;
        let goes_on = || {
            guard
                .step()
                .map_err(|denied| Through::Denied(denied).into())
        };
        remove(parent, name, &goes_on).doing("remove what was there")
    }

    /// Removes what is at a name, and what is noted of it.
    fn clear(&mut self, parent: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), Fault> {
        let kind = inode::kind(parent, name)?;
        if self.style == Style::Upper && kind.is_none() {
            self.records.delete(path)?;
        }
        let record = self.records.get(path);
        let is_lower = record.is_none_or(|directory| directory.kept.is_some());
        if self.style == Style::Copy && kind == Some(FileType::Directory) && is_lower {
            self.records.replace(path)?;
        }
        self.remove(parent, name)?;
        self.recent = None;
        self.records.forget(path);
        Ok(())
    }

    fn make_directory(
        &mut self,
        parent: &Place,
        name: &[u8],
        path: Vec<u8>,
        entry: &Entry,
    ) -> Result<(), Fault> {
        match fs::mkdirat(&*parent.fd, name, Mode::RWXU) {
            Ok(()) => self.made(&path)?,
            Err(Errno::EXIST) => match inode::kind(&parent.fd, name)? {
                Some(FileType::Directory) => self.note(&path)?,
                _ => {
                    self.clear(&parent.fd, name, &path)?;
                    fs::mkdirat(&*parent.fd, name, Mode::RWXU).doing("make it")?;
                    self.made(&path)?;
                }
            },
            made => made.doing("make it")?,
        }
        self.records.state(&path, self.taken(entry))?;
        self.records.fill(&path);
        if inode::has_default(&entry.xattrs)
            && let Some(directory) = self.records.get_mut(&path)
        {
            directory.has_default = true;
        }
        self.wrote(path)
    }

    /// Deletes what lower layers have at a path. What this layer has there stays, unless it is the
    /// lowest.
    fn whiteout(&mut self, parent: &Place, name: &[u8], path: &[u8]) -> Result<(), Fault> {
        let there = fs::statat(&*parent.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let there = match there {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error).doing("look at it"),
        };
        match (self.style, there) {
            (Style::Upper, None) => return inode::whiteout(&parent.fd, name, self.user),
            (Style::Base, None) => return Ok(()),
            (Style::Base, Some(_)) => return self.clear(&parent.fd, name, path),
            (Style::Upper | Style::Copy, _) => self.records.delete(path)?,
        }
        if self.style == Style::Copy && there.is_some() && !self.is_ours(path) {
            return self.clear(&parent.fd, name, path);
        }
        if there == Some(FileType::Directory) {
            let fd = self.open(path).doing("open it")?;
            self.note(path)?;
            self.hide(path, &fd)?;
            if let Some(directory) = self.records.get_mut(path) {
                directory.kept = None;
            }
        }
        Ok(())
    }

    /// What lower layers have in a directory is gone.
    fn hide(&mut self, path: &[u8], fd: &OwnedFd) -> Result<(), Fault> {
        if self.style == Style::Base || self.records.is_opaque(path) {
            return Ok(());
        }
        if self.style == Style::Copy {
            // An overlay shows the roots of all layers, marked or not.
            return if path.is_empty() {
                Ok(())
            } else {
                self.keep_ours(path)
            };
        }
        inode::set(fd, opaque_name(self.user), OPAQUE_VALUE)?;
        if let Some(directory) = self.records.get_mut(path) {
            directory.opaque = true;
        }
        Ok(())
    }

    /// Another name of what is at `target`, which gets the metadata of this entry.
    fn link(
        &mut self,
        parent: &Place,
        path: Vec<u8>,
        target: &[u8],
        entry: &Entry,
    ) -> Result<(), Fault> {
        let name = split(&path).1;
        let missing = || Fault::NoTarget(target.to_vec());
        if target.is_empty() {
            return Err(Fault::DirectoryTarget(target.to_vec()));
        }
        let (parents, to) = split(target);
        let place = self.find(parents)?.ok_or_else(missing)?;
        let is_whiteout = match fs::statat(&*place.fd, to, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Err(Fault::DirectoryTarget(target.to_vec()));
            }
            Ok(stat) if self.style == Style::Upper && inode::is_whiteout(&stat) => {
                return Err(missing());
            }
            Ok(stat) => inode::is_whiteout(&stat),
            Err(Errno::NOENT) => return Err(missing()),
            Err(error) => return Err(error).doing("look at its hard link's target"),
        };
        if join(&place.path, to) == path {
            // It is a name of itself.
            return Ok(());
        }
        let make = || fs::linkat(&*place.fd, to, &*parent.fd, name, AtFlags::empty());
        match self.replacing(parent, name, &path, make) {
            Err(Fault::System(_, error)) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {
                Err(missing())
            }
            made => made,
        }?;
        self.dress(parent, name, entry, is_whiteout)?;
        self.wrote(path)
    }

    /// Sets all of what is at a name, and marks its directory if overlayfs takes it for a whiteout.
    fn dress(
        &self,
        parent: &Place,
        name: &[u8],
        entry: &Entry,
        is_whiteout: bool,
    ) -> Result<(), Fault> {
        inode::dress_at(&parent.fd, name, entry, self.user)?;
        if self.style != Style::Copy && is_whiteout {
            inode::mark(&parent.fd, self.user)?;
        }
        Ok(())
    }

    /// Notes a directory that is there, with its time if it was there before this layer.
    fn note(&mut self, path: &[u8]) -> Result<(), Fault> {
        if self.records.get(path).is_some() {
            return Ok(());
        }
        let (mut kept, mut has_default) = (None, false);
        if self.style == Style::Copy {
            let fd = self.open(path).doing("open it")?;
            kept = Some(inode::time(&fd)?);
            let list = get(&fd, inode::DEFAULT_LIST).doing("look at its extended attributes")?;
            has_default = list.is_some() && !path.is_empty();
        }
        let directory = Directory {
            kept,
            has_default,
            solid: self.style == Style::Copy,
            ..Directory::default()
        };
        self.records.add(path.to_vec(), directory)
    }

    /// Notes a new directory. If what was below is deleted, that stays so.
    fn made(&mut self, path: &[u8]) -> Result<(), Fault> {
        if self.records.has_default(split(path).0) {
            return Err(Fault::Inherits);
        }
        if self.records.is_replaced(path) {
            return Err(Fault::Replaced);
        }
        let directory = Directory {
            opaque: self.style == Style::Copy,
            ..Directory::default()
        };
        self.records.add(path.to_vec(), directory)?;
        if self.style == Style::Copy {
            self.records.write(path.to_vec())?;
        }
        if self.records.is_deleted(path) {
            let fd = self.open(path).doing("open it")?;
            self.hide(path, &fd)?;
        }
        Ok(())
    }

    /// The metadata of an entry that are set, as they are kept.
    fn taken(&self, entry: &Entry) -> Metadata {
        let mut metadata = metadata(entry);
        metadata
            .xattrs
            .retain(|xattr| inode::is_taken(xattr, self.user));
        metadata
    }

    fn wrote(&mut self, path: Vec<u8>) -> Result<(), Fault> {
        self.records.fill(split(&path).0);
        match self.style {
            Style::Copy => self.records.write(path),
            Style::Upper | Style::Base => Ok(()),
        }
    }
}

/// What a directory gets that no layer states, but for its time what containerd gives it.
static UNSTATED: Metadata = Metadata {
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: Time {
        seconds: 0,
        nanoseconds: 0,
    },
    xattrs: Vec::new(),
};

fn metadata(entry: &Entry) -> Metadata {
    Metadata {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: entry.xattrs.clone(),
    }
}
