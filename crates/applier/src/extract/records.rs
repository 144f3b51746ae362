// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Records of what a layer has done, kept until all of it is written, and accounting of their memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use resnap_layer::path::{join, split};
use resnap_layer::{Metadata, Time, Xattr};

use crate::beneath::is_beneath;
use crate::error::Fault;
use crate::guard::Guard;

/// Bytes that a path takes in a set, besides its own.
const NAME: u64 = overhead::<Vec<u8>>();

/// Bytes that a directory takes besides its path and attributes.
const DIRECTORY: u64 = overhead::<(Vec<u8>, Directory)>();

/// Bytes that a set of extended attributes takes besides them.
const SET: u64 = overhead::<Xattrs>();

/// Bytes that an extended attribute takes besides its name and value.
const XATTR: u64 = overhead::<Xattr>();

/// Returns the bytes of an item in a B-tree, whose nodes may be half empty, and of the allocator.
const fn overhead<T>() -> u64 {
    2 * size_of::<T>() as u64 + 64
}

/// The record of a directory.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// The metadata that the layer states.
    pub(super) stated: Option<Stated>,
    /// Whether the content of the lower directory is hidden.
    pub(super) is_opaque: bool,
    /// Whether it contains more of the layer than whiteouts, or is stated, or is a lower layer's own.
    pub(super) has_content: bool,
    /// Whether new children inherit an access control list.
    pub(super) has_default_acl: bool,
    /// The time it had before this layer, in a full copy.
    pub(super) mtime_before: Option<Time>,
}

/// Attributes that several directories may share.
type Xattrs = Arc<Vec<Xattr>>;

/// The metadata that a layer states for a directory.
#[derive(Debug)]
pub(super) struct Stated {
    /// The metadata without attributes.
    bare: Metadata,
    xattrs: Xattrs,
}

impl Stated {
    pub(super) fn metadata(&self) -> Metadata {
        Metadata {
            xattrs: self.xattrs.to_vec(),
            ..self.bare.clone()
        }
    }
}

/// The records of a layer.
pub(super) struct Records {
    /// All directories that this layer created, writes to or states.
    directories: BTreeMap<Vec<u8>, Directory>,
    /// All paths that this layer wrote, for
    /// [`WhiteoutMode::Copy`](crate::whiteout::WhiteoutMode::Copy).
    written: BTreeSet<Vec<u8>>,
    /// Paths that are deleted in lower layers, where no whiteout is left on disk.
    deleted: BTreeSet<Vec<u8>>,
    /// Directories of lower layers that were replaced in a full copy.
    replaced: BTreeSet<Vec<u8>>,
    /// The attributes of all directories. Each combination is stored once.
    xattrs: BTreeSet<Xattrs>,
    guard: Guard,
}

impl Records {
    pub(super) fn new(guard: Guard) -> Self {
        Self {
            directories: BTreeMap::new(),
            written: BTreeSet::new(),
            deleted: BTreeSet::new(),
            replaced: BTreeSet::new(),
            xattrs: BTreeSet::new(),
            guard,
        }
    }

    /// Returns all directories, parents before their children.
    pub(super) fn directories(
        &self,
    ) -> impl DoubleEndedIterator<Item = (&Vec<u8>, &Directory)> + use<'_> {
        self.directories.iter()
    }

    pub(super) fn get(&self, path: &[u8]) -> Option<&Directory> {
        self.directories.get(path)
    }

    pub(super) fn get_mut(&mut self, path: &[u8]) -> Option<&mut Directory> {
        self.directories.get_mut(path)
    }

    pub(super) fn is_opaque(&self, path: &[u8]) -> bool {
        self.get(path).is_some_and(|directory| directory.is_opaque)
    }

    /// Adds the record of a directory that has none.
    pub(super) fn add(&mut self, path: Vec<u8>, directory: Directory) -> Result<(), Fault> {
        self.guard.take_memory(DIRECTORY + path.len() as u64)?;
        self.directories.insert(path, directory);
        Ok(())
    }

    /// Records the metadata that the layer states for a directory.
    pub(super) fn state(&mut self, path: &[u8], mut bare: Metadata) -> Result<(), Fault> {
        let xattrs = self.store(std::mem::take(&mut bare.xattrs))?;
        let directory = self.directories.get_mut(path);
        let stated = Stated { bare, xattrs };
        let old = directory.and_then(|directory| directory.stated.replace(stated));
        self.drop_stated(old);
        Ok(())
    }

    /// Stores attributes, or returns the stored set of the same attributes.
    fn store(&mut self, xattrs: Vec<Xattr>) -> Result<Xattrs, Fault> {
        let xattrs = Xattrs::new(xattrs);
        if let Some(stored) = self.xattrs.get(&xattrs) {
            return Ok(Arc::clone(stored));
        }
        self.guard.take_memory(size(&xattrs))?;
        self.xattrs.insert(Arc::clone(&xattrs));
        Ok(xattrs)
    }

    /// Drops stated metadata, and its attributes if no other directory has them.
    fn drop_stated(&mut self, stated: Option<Stated>) {
        let Some(Stated { xattrs, .. }) = stated else {
            return;
        };
        if Arc::strong_count(&xattrs) == 2 {
            self.xattrs.remove(&xattrs);
            self.guard.give_memory(size(&xattrs));
        }
    }

    /// Records that this layer wrote a path.
    pub(super) fn write(&mut self, path: Vec<u8>) -> Result<(), Fault> {
        if !self.written.contains(&path) {
            self.guard.take_memory(NAME + path.len() as u64)?;
            self.written.insert(path);
        }
        Ok(())
    }

    /// Returns whether this layer wrote a path.
    pub(super) fn is_written(&self, path: &[u8]) -> bool {
        self.written.contains(path)
    }

    /// Returns whether this layer wrote something in a directory.
    pub(super) fn is_written_to(&self, path: &[u8]) -> bool {
        let next = self.written.range(join(path, b"")..).next();
        next.is_some_and(|found| is_beneath(path, found))
    }

    /// Records that a path is deleted in the lower layers.
    pub(super) fn delete_lower(&mut self, path: &[u8]) -> Result<(), Fault> {
        if !self.deleted.contains(path) {
            self.guard.take_memory(NAME + path.len() as u64)?;
            self.deleted.insert(path.to_vec());
        }
        Ok(())
    }

    /// Returns whether a path is deleted in the lower layers.
    pub(super) fn is_lower_deleted(&self, path: &[u8]) -> bool {
        self.deleted.contains(path)
    }

    /// Records that a directory of the lower layers was replaced.
    pub(super) fn replace_lower(&mut self, path: &[u8]) -> Result<(), Fault> {
        if !self.replaced.contains(path) {
            self.guard.take_memory(NAME + path.len() as u64)?;
            self.replaced.insert(path.to_vec());
        }
        Ok(())
    }

    /// Returns whether a new directory would show content of lower layers that was removed.
    pub(super) fn is_lower_replaced(&self, path: &[u8]) -> bool {
        self.replaced.contains(path) && !self.deleted.contains(path)
    }

    /// Returns whether new children of a directory inherit an access control list.
    pub(super) fn has_default_acl(&self, path: &[u8]) -> bool {
        self.get(path)
            .is_some_and(|directory| directory.has_default_acl)
    }

    /// Records that a directory has content, and so have its parents.
    pub(super) fn mark_content(&mut self, mut path: &[u8]) {
        while let Some(directory) = self.directories.get_mut(path)
            && !directory.has_content
        {
            directory.has_content = true;
            path = split(path).0;
        }
    }

    /// Returns the directories that are deleted, themselves or with a parent, and contain only whiteouts.
    /// None of them is inside another.
    pub(super) fn hollow(&self) -> Vec<Vec<u8>> {
        let (mut deleted, mut hollow) = (BTreeSet::new(), Vec::new());
        if self.deleted.is_empty() {
            return hollow;
        }
        // Parents come before their children.
        for (path, directory) in &self.directories {
            let parent = split(path).0;
            if !self.deleted.contains(path) && !deleted.contains(parent) {
                continue;
            }
            deleted.insert(&path[..]);
            let has_content = |path| self.get(path).is_none_or(|directory| directory.has_content);
            if !directory.has_content && (has_content(parent) || !deleted.contains(parent)) {
                hollow.push(path.clone());
            }
        }
        hollow
    }

    /// Forgets a path and everything in it. That the path is deleted in lower layers is kept.
    pub(super) fn forget(&mut self, path: &[u8]) {
        // `path-` sorts between `path` and `path/`; `0` is the byte after `/`.
        let inside = || join(path, b"")..[path, b"0"].concat();
        let own = self.directories.remove_entry(path);
        let inner = self.directories.extract_if(inside(), |_, _| true);
        let forgotten: Vec<_> = own.into_iter().chain(inner).collect();
        for (found, directory) in forgotten {
            self.guard.give_memory(DIRECTORY + found.len() as u64);
            self.drop_stated(directory.stated);
        }
        let own = self.written.take(path);
        for found in own
            .into_iter()
            .chain(self.written.extract_if(inside(), |_| true))
            .chain(self.deleted.extract_if(inside(), |_| true))
        {
            self.guard.give_memory(NAME + found.len() as u64);
        }
    }
}

/// Returns the bytes of memory that a set of attributes takes.
fn size(xattrs: &[Xattr]) -> u64 {
    let sizes = xattrs.iter();
    let sizes = sizes.map(|xattr| XATTR + (xattr.name.len() + xattr.value.len()) as u64);
    SET + sizes.sum::<u64>()
}
