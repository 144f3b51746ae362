// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A directory that a layer is written to, and the records of what the layer has done in it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use resnap_layer::path::{join, split};
use resnap_layer::resolve::LookupBudget;
use rustix::fs::{self, Dir, FileType, Mode, OFlags};

use super::records::{Directory, Records};
use crate::beneath::open_beneath;
use crate::error::{Error, Fault, IoContext as _, StreamError};
use crate::guard::Guard;
use crate::inode;
use crate::remove::remove;
use crate::whiteout::WhiteoutMode;
use crate::xattr::{self, OPAQUE_VALUE, XattrNamespace};

/// A directory that a layer is written to.
pub(super) struct Destination {
    root: OwnedFd,
    pub(super) mode: WhiteoutMode,
    pub(super) namespace: XattrNamespace,
    pub(super) guard: Guard,
    pub(super) records: Records,
    /// The lookups that paths of entries may take.
    pub(super) lookups: LookupBudget,
    /// The last directory that was looked up, with the path it was looked up by: the next entry is
    /// usually in it, too.
    pub(super) recent: Option<(Vec<u8>, OpenDir)>,
}

/// An open directory.
#[derive(Debug, Clone)]
pub(super) struct OpenDir {
    /// The path without links.
    pub(super) path: Vec<u8>,
    pub(super) fd: Arc<OwnedFd>,
}

impl Destination {
    /// Opens `root`, which must be empty unless it is a copy of the layers below.
    pub(super) fn new(
        root: &Path,
        mode: WhiteoutMode,
        namespace: XattrNamespace,
        guard: Guard,
    ) -> Result<Self, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let root = fs::open(root, flags, Mode::empty());
        let mut this = Self {
            root: root.context("open the directory to write to")?,
            mode,
            namespace,
            records: Records::new(guard.clone()),
            guard,
            lookups: LookupBudget::default(),
            recent: None,
        };
        this.track_existing(&[]).map_err(|fault| Error::Entry {
            path: Vec::new(),
            fault,
        })?;
        Ok(this)
    }

    /// Opens a directory by its path without links.
    pub(super) fn open(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        open_beneath(&self.root, path)
    }

    /// Removes a name, with everything in it, unless the work is over.
    pub(super) fn remove(&self, parent: &OwnedFd, name: &[u8]) -> Result<(), Fault> {
        let check = || {
            let step = self.guard.step();
            step.map_err(|reason| StreamError::Stopped(reason).into())
        };
        remove(parent, name, &check).entry_context("remove what was there")
    }

    /// Removes a name, and the records of it.
    pub(super) fn clear(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        path: &[u8],
    ) -> Result<(), Fault> {
        let kind = inode::kind(parent, name)?;
        if self.mode == WhiteoutMode::Upper && kind.is_none() {
            self.records.delete_lower(path)?;
        }
        let record = self.records.get(path);
        let is_lower = record.is_none_or(|directory| directory.mtime_before.is_some());
        if self.mode == WhiteoutMode::Copy && kind == Some(FileType::Directory) && is_lower {
            self.records.replace_lower(path)?;
        }
        self.remove(parent, name)?;
        self.recent = None;
        self.records.forget(path);
        Ok(())
    }

    /// Records an existing directory, with its time if it is older than this layer.
    pub(super) fn track_existing(&mut self, path: &[u8]) -> Result<(), Fault> {
        if self.records.get(path).is_some() {
            return Ok(());
        }
        let (mut mtime_before, mut has_default_acl) = (None, false);
        if self.mode == WhiteoutMode::Copy {
            let fd = self.open(path).entry_context("open it")?;
            let stat = fs::fstat(&fd).entry_context("look at it")?;
            mtime_before = Some(inode::mtime(&stat));
            let list = xattr::get(&fd, xattr::DEFAULT_ACL);
            let list = list.entry_context("look at its extended attributes")?;
            has_default_acl = list.is_some() && !path.is_empty();
        }
        let directory = Directory {
            mtime_before,
            has_default_acl,
            has_content: self.mode == WhiteoutMode::Copy,
            ..Directory::default()
        };
        self.records.add(path.to_vec(), directory)
    }

    /// Records a new directory. If the lower one is deleted, the new one hides it.
    pub(super) fn track_new(&mut self, path: &[u8]) -> Result<(), Fault> {
        if self.records.has_default_acl(split(path).0) {
            return Err(Fault::DefaultAcl);
        }
        if self.records.is_lower_replaced(path) {
            return Err(Fault::Replaced);
        }
        let directory = Directory {
            is_opaque: self.mode == WhiteoutMode::Copy,
            ..Directory::default()
        };
        self.records.add(path.to_vec(), directory)?;
        if self.mode == WhiteoutMode::Copy {
            self.records.write(path.to_vec())?;
        }
        if self.records.is_lower_deleted(path) {
            let fd = self.open(path).entry_context("open it")?;
            self.hide_lower(path, &fd)?;
        }
        Ok(())
    }

    /// Records that this layer wrote a path.
    pub(super) fn track_written(&mut self, path: Vec<u8>) -> Result<(), Fault> {
        self.records.mark_content(split(&path).0);
        match self.mode {
            WhiteoutMode::Copy => self.records.write(path),
            WhiteoutMode::Upper | WhiteoutMode::Base => Ok(()),
        }
    }

    /// Hides the content of the lower directory at `path`.
    pub(super) fn hide_lower(&mut self, path: &[u8], fd: &OwnedFd) -> Result<(), Fault> {
        if self.mode == WhiteoutMode::Base || self.records.is_opaque(path) {
            return Ok(());
        }
        if self.mode == WhiteoutMode::Copy {
            // overlayfs ignores the attribute on the roots of layers.
            return match path.is_empty() {
                true => Ok(()),
                false => self.remove_lower(path),
            };
        }
        let set = xattr::set(fd, self.namespace.opaque_name(), OPAQUE_VALUE);
        set.entry_context("set an extended attribute")?;
        if let Some(directory) = self.records.get_mut(path) {
            directory.is_opaque = true;
        }
        Ok(())
    }

    /// Removes everything that this layer did not write from a directory of a full copy. Nothing lower
    /// is added again, so each directory is listed once.
    fn remove_lower(&mut self, path: &[u8]) -> Result<(), Fault> {
        let mut todo = vec![path.to_vec()];
        while let Some(path) = todo.pop() {
            let fd = self.open(&path).entry_context("open it")?;
            self.remove_lower_in(&fd, &path, &mut todo)?;
            if let Some(directory) = self.records.get_mut(&path) {
                directory.is_opaque = true;
            }
        }
        Ok(())
    }

    /// Does this for one directory. Adds the children that contain something of this layer to `todo`.
    fn remove_lower_in(
        &mut self,
        fd: &OwnedFd,
        path: &[u8],
        todo: &mut Vec<Vec<u8>>,
    ) -> Result<(), Fault> {
        for entry in Dir::read_from(fd).entry_context("list it")? {
            let entry = entry.entry_context("list it")?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let path = join(path, name);
            if !self.is_own(&path) {
                self.clear(fd, name, &path)?;
                continue;
            }
            if self.records.is_written_to(&path) {
                self.track_existing(&path)?;
            }
            if self.records.get(&path).is_some() && !self.records.is_opaque(&path) {
                todo.push(path);
            }
        }
        Ok(())
    }

    /// Returns whether this layer wrote a path, or something in it.
    pub(super) fn is_own(&self, path: &[u8]) -> bool {
        self.records.is_written(path) || self.records.is_written_to(path)
    }
}
