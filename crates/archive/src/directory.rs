// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The directories of a layout that is written to. They are reached from one another, and never through a link.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, fsync, mkdirat, openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

/// An open directory. Clones are the same one.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    fd: Arc<OwnedFd>,
    path: PathBuf,
}

impl Directory {
    /// Opens a directory. Its path may have links in it.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY;
        Ok(Self {
            fd: Arc::new(openat(CWD, path, flags, Mode::empty())?),
            path: path.to_owned(),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens a directory in this one.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is a link, or no directory.
    pub(crate) fn child(&self, name: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = match openat(&self.fd, name, flags, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(self.is_no(name, "directory")),
            fd => fd.map_err(|error| self.named(name, error))?,
        };
        Ok(Self {
            fd: Arc::new(fd),
            path: self.path.join(name),
        })
    }

    /// Opens a directory in this one, which is created if it does not exist.
    pub(crate) fn create_child(&self, name: &str) -> io::Result<Self> {
        match mkdirat(&self.fd, name, Mode::RWXU | Mode::RWXG | Mode::RWXO) {
            Ok(()) => self.sync()?,
            Err(Errno::EXIST) => {}
            Err(error) => return Err(self.named(name, error)),
        }
        self.child(name)
    }

    /// Returns the names that are UTF-8.
    pub(crate) fn names(&self) -> io::Result<impl Iterator<Item = io::Result<String>>> {
        let entries = Dir::read_from(&self.fd)?;
        Ok(entries.filter_map(|entry| match entry {
            Ok(entry) => entry
                .file_name()
                .to_str()
                .ok()
                .map(|name| Ok(name.to_owned())),
            Err(error) => Some(Err(error.into())),
        }))
    }

    /// Returns whether there is a file of this name. A link is none.
    pub(crate) fn has_file(&self, name: &str) -> io::Result<bool> {
        Ok(self.kind(name)? == Some(FileType::RegularFile))
    }

    /// Returns whether there is anything of this name.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is a link, or no file.
    pub(crate) fn has_only_file(&self, name: &str) -> io::Result<bool> {
        match self.kind(name)? {
            Some(FileType::RegularFile) => Ok(true),
            Some(_) => Err(self.is_no(name, "regular file")),
            None => Ok(false),
        }
    }

    fn kind(&self, name: &str) -> io::Result<Option<FileType>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(self.named(name, error)),
        }
    }

    /// Opens a file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it is a link, or no file.
    pub(crate) fn file(&self, name: &str, access: OFlags) -> io::Result<File> {
        // Opening a device may have an effect.
        self.has_only_file(name)?;
        // What takes its place must not block, or lead elsewhere.
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = openat(&self.fd, name, flags, Mode::empty());
        let file = File::from(opened.map_err(|error| self.named(name, error))?);
        match file.metadata()?.is_file() {
            true => Ok(file),
            false => Err(self.is_no(name, "regular file")),
        }
    }

    /// Creates a file.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] if there is anything of this name.
    pub(crate) fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::CREATE | OFlags::EXCL;
        let mode = Mode::from_raw_mode(0o666);
        let created = openat(&self.fd, name, flags, mode);
        Ok(File::from(
            created.map_err(|error| self.named(name, error))?,
        ))
    }

    /// Moves a file to another directory. What has its name there is replaced.
    pub(crate) fn rename(&self, name: &str, to: &Self, new: &str) -> io::Result<()> {
        match renameat(&self.fd, name, &to.fd, new) {
            Err(Errno::ISDIR) => Err(to.is_no(new, "regular file")),
            renamed => renamed.map_err(|error| to.named(new, error)),
        }
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.named(name, error)),
        }
    }

    pub(crate) fn sync(&self) -> io::Result<()> {
        Ok(fsync(&self.fd)?)
    }

    fn named(&self, name: &str, error: Errno) -> io::Error {
        let error = io::Error::from(error);
        let text = format!("{}: {error}", self.path.join(name).display());
        io::Error::new(error.kind(), text)
    }

    fn is_no(&self, name: &str, wanted: &str) -> io::Error {
        let path = self.path.join(name);
        let text = format!(
            "{} is no {wanted}, and links are not followed; put a {wanted} in its place, or name another layout",
            path.display()
        );
        io::Error::new(ErrorKind::InvalidInput, text)
    }
}
