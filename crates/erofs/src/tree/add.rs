// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What an entry of a layer does to the tree.

use resnap_layer::way::split;
use resnap_layer::{Entry, EntryKind};

use super::{DEFAULT, GONE, Inode, OPAQUE, ROOT, STATED, Tree, permissions};
use crate::error::Fault;
use crate::format::{device, mode};
use crate::xattr::has_default;

impl Tree {
    /// Adds an entry of the layer. `place` is where its data is.
    pub(crate) fn add(&mut self, entry: &Entry, place: u32) -> Result<(), Fault> {
        if let EntryKind::Opaque = entry.kind {
            let directory = self.directory(&entry.path)?;
            let is_lowest = self.is_lowest;
            if let Some(inode) = self.inode_mut(directory)
                && !is_lowest
            {
                inode.flags |= OPAQUE;
            }
            return Ok(());
        }
        if entry.path.is_empty() {
            return self.restate(ROOT, entry);
        }
        let (parents, name) = split(&entry.path);
        let directory = self.directory(parents)?;
        let index = self.find(directory, name);
        let old = index.and_then(|index| self.named(index));
        match (&entry.kind, index, old) {
            (EntryKind::Directory, _, Some(old))
                if self.inode(old).is_some_and(Inode::is_directory) =>
            {
                return self.restate(old, entry);
            }
            (EntryKind::Whiteout, None, _) if self.is_lowest => return Ok(()),
            (EntryKind::Whiteout, Some(_), _) if self.is_lowest => {}
            // A whiteout hides what is below, not what the same layer has.
            (EntryKind::Whiteout, Some(index), _) => {
                self.delete(index);
                return Ok(());
            }
            (EntryKind::Hardlink(target), ..) => {
                return self.link(directory, name, target, index, entry);
            }
            _ => {}
        }
        if !matches!(entry.kind, EntryKind::Symlink(_) | EntryKind::Whiteout) {
            self.inherit(directory)?;
        }
        let inode = self.build(entry, place)?;
        let is_directory = inode.is_directory();
        let inode = self.add_inode(inode)?;
        self.bind(directory, name, inode)?;
        match entry.kind {
            EntryKind::Whiteout => {}
            _ if is_directory => self.fill(inode),
            _ => self.fill(directory),
        }
        Ok(())
    }

    /// An inode of what the entry says.
    fn build(&mut self, entry: &Entry, place: u32) -> Result<Inode, Fault> {
        let at = |major, minor| device(major, minor).ok_or(Fault::Device { major, minor });
        let (file_type, size, place) = match &entry.kind {
            EntryKind::File(file) => (mode::FILE, file.size, place),
            EntryKind::Symlink(target) => (mode::SYMLINK, target.len() as u64, self.keep(target)?),
            EntryKind::Character { major, minor } => (mode::CHARACTER, 0, at(*major, *minor)?),
            EntryKind::Block { major, minor } => (mode::BLOCK, 0, at(*major, *minor)?),
            EntryKind::Fifo => (mode::FIFO, 0, 0),
            EntryKind::Whiteout => (mode::CHARACTER, 0, 0),
            EntryKind::Directory | EntryKind::Opaque | EntryKind::Hardlink(_) => {
                (mode::DIRECTORY, 0, 0)
            }
        };
        let mode = file_type
            | match &entry.kind {
                EntryKind::Whiteout => 0,
                // Linux knows no other mode of symbolic links.
                EntryKind::Symlink(_) => 0o777,
                _ => permissions(entry.mode),
            };
        let xattrs = match &entry.kind {
            EntryKind::Whiteout => 0,
            _ => self.xattrs.encode(&entry.xattrs, mode, &mut self.room)?,
        };
        Ok(Inode {
            size,
            mtime: entry.mtime,
            uid: entry.uid,
            gid: entry.gid,
            place,
            xattrs,
            links: 0,
            node: 0,
            mode,
            flags: match entry.kind {
                EntryKind::Whiteout if self.is_lowest => GONE,
                EntryKind::Directory if has_default(&entry.xattrs) => STATED | DEFAULT,
                _ => STATED,
            },
        })
    }

    /// Gives a directory the metadata of a later entry.
    fn restate(&mut self, number: u32, entry: &Entry) -> Result<(), Fault> {
        let mode = mode::DIRECTORY | permissions(entry.mode);
        let xattrs = self.xattrs.encode(&entry.xattrs, mode, &mut self.room)?;
        if let Some(inode) = self.inode_mut(number) {
            inode.mode = mode;
            (inode.uid, inode.gid) = (entry.uid, entry.gid);
            inode.mtime = entry.mtime;
            inode.xattrs = xattrs;
            inode.flags |= STATED;
            if has_default(&entry.xattrs) {
                inode.flags |= DEFAULT;
            }
        }
        self.fill(number);
        Ok(())
    }

    /// Another name of an inode, which gets the metadata of this entry. What is at the name
    /// `replaced` goes first.
    fn link(
        &mut self,
        directory: u32,
        name: &[u8],
        target: &[u8],
        replaced: Option<usize>,
        entry: &Entry,
    ) -> Result<(), Fault> {
        let missing = || Fault::NoTarget(target.to_vec());
        if target.is_empty() {
            return Err(Fault::DirectoryTarget(target.to_vec()));
        }
        let index = self.entry(target, replaced)?;
        let number = index
            .and_then(|index| self.named(index))
            .ok_or_else(missing)?;
        let inode = self.inode(number).ok_or_else(missing)?;
        if inode.is_directory() {
            return Err(Fault::DirectoryTarget(target.to_vec()));
        }
        if self.is_nothing(inode) {
            return Err(missing());
        }
        if index == replaced {
            // It is a name of itself.
            return Ok(());
        }
        let mode = match inode.file_type() {
            mode::SYMLINK => inode.mode,
            kind => kind | permissions(entry.mode),
        };
        let before = inode.xattrs;
        let xattrs = self
            .xattrs
            .change(before, &entry.xattrs, mode, &mut self.room)?;
        if let Some(inode) = self.inode_mut(number) {
            inode.mode = mode;
            (inode.uid, inode.gid) = (entry.uid, entry.gid);
            inode.mtime = entry.mtime;
            inode.xattrs = xattrs;
        }
        self.bind(directory, name, number)?;
        self.fill(directory);
        Ok(())
    }
}
