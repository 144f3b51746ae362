// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A layer's entries as files below a directory.

mod inode;
mod way;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use resnap_erofs::Metadata;
use resnap_layer::way::split;
use resnap_layer::{Entry, Kind, Layer, Time};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

pub(crate) use self::inode::{OPAQUE_VALUE, opaque_name};
pub(crate) use self::inode::{get, is_overlay, list, mtime};
pub(crate) use self::way::open_below;
use self::way::{below, join};
use crate::error::{Doing as _, Error, Fault};
use crate::lower::Lower;
use crate::remove::remove;

/// Bytes of paths that are kept in memory, as [`resnap_erofs::Limits`] has it.
const MAX_PATHS: u64 = 512 << 20;

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
    /// All directories that this layer made, writes to or states.
    directories: BTreeMap<Vec<u8>, Directory>,
    /// All that this layer wrote, for [`Style::Copy`].
    written: BTreeSet<Vec<u8>>,
    /// Bytes of paths in both.
    paths: u64,
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

/// What will become of a directory.
#[derive(Debug, Default)]
struct Directory {
    /// What the layer says.
    stated: Option<Metadata>,
    /// What is below is gone, it itself included.
    fresh: bool,
    /// What is below in it is gone.
    opaque: bool,
    /// Its time before this layer, where it is in place.
    kept: Option<Time>,
}

impl Extraction {
    /// Extracts to `root`, which must be empty unless it is a copy of the layers below.
    pub(crate) fn new(root: &Path, style: Style, user: bool) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = fs::open(root, flags, Mode::empty()).when("open the directory to write to")?;
        let mut this = Self {
            root,
            style,
            user,
            directories: BTreeMap::new(),
            written: BTreeSet::new(),
            paths: 0,
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
        // From below: a directory may be closed to all but root.
        for (path, directory) in self.directories.iter().rev() {
            let metadata = match (&directory.stated, directory.kept) {
                (Some(metadata), _) => metadata,
                (None, Some(_)) => continue,
                (None, None) if self.style == Style::Copy || directory.fresh => &UNSTATED,
                (None, None) => continue,
            };
            let set = self.open(path).doing("open it again");
            let set = set.and_then(|fd| inode::dress(&fd, metadata, self.user));
            set.map_err(|fault| Error::Entry {
                path: path.clone(),
                fault,
            })?;
        }
        for (path, directory) in self.directories.iter().rev() {
            if let (None, Some(time)) = (&directory.stated, directory.kept) {
                let set = self.open(path).doing("open it again");
                let set = set.and_then(|fd| inode::touch(&fd, time));
                set.map_err(|fault| Error::Entry {
                    path: path.clone(),
                    fault,
                })?;
            }
        }
        Ok(())
    }

    /// Gives directories that the layer does not state the metadata they have below.
    pub(crate) fn finish(self, lower: &Lower) -> Result<(), Error> {
        if self.style == Style::Copy {
            return Ok(());
        }
        let mut hidden: Option<&[u8]> = None;
        for (path, directory) in &self.directories {
            // Parents come before what is in them.
            let is_hidden = hidden.is_some_and(|top| below(top, path));
            let hides = directory.fresh || (directory.opaque && !path.is_empty());
            if !is_hidden && hides {
                hidden = Some(path);
            }
            if directory.stated.is_some() || directory.fresh {
                continue;
            }
            let entry = |fault| Error::Entry {
                path: path.clone(),
                fault,
            };
            let found = match is_hidden {
                true => None,
                false => lower
                    .directory(path)
                    .doing("look it up in the layers below")
                    .map_err(entry)?,
            };
            let fd = self.open(path).doing("open it again").map_err(entry)?;
            let metadata = found.as_ref().unwrap_or(&UNSTATED);
            inode::dress(&fd, metadata, self.user).map_err(entry)?;
        }
        Ok(())
    }

    /// Writes an entry; a file is yet to be filled.
    fn entry(&mut self, entry: &Entry) -> Result<Option<File>, Fault> {
        if entry.kind == Kind::Opaque {
            let place = self.directory(&entry.path)?;
            return self.hide(&place.path, &place.fd, false).map(|()| None);
        }
        if entry.path.is_empty() {
            self.state(&[], entry);
            return Ok(None);
        }
        let (parents, name) = split(&entry.path);
        let parent = self.directory(parents)?;
        let path = join(&parent.path, name);
        match &entry.kind {
            Kind::Directory => self.make_directory(&parent, name, path, entry)?,
            Kind::Whiteout => self.whiteout(&parent, name, &path)?,
            Kind::Hardlink(target) => self.link(&parent, name, path, target)?,
            Kind::File(_) => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let flags = flags | OFlags::CLOEXEC;
                let make = || fs::openat(&*parent.fd, name, flags, Mode::RUSR | Mode::WUSR);
                let file = self.replacing(&parent, name, &path, make)?;
                self.wrote(path)?;
                return Ok(Some(File::from(file)));
            }
            kind => {
                if self.user && matches!(kind, Kind::Character { .. } | Kind::Block { .. }) {
                    return Ok(None);
                }
                let make = || inode::make(&parent.fd, name, kind);
                self.replacing(&parent, name, &path, make)?;
                inode::dress_at(&parent.fd, name, entry, self.user)?;
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
        let Kind::File(what) = &entry.kind else {
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
                self.clear(parent, name, path)?;
                make().doing("make it")
            }
            made => made.doing("make it"),
        }
    }

    /// Removes what is at a name, with all that is in it.
    fn clear(&mut self, parent: &Place, name: &[u8], path: &[u8]) -> Result<(), Fault> {
        remove(&parent.fd, name).doing("remove what was there")?;
        self.recent = None;
        let gone = |paths: &mut Vec<Vec<u8>>, found: &Vec<u8>| paths.push(found.clone());
        let (mut directories, mut written) = (Vec::new(), Vec::new());
        for (found, _) in self.directories.range(path.to_vec()..) {
            match found == path || below(path, found) {
                true => gone(&mut directories, found),
                // `path-` stands between `path` and `path/`.
                false if found.starts_with(path) => {}
                false => break,
            }
        }
        for found in self.written.range(path.to_vec()..) {
            match found == path || below(path, found) {
                true => gone(&mut written, found),
                false if found.starts_with(path) => {}
                false => break,
            }
        }
        for found in directories {
            self.paths -= found.len() as u64;
            self.directories.remove(&found);
        }
        for found in written {
            self.paths -= found.len() as u64;
            self.written.remove(&found);
        }
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
            Ok(()) => self.record(path.clone())?,
            Err(Errno::EXIST) => match inode::kind(&parent.fd, name)? {
                Some(FileType::Directory) => self.note(&path)?,
                found => {
                    let fresh = self.style == Style::Upper && found.is_none();
                    self.clear(parent, name, &path)?;
                    fs::mkdirat(&*parent.fd, name, Mode::RWXU).doing("make it")?;
                    self.record(path.clone())?;
                    if fresh {
                        self.freshen(&path)?;
                    }
                }
            },
            made => made.doing("make it")?,
        }
        self.wrote(path.clone())?;
        self.state(&path, entry);
        Ok(())
    }

    /// What lower layers have at a path is gone; what this layer has stays.
    fn whiteout(&mut self, parent: &Place, name: &[u8], path: &[u8]) -> Result<(), Fault> {
        if self.style == Style::Base {
            return Ok(());
        }
        let there = fs::statat(&*parent.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let there = match there {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error).doing("look at it"),
        };
        match (self.style, there) {
            (Style::Upper, None) => inode::whiteout(&parent.fd, name).doing("make its whiteout"),
            (_, Some(FileType::Directory)) if self.style == Style::Upper || self.is_ours(path) => {
                let fd = self.open(path).doing("open it")?;
                self.note(path)?;
                self.hide(path, &fd, true)
            }
            (Style::Copy, Some(_)) if !self.is_ours(path) => self.clear(parent, name, path),
            _ => Ok(()),
        }
    }

    /// What lower layers have in a directory is gone, and the directory, too, if `fresh`.
    fn hide(&mut self, path: &[u8], fd: &OwnedFd, fresh: bool) -> Result<(), Fault> {
        match self.style {
            Style::Base => return Ok(()),
            Style::Upper => inode::set(fd, opaque_name(self.user), OPAQUE_VALUE)?,
            Style::Copy => self.keep_ours(path)?,
        }
        if let Some(directory) = self.directories.get_mut(path) {
            directory.opaque = true;
            directory.fresh |= fresh;
            if fresh {
                directory.kept = None;
            }
        }
        Ok(())
    }

    /// A directory of ours in the place of a whiteout.
    fn freshen(&mut self, path: &[u8]) -> Result<(), Fault> {
        let fd = self.open(path).doing("open it")?;
        self.hide(path, &fd, true)
    }

    /// Removes all in a copy's directory that this layer did not write.
    fn keep_ours(&mut self, path: &[u8]) -> Result<(), Fault> {
        let mut todo = vec![path.to_vec()];
        while let Some(path) = todo.pop() {
            let fd = Arc::new(self.open(&path).doing("open it")?);
            let mut foreign = Vec::new();
            for name in inode::names(&fd)? {
                let path = join(&path, &name);
                match self.is_ours(&path) {
                    false => foreign.push(name),
                    true if self.directories.contains_key(&path) => todo.push(path),
                    true => {}
                }
            }
            for name in foreign {
                let path = join(&path, &name);
                let parent = Place {
                    path: Vec::new(),
                    fd: Arc::clone(&fd),
                };
                self.clear(&parent, &name, &path)?;
            }
        }
        Ok(())
    }

    /// Whether this layer wrote it, or something in it.
    fn is_ours(&self, path: &[u8]) -> bool {
        let inside = join(path, b"");
        self.written.contains(path)
            || self
                .written
                .range(inside..)
                .next()
                .is_some_and(|found| below(path, found))
    }

    fn link(
        &mut self,
        parent: &Place,
        name: &[u8],
        path: Vec<u8>,
        target: &[u8],
    ) -> Result<(), Fault> {
        let missing = || Fault::NoTarget(target.to_vec());
        if target.is_empty() {
            return Err(Fault::DirectoryTarget(target.to_vec()));
        }
        let (parents, to) = split(target);
        let place = self.find(parents)?.ok_or_else(missing)?;
        if join(&place.path, to) == path {
            // It is a name of itself.
            return match inode::kind(&parent.fd, name) {
                Ok(Some(_)) => Ok(()),
                _ => Err(missing()),
            };
        }
        match fs::statat(&*place.fd, to, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Err(Fault::DirectoryTarget(target.to_vec()));
            }
            Ok(stat) if self.style == Style::Upper && inode::is_whiteout(&stat) => {
                return Err(missing());
            }
            Ok(_) => {}
            Err(Errno::NOENT) => return Err(missing()),
            Err(error) => return Err(error).doing("look at its hard link's target"),
        }
        let make = || fs::linkat(&*place.fd, to, &*parent.fd, name, AtFlags::empty());
        match self.replacing(parent, name, &path, make) {
            Err(Fault::System(_, error)) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {
                Err(missing())
            }
            made => made,
        }?;
        self.wrote(path)
    }

    /// Notes what the layer says of a directory that is there.
    fn state(&mut self, path: &[u8], entry: &Entry) {
        if let Some(directory) = self.directories.get_mut(path) {
            directory.stated = Some(metadata(entry));
        }
    }

    /// Notes a directory that is there, with its time if it was there before this layer.
    fn note(&mut self, path: &[u8]) -> Result<(), Fault> {
        if self.directories.contains_key(path) {
            return Ok(());
        }
        let kept = match self.style {
            Style::Copy => {
                let fd = self.open(path).doing("open it")?;
                Some(inode::time(&fd)?)
            }
            Style::Upper | Style::Base => None,
        };
        self.record(path.to_vec())?;
        if let Some(directory) = self.directories.get_mut(path) {
            directory.kept = kept;
        }
        Ok(())
    }

    /// Notes a new directory.
    fn record(&mut self, path: Vec<u8>) -> Result<(), Fault> {
        self.count(&path)?;
        self.directories.insert(path, Directory::default());
        Ok(())
    }

    fn wrote(&mut self, path: Vec<u8>) -> Result<(), Fault> {
        if self.style == Style::Copy && !self.written.contains(&path) {
            self.count(&path)?;
            self.written.insert(path);
        }
        Ok(())
    }

    fn count(&mut self, path: &[u8]) -> Result<(), Fault> {
        self.paths += path.len() as u64;
        match self.paths > MAX_PATHS {
            true => Err(Fault::Paths(MAX_PATHS)),
            false => Ok(()),
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
