// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What is remembered of a layer until all of it is there, and how much memory that may take.

use std::collections::{BTreeMap, BTreeSet};

use resnap_erofs::Metadata;
use resnap_layer::{Time, Xattr};

use super::way::{below, join};
use crate::error::Fault;

/// Bytes of memory, as [`resnap_erofs::Limits`] has it.
const LIMIT: u64 = 512 << 20;

/// Bytes that a path takes in a set.
const NAME: u64 = overhead::<Vec<u8>>();

/// Bytes that a directory takes beside its path and attributes.
const DIRECTORY: u64 = overhead::<(Vec<u8>, Directory)>();

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
    pub(super) stated: Option<Metadata>,
    /// What lower layers have in it is gone.
    pub(super) opaque: bool,
    /// Its time before this layer, where it is in place.
    pub(super) kept: Option<Time>,
}

/// What is remembered of a layer.
pub(super) struct Records {
    /// All directories that this layer made, writes to or states.
    directories: BTreeMap<Vec<u8>, Directory>,
    /// All that this layer wrote, for [`Style::Copy`](super::Style::Copy).
    written: BTreeSet<Vec<u8>>,
    /// What lower layers have there is gone, and no whiteout says so any more.
    deleted: BTreeSet<Vec<u8>>,
    /// Bytes of memory that all take.
    memory: u64,
    pub(super) limit: u64,
}

impl Records {
    pub(super) fn new() -> Self {
        Self {
            directories: BTreeMap::new(),
            written: BTreeSet::new(),
            deleted: BTreeSet::new(),
            memory: 0,
            limit: LIMIT,
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
        self.count(DIRECTORY + path.len() as u64)?;
        self.directories.insert(path, directory);
        Ok(())
    }

    /// Notes what the layer says of a directory.
    pub(super) fn state(&mut self, path: &[u8], metadata: Metadata) -> Result<(), Fault> {
        self.count(size(&metadata))?;
        let directory = self.directories.get_mut(path);
        let old = directory.and_then(|directory| directory.stated.replace(metadata));
        self.memory -= old.as_ref().map_or(0, size);
        Ok(())
    }

    /// Notes what this layer wrote.
    pub(super) fn write(&mut self, path: Vec<u8>) -> Result<(), Fault> {
        if !self.written.contains(&path) {
            self.count(NAME + path.len() as u64)?;
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
            self.count(NAME + path.len() as u64)?;
            self.deleted.insert(path.to_vec());
        }
        Ok(())
    }

    pub(super) fn is_deleted(&self, path: &[u8]) -> bool {
        self.deleted.contains(path)
    }

    /// Forgets what was at a path, with all that was in it. What is deleted there stays so.
    pub(super) fn forget(&mut self, path: &[u8]) {
        // `path-` stands between `path` and `path/`; `0` is next to `/`.
        let inside = || join(path, b"")..[path, b"0"].concat();
        let own = self.directories.remove_entry(path);
        for (found, directory) in own
            .into_iter()
            .chain(self.directories.extract_if(inside(), |_, _| true))
        {
            let stated = directory.stated.as_ref().map_or(0, size);
            self.memory -= DIRECTORY + found.len() as u64 + stated;
        }
        let own = self.written.take(path);
        for found in own
            .into_iter()
            .chain(self.written.extract_if(inside(), |_| true))
            .chain(self.deleted.extract_if(inside(), |_| true))
        {
            self.memory -= NAME + found.len() as u64;
        }
    }

    fn count(&mut self, bytes: u64) -> Result<(), Fault> {
        self.memory += bytes;
        match self.memory > self.limit {
            true => Err(Fault::Memory(self.limit)),
            false => Ok(()),
        }
    }
}

/// Bytes of memory beside the directory's own.
fn size(metadata: &Metadata) -> u64 {
    let sizes = metadata.xattrs.iter();
    sizes
        .map(|xattr| XATTR + (xattr.name.len() + xattr.value.len()) as u64)
        .sum()
}
