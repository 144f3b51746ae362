// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What is remembered of a layer until all of it is there, and how much memory that may take.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use resnap_erofs::Metadata;
use resnap_layer::way::{join, split};
use resnap_layer::{Time, Xattr};

use super::way::below;
use crate::error::Fault;
use crate::guard::Guard;

/// Bytes that a path takes in a set.
const NAME: u64 = overhead::<Vec<u8>>();

/// Bytes that a directory takes beside its path and attributes.
const DIRECTORY: u64 = overhead::<(Vec<u8>, Directory)>();

/// Bytes that a set of extended attributes takes beside them.
const SET: u64 = overhead::<Xattrs>();

/// Bytes that an extended attribute takes beside its name and value.
const XATTR: u64 = overhead::<Xattr>();

/// Nodes of a B-tree may be half empty, and the allocator rounds up.
const fn overhead<T>() -> u64 {
    2 * size_of::<T>() as u64 + 64
}

/// What will become of a directory.
#[derive(Debug, Default)]
pub(super) struct Directory {
    /// What the layer says.
    pub(super) stated: Option<Stated>,
    /// What lower layers have in it is gone.
    pub(super) opaque: bool,
    /// Something in it is the layer's, whiteouts aside; or it is stated, or lower layers have it in
    /// the same place.
    pub(super) solid: bool,
    /// Whether what is made in it inherits an access control list.
    pub(super) has_default: bool,
    /// Its time before this layer, where it is in place.
    pub(super) kept: Option<Time>,
}

/// Attributes that any number of directories have.
type Xattrs = Arc<Vec<Xattr>>;

/// What a layer says of a directory.
#[derive(Debug)]
pub(super) struct Stated {
    /// Without its attributes.
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

/// What is remembered of a layer.
pub(super) struct Records {
    /// All directories that this layer made, writes to or states.
    directories: BTreeMap<Vec<u8>, Directory>,
    /// All that this layer wrote, for [`Style::Copy`](super::Style::Copy).
    written: BTreeSet<Vec<u8>>,
    /// What lower layers have there is gone, and no whiteout says so any more.
    deleted: BTreeSet<Vec<u8>>,
    /// Directories of lower layers that something else took the place of, in a copy of them.
    replaced: BTreeSet<Vec<u8>>,
    /// The attributes of all directories, each combination once.
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

    /// All directories, parents before what is in them.
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
        self.get(path).is_some_and(|directory| directory.opaque)
    }

    /// Notes a directory that is not noted yet.
    pub(super) fn add(&mut self, path: Vec<u8>, directory: Directory) -> Result<(), Fault> {
        self.guard.take(DIRECTORY + path.len() as u64)?;
        self.directories.insert(path, directory);
        Ok(())
    }

    /// Notes what the layer says of a directory.
    pub(super) fn state(&mut self, path: &[u8], mut bare: Metadata) -> Result<(), Fault> {
        let xattrs = self.keep(std::mem::take(&mut bare.xattrs))?;
        let directory = self.directories.get_mut(path);
        let stated = Stated { bare, xattrs };
        let old = directory.and_then(|directory| directory.stated.replace(stated));
        self.drop(old);
        Ok(())
    }

    /// The same attributes, kept.
    fn keep(&mut self, xattrs: Vec<Xattr>) -> Result<Xattrs, Fault> {
        let xattrs = Xattrs::new(xattrs);
        if let Some(kept) = self.xattrs.get(&xattrs) {
            return Ok(Arc::clone(kept));
        }
        self.guard.take(size(&xattrs))?;
        self.xattrs.insert(Arc::clone(&xattrs));
        Ok(xattrs)
    }

    /// Forgets what was stated, with attributes that nothing else has.
    fn drop(&mut self, stated: Option<Stated>) {
        let Some(Stated { xattrs, .. }) = stated else {
            return;
        };
        if Arc::strong_count(&xattrs) == 2 {
            self.xattrs.remove(&xattrs);
            self.guard.give(size(&xattrs));
        }
    }

    /// Notes what this layer wrote.
    pub(super) fn write(&mut self, path: Vec<u8>) -> Result<(), Fault> {
        if !self.written.contains(&path) {
            self.guard.take(NAME + path.len() as u64)?;
            self.written.insert(path);
        }
        Ok(())
    }

    /// Whether this layer wrote it.
    pub(super) fn is_written(&self, path: &[u8]) -> bool {
        self.written.contains(path)
    }

    /// Whether this layer wrote something in it.
    pub(super) fn is_written_to(&self, path: &[u8]) -> bool {
        let next = self.written.range(join(path, b"")..).next();
        next.is_some_and(|found| below(path, found))
    }

    /// Notes that what lower layers have there is gone.
    pub(super) fn delete(&mut self, path: &[u8]) -> Result<(), Fault> {
        if !self.deleted.contains(path) {
            self.guard.take(NAME + path.len() as u64)?;
            self.deleted.insert(path.to_vec());
        }
        Ok(())
    }

    pub(super) fn is_deleted(&self, path: &[u8]) -> bool {
        self.deleted.contains(path)
    }

    /// Notes that something took the place of a directory of lower layers.
    pub(super) fn replace(&mut self, path: &[u8]) -> Result<(), Fault> {
        if !self.replaced.contains(path) {
            self.guard.take(NAME + path.len() as u64)?;
            self.replaced.insert(path.to_vec());
        }
        Ok(())
    }

    /// Whether a directory there would show what lower layers have, and cannot.
    pub(super) fn is_replaced(&self, path: &[u8]) -> bool {
        self.replaced.contains(path) && !self.deleted.contains(path)
    }

    /// Whether what is made in this directory inherits an access control list.
    pub(super) fn has_default(&self, path: &[u8]) -> bool {
        self.get(path)
            .is_some_and(|directory| directory.has_default)
    }

    /// Notes that there is something in a directory, and so in those that it is in.
    pub(super) fn fill(&mut self, mut path: &[u8]) {
        while let Some(directory) = self.directories.get_mut(path)
            && !directory.solid
        {
            directory.solid = true;
            path = split(path).0;
        }
    }

    /// The directories that are gone, with all they are in or by themselves, and have only whiteouts
    /// in them; none of them is in another.
    pub(super) fn hollow(&self) -> Vec<Vec<u8>> {
        let (mut gone, mut hollow) = (BTreeSet::new(), Vec::new());
        if self.deleted.is_empty() {
            return hollow;
        }
        // Parents come before what is in them.
        for (path, directory) in &self.directories {
            let parent = split(path).0;
            if !self.deleted.contains(path) && !gone.contains(parent) {
                continue;
            }
            gone.insert(&path[..]);
            let is_solid = |path| self.get(path).is_none_or(|directory| directory.solid);
            if !directory.solid && (is_solid(parent) || !gone.contains(parent)) {
                hollow.push(path.clone());
            }
        }
        hollow
    }

    /// Forgets what was at a path, with all that was in it. What is deleted there stays so.
    pub(super) fn forget(&mut self, path: &[u8]) {
        // `path-` stands between `path` and `path/`; `0` is next to `/`.
        let inside = || join(path, b"")..[path, b"0"].concat();
        let own = self.directories.remove_entry(path);
        let inner = self.directories.extract_if(inside(), |_, _| true);
        let gone: Vec<_> = own.into_iter().chain(inner).collect();
        for (found, directory) in gone {
            self.guard.give(DIRECTORY + found.len() as u64);
            self.drop(directory.stated);
        }
        let own = self.written.take(path);
        for found in own
            .into_iter()
            .chain(self.written.extract_if(inside(), |_| true))
            .chain(self.deleted.extract_if(inside(), |_| true))
        {
            self.guard.give(NAME + found.len() as u64);
        }
    }
}

/// Bytes of memory of a set of attributes.
fn size(xattrs: &[Xattr]) -> u64 {
    let sizes = xattrs.iter();
    let sizes = sizes.map(|xattr| XATTR + (xattr.name.len() + xattr.value.len()) as u64);
    SET + sizes.sum::<u64>()
}
