// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Extraction of a layer's entries to files below a directory.

mod destination;
mod lookup;
mod records;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use resnap_layer::path::{join, split};
use resnap_layer::{Entry, EntryKind, Metadata, Time};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use self::destination::{Destination, OpenDir};
use crate::error::{Error, Fault, IoContext as _};
use crate::guard::Guard;
use crate::inode;
use crate::layer_source::LayerSource;
use crate::lower::LowerDirs;
use crate::whiteout::WhiteoutMode;
use crate::xattr::{XattrNamespace, has_default_acl};

/// The metadata of a directory that no layer states: what containerd gives it, except for the time.
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

/// The extraction of a layer.
pub(crate) struct Extraction {
    to: Destination,
}

impl Extraction {
    /// Starts an extraction to `root`, which must be empty unless it is a copy of the layers below.
    pub(crate) fn new(
        root: &Path,
        mode: WhiteoutMode,
        namespace: XattrNamespace,
        guard: impl Into<Guard>,
    ) -> Result<Self, Error> {
        let to = Destination::new(root, mode, namespace, guard.into())?;
        Ok(Self { to })
    }

    /// Writes all entries of the layer, and the metadata of the directories that it states.
    pub(crate) fn add(&mut self, layer: &mut impl LayerSource) -> Result<(), Error> {
        while let Some(entry) = layer.next()? {
            self.to.guard.begin_entry()?;
            self.to.lookups.add_entry();
            let file = match self.write_entry(&entry) {
                Ok(file) => file,
                Err(fault) => {
                    let path = entry.path;
                    return Err(Error::Entry { path, fault });
                }
            };
            if let Some(file) = file {
                self.write_data(&entry, file, layer)?;
            }
        }
        self.to.recent = None;
        self.remove_hollow()?;
        let (to, records) = (&self.to, &self.to.records);
        // Children come first: a directory may be closed to all but root.
        for (path, directory) in records.directories().rev() {
            let metadata = match (&directory.stated, directory.mtime_before) {
                (Some(stated), _) => &stated.metadata(),
                (None, Some(_)) => continue,
                (None, None) if to.mode == WhiteoutMode::Copy => &UNSTATED,
                (None, None) => continue,
            };
            self.finalize_dir(path, |fd| inode::set_metadata(fd, metadata, to.namespace))?;
        }
        for (path, directory) in records.directories().rev() {
            if let (None, Some(time)) = (&directory.stated, directory.mtime_before) {
                self.finalize_dir(path, |fd| inode::set_mtime(fd, time))?;
            }
        }
        Ok(())
    }

    /// Gives the directories that the layer does not state the metadata they have in the lower layers.
    pub(crate) fn finish(self, lower: &LowerDirs) -> Result<(), Error> {
        let Destination {
            mode,
            namespace,
            guard,
            records,
            ..
        } = &self.to;
        if *mode == WhiteoutMode::Copy {
            return Ok(());
        }
        let mut cursor = lower.cursor(*namespace, |path| records.is_opaque(path));
        for (path, directory) in records.directories() {
            if directory.stated.is_some() {
                continue;
            }
            guard.count_lookup(lower.count())?;
            self.finalize_dir(path, |fd| {
                let found = match records.is_lower_deleted(path) {
                    true => None,
                    false => cursor
                        .directory(path)
                        .entry_context("look it up in the layers below")?,
                };
                let has_default_acl = found
                    .as_ref()
                    .is_some_and(|found| has_default_acl(&found.xattrs));
                if has_default_acl && directory.has_content && !path.is_empty() {
                    return Err(Fault::DefaultAcl);
                }
                inode::set_metadata(fd, found.as_ref().unwrap_or(&UNSTATED), *namespace)
            })?;
        }
        Ok(())
    }

    /// Removes deleted directories that were created only for the whiteouts in them: the lower layers
    /// have nothing there that shows.
    fn remove_hollow(&mut self) -> Result<(), Error> {
        for path in self.to.records.hollow() {
            let (parents, name) = split(&path);
            self.finalize_dir(parents, |parent| {
                self.to.remove(parent, name)?;
                match self.to.mode {
                    WhiteoutMode::Upper => inode::create_whiteout(parent, name, self.to.namespace),
                    WhiteoutMode::Base | WhiteoutMode::Copy => Ok(()),
                }
            })?;
            self.to.records.forget(&path);
        }
        Ok(())
    }

    /// Applies a deferred change to a directory, unless the work is over.
    fn finalize_dir(
        &self,
        path: &[u8],
        change: impl FnOnce(&OwnedFd) -> Result<(), Fault>,
    ) -> Result<(), Error> {
        self.to.guard.step()?;
        let fd = self.to.open(path).entry_context("open it again");
        fd.and_then(|fd| change(&fd)).map_err(|fault| Error::Entry {
            path: path.to_vec(),
            fault,
        })
    }

    /// Writes an entry. Returns a file that has no data yet.
    fn write_entry(&mut self, entry: &Entry) -> Result<Option<File>, Fault> {
        if entry.kind == EntryKind::Opaque {
            let directory = lookup::directory(&mut self.to, &entry.path)?;
            let hidden = self.to.hide_lower(&directory.path, &directory.fd);
            return hidden.map(|()| None);
        }
        if entry.path.is_empty() {
            self.to.records.state(&[], self.applicable(entry))?;
            return Ok(None);
        }
        let (parents, name) = split(&entry.path);
        let parent = lookup::directory(&mut self.to, parents)?;
        let path = join(&parent.path, name);
        let inherits_acl = matches!(
            entry.kind,
            EntryKind::File(_)
                | EntryKind::Character { .. }
                | EntryKind::Block { .. }
                | EntryKind::Fifo
        );
        if inherits_acl && self.to.records.has_default_acl(&parent.path) {
            return Err(Fault::DefaultAcl);
        }
        match &entry.kind {
            EntryKind::File(_) => return self.create_file(&parent, name, path).map(Some),
            EntryKind::Directory => self.create_directory(&parent, name, path, entry)?,
            EntryKind::Whiteout => self.whiteout(&parent, name, &path)?,
            EntryKind::Hardlink(target) => self.link(&parent, path, target, entry)?,
            _ => self.create_other(&parent, name, path, entry)?,
        }
        Ok(None)
    }

    fn create_file(&mut self, parent: &OpenDir, name: &[u8], path: Vec<u8>) -> Result<File, Fault> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let flags = flags | OFlags::CLOEXEC;
        let create = || fs::openat(&*parent.fd, name, flags, Mode::RUSR | Mode::WUSR);
        let file = self.replace(parent, name, &path, create)?;
        self.to.track_written(path)?;
        Ok(File::from(file))
    }

    /// Creates a symbolic link, a device or a pipe.
    fn create_other(
        &mut self,
        parent: &OpenDir,
        name: &[u8],
        path: Vec<u8>,
        entry: &Entry,
    ) -> Result<(), Fault> {
        let kind = &entry.kind;
        if self.to.namespace == XattrNamespace::User
            && matches!(kind, EntryKind::Character { .. } | EntryKind::Block { .. })
        {
            return Ok(());
        }
        let create = || inode::create(&parent.fd, name, kind);
        self.replace(parent, name, &path, create)?;
        let is_whiteout = matches!(kind, EntryKind::Character { major: 0, minor: 0 });
        self.set_metadata_at(parent, name, entry, is_whiteout)?;
        self.to.track_written(path)
    }

    /// Writes the data of a file, and sets its metadata.
    fn write_data(
        &mut self,
        entry: &Entry,
        file: File,
        layer: &mut impl LayerSource,
    ) -> Result<(), Error> {
        let EntryKind::File(described) = &entry.kind else {
            return Ok(());
        };
        let failed = |fault| Error::Entry {
            path: entry.path.clone(),
            fault,
        };
        let mut end = layer.copy_data(&file)?;
        while let Some(piece) = layer.data()? {
            let written = file.write_all_at(piece.bytes, piece.offset);
            written.entry_context("write its data").map_err(failed)?;
            end = piece.offset + piece.bytes.len() as u64;
        }
        if end < described.size {
            file.set_len(described.size)
                .entry_context("make room for its holes")
                .map_err(failed)?;
        }
        inode::set_metadata(&file, &entry.metadata, self.to.namespace).map_err(failed)
    }

    /// Creates an inode, and removes what is at its name if needed.
    fn replace<T>(
        &mut self,
        parent: &OpenDir,
        name: &[u8],
        path: &[u8],
        create: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, Fault> {
        match create() {
            Err(Errno::EXIST) => {
                self.to.clear(&parent.fd, name, path)?;
                create().entry_context("make it")
            }
            created => created.entry_context("make it"),
        }
    }

    fn create_directory(
        &mut self,
        parent: &OpenDir,
        name: &[u8],
        path: Vec<u8>,
        entry: &Entry,
    ) -> Result<(), Fault> {
        match fs::mkdirat(&*parent.fd, name, Mode::RWXU) {
            Ok(()) => self.to.track_new(&path)?,
            Err(Errno::EXIST) => match inode::kind(&parent.fd, name)? {
                Some(FileType::Directory) => self.to.track_existing(&path)?,
                _ => {
                    self.to.clear(&parent.fd, name, &path)?;
                    let created = fs::mkdirat(&*parent.fd, name, Mode::RWXU);
                    created.entry_context("make it")?;
                    self.to.track_new(&path)?;
                }
            },
            created => created.entry_context("make it")?,
        }
        let metadata = self.applicable(entry);
        let records = &mut self.to.records;
        records.state(&path, metadata)?;
        records.mark_content(&path);
        if has_default_acl(&entry.metadata.xattrs)
            && let Some(directory) = records.get_mut(&path)
        {
            directory.has_default_acl = true;
        }
        self.to.track_written(path)
    }

    /// Deletes a path in the lower layers. What this layer has at the path stays, unless it is the
    /// lowest.
    fn whiteout(&mut self, parent: &OpenDir, name: &[u8], path: &[u8]) -> Result<(), Fault> {
        let found = fs::statat(&*parent.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let found = match found {
            Ok(stat) => Some(FileType::from_raw_mode(stat.st_mode)),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error).entry_context("look at it"),
        };
        let to = &mut self.to;
        match (to.mode, found) {
            (WhiteoutMode::Upper, None) => {
                return inode::create_whiteout(&parent.fd, name, to.namespace);
            }
            (WhiteoutMode::Base, None) => return Ok(()),
            (WhiteoutMode::Base, Some(_)) => return to.clear(&parent.fd, name, path),
            (WhiteoutMode::Upper | WhiteoutMode::Copy, _) => to.records.delete_lower(path)?,
        }
        if to.mode == WhiteoutMode::Copy && found.is_some() && !to.is_own(path) {
            return to.clear(&parent.fd, name, path);
        }
        if found == Some(FileType::Directory) {
            let fd = to.open(path).entry_context("open it")?;
            to.track_existing(path)?;
            to.hide_lower(path, &fd)?;
            if let Some(directory) = to.records.get_mut(path) {
                directory.mtime_before = None;
            }
        }
        Ok(())
    }

    /// Creates another name for the inode at `target`, which gets the metadata of this entry.
    fn link(
        &mut self,
        parent: &OpenDir,
        path: Vec<u8>,
        target: &[u8],
        entry: &Entry,
    ) -> Result<(), Fault> {
        let name = split(&path).1;
        let missing = || Fault::NoTarget(target.to_vec());
        if target.is_empty() {
            return Err(Fault::DirectoryTarget(target.to_vec()));
        }
        let (parents, target_name) = split(target);
        let directory = lookup::existing(&mut self.to, parents)?.ok_or_else(missing)?;
        let stat = fs::statat(&*directory.fd, target_name, AtFlags::SYMLINK_NOFOLLOW);
        let is_whiteout = match stat {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                return Err(Fault::DirectoryTarget(target.to_vec()));
            }
            Ok(stat) if self.to.mode == WhiteoutMode::Upper && inode::is_whiteout(&stat) => {
                return Err(missing());
            }
            Ok(stat) => inode::is_whiteout(&stat),
            Err(Errno::NOENT) => return Err(missing()),
            Err(error) => return Err(error).entry_context("look at its hard link's target"),
        };
        if join(&directory.path, target_name) == path {
            // The entry is a link to itself.
            return Ok(());
        }
        let flags = AtFlags::empty();
        let create = || fs::linkat(&*directory.fd, target_name, &*parent.fd, name, flags);
        match self.replace(parent, name, &path, create) {
            Err(Fault::System(_, error)) if Errno::from_io_error(&error) == Some(Errno::NOENT) => {
                Err(missing())
            }
            created => created,
        }?;
        self.set_metadata_at(parent, name, entry, is_whiteout)?;
        self.to.track_written(path)
    }

    /// Sets the metadata of the inode at a name. Marks its directory if overlayfs treats it as a
    /// whiteout.
    fn set_metadata_at(
        &self,
        parent: &OpenDir,
        name: &[u8],
        entry: &Entry,
        is_whiteout: bool,
    ) -> Result<(), Fault> {
        let namespace = self.to.namespace;
        inode::set_metadata_at(&parent.fd, name, &entry.metadata, namespace)?;
        if self.to.mode != WhiteoutMode::Copy && is_whiteout {
            inode::mark_origin(&parent.fd, namespace)?;
        }
        Ok(())
    }

    /// Returns the metadata of an entry, without the attributes that are not set.
    fn applicable(&self, entry: &Entry) -> Metadata {
        let mut metadata = entry.metadata.clone();
        let namespace = self.to.namespace;
        metadata
            .xattrs
            .retain(|xattr| namespace.is_applicable(xattr));
        metadata
    }
}
