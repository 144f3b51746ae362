// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The tree of a layer in memory. It takes 56 bytes for an inode, about 35 bytes and the name itself
//! for each name, and a quarter more for growth.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use resnap_layer::Time;
use resnap_layer::resolve::LookupBudget;

use crate::budget::ByteBudget;
use crate::error::Fault;
use crate::format::mode;
use crate::governor::Governor;
use crate::xattr::Xattrs;

/// The inode number of the root.
pub(crate) const ROOT: u32 = 0;

/// Flag: the layer states the metadata.
pub(crate) const STATED: u8 = 1;
/// Flag: a directory that hides the content of lower ones.
pub(crate) const OPAQUE: u8 = 2;
/// Flag: a directory that was replaced, with everything in it.
pub(crate) const REPLACED: u8 = 4;
/// Flag: a directory whose lower ones are deleted.
pub(crate) const NO_LOWER: u8 = 8;
/// Flag: a directory that is stated, or that contains more than whiteouts.
pub(crate) const HAS_CONTENT: u8 = 16;
/// Flag: a whiteout in the lowest layer, which is not written.
pub(crate) const ABSENT: u8 = 32;
/// Flag: a directory with a default access control list, which new children inherit.
pub(crate) const DEFAULT_ACL: u8 = 64;
/// Flag: a file whose data is in the layer's tar, and not in the image.
pub(crate) const IN_TAR: u8 = 128;

/// The location of a file's data: the first block, of the image or of the layer's tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DataPlace {
    Image(u32),
    Tar(u32),
}

/// An inode under construction. The meaning of two fields depends on its type:
///
/// | | `size` | `place` |
/// |---|---|---|
/// | file | bytes | first block |
/// | directory | index of its name, later bytes | parent, later first block |
/// | symbolic link | bytes of the target | start of the target in the arena |
/// | device | 0 | device number |
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inode {
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) place: u32,
    /// The number of a set of [`Xattrs`].
    pub(crate) xattrs: u32,
    /// The number of names.
    pub(crate) links: u32,
    /// The node ID, once it is known.
    pub(crate) node: u32,
    /// Type and permissions.
    pub(crate) mode: u16,
    pub(crate) flags: u8,
}

impl Inode {
    pub(crate) fn file_type(&self) -> u16 {
        self.mode & mode::TYPE
    }

    pub(crate) fn is_directory(&self) -> bool {
        self.file_type() == mode::DIRECTORY
    }

    /// Returns whether this is a character device 0:0, which overlayfs treats as a whiteout.
    pub(crate) fn is_null_device(&self) -> bool {
        self.file_type() == mode::CHARACTER && self.place == 0
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Returns a directory that no layer states. It has the metadata that containerd gives it, except
    /// for the time, which must not be the time of unpacking.
    pub(crate) fn implicit(parent: u32) -> Self {
        Self {
            size: 0,
            mtime: Time::default(),
            uid: 0,
            gid: 0,
            place: parent,
            xattrs: 0,
            links: 0,
            node: 0,
            mode: mode::DIRECTORY | 0o755,
            flags: 0,
        }
    }
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Name {
    pub(crate) directory: u32,
    pub(crate) inode: u32,
    /// The first byte in the arena.
    start: u32,
    /// Bytes of the name.
    length: u8,
    /// Whether the layer has a whiteout of this name, also if another entry replaced it.
    is_deleted: bool,
}

/// A directory and its parent.
pub(crate) type Child = (u32, u32);

/// A directory to visit, and the length of its parent's path.
pub(crate) type Pending = (u32, usize);

/// Bytes that each directory takes once all entries are added: for its names `.` and `..`, and while
/// the directories are walked.
const DIRECTORY: u64 = (2 * size_of::<Name>() + size_of::<Child>() + size_of::<Pending>()) as u64;

/// The tree of a layer, under construction.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) inodes: Vec<Inode>,
    pub(crate) names: Vec<Name>,
    pub(crate) xattrs: Xattrs,
    /// The memory that the tree may take.
    pub(crate) budget: ByteBudget,
    /// Names and targets of symbolic links, one after the other.
    arena: Vec<u8>,
    /// Indices of `names`, by directory and name.
    table: HashTable<u32>,
    hasher: RandomState,
    /// The lookups that paths of entries may take.
    pub(crate) lookups: LookupBudget,
    /// The last directory that was looked up: the next entry is usually in it, too.
    pub(crate) recent: Option<(Vec<u8>, u32)>,
    /// Whether there is no layer below.
    pub(crate) is_lowest: bool,
}

impl Tree {
    pub(crate) fn new(governor: Box<dyn Governor>) -> Self {
        Self {
            inodes: vec![Inode::implicit(ROOT)],
            names: Vec::new(),
            xattrs: Xattrs::default(),
            budget: ByteBudget::new(governor),
            arena: Vec::new(),
            table: HashTable::new(),
            hasher: RandomState::new(),
            lookups: LookupBudget::default(),
            recent: None,
            is_lowest: false,
        }
    }

    /// Called before each entry of the layer.
    pub(crate) fn begin_entry(&mut self) -> Result<(), Fault> {
        self.lookups.add_entry();
        self.budget.entry()
    }

    pub(crate) fn inode(&self, inode: u32) -> Option<&Inode> {
        self.inodes.get(inode as usize)
    }

    pub(crate) fn inode_mut(&mut self, inode: u32) -> Option<&mut Inode> {
        self.inodes.get_mut(inode as usize)
    }

    /// Returns whether an inode is a whiteout. In the lowest layer a device 0:0 is a device.
    pub(crate) fn is_whiteout(&self, inode: &Inode) -> bool {
        inode.is_null_device() && (!self.is_lowest || inode.has(ABSENT))
    }

    /// Returns the bytes of a name.
    pub(crate) fn name(&self, name: &Name) -> &[u8] {
        self.text(name.start, name.length.into())
    }

    /// Returns the name of a directory until all names are sealed; it is empty for the root.
    pub(crate) fn directory_name(&self, number: u32) -> &[u8] {
        let inode = self.inode(number).filter(|_| number != ROOT);
        let index = inode.and_then(|inode| usize::try_from(inode.size).ok());
        let name = index.and_then(|index| self.names.get(index));
        name.map_or(&[], |name| self.name(name))
    }

    /// Returns the target of a symbolic link.
    pub(crate) fn target(&self, link: &Inode) -> &[u8] {
        self.text(link.place, usize::try_from(link.size).unwrap_or(0))
    }

    /// Returns bytes of the arena.
    fn text(&self, start: u32, length: usize) -> &[u8] {
        let start = start as usize;
        self.arena.get(start..start + length).unwrap_or_default()
    }

    /// Stores bytes in the arena. Returns where they start.
    pub(crate) fn store(&mut self, bytes: &[u8]) -> Result<u32, Fault> {
        self.budget.grow(&mut self.arena, bytes.len())?;
        let end = u32::try_from(self.arena.len() + bytes.len());
        let most = || Fault::limit("bytes of names and links", u32::MAX.into());
        end.map_err(|_| most())?;
        let start = u32::try_from(self.arena.len()).unwrap_or(u32::MAX);
        self.arena.extend_from_slice(bytes);
        Ok(start)
    }

    /// Adds an inode. Returns its number.
    pub(crate) fn add_inode(&mut self, inode: Inode) -> Result<u32, Fault> {
        let number = next_number("inodes", self.inodes.len())?;
        if inode.is_directory() {
            self.budget.take(DIRECTORY)?;
        }
        self.budget.grow(&mut self.inodes, 1)?;
        self.inodes.push(inode);
        Ok(number)
    }

    /// Returns the index of a name.
    pub(crate) fn find(&self, directory: u32, name: &[u8]) -> Option<usize> {
        let found = self
            .table
            .find(self.hasher.hash_one((directory, name)), |index| {
                let entry = self.names.get(*index as usize);
                entry.is_some_and(|entry| entry.directory == directory && self.name(entry) == name)
            });
        found.map(|index| *index as usize)
    }

    /// Returns the inode of a name.
    pub(crate) fn lookup(&self, directory: u32, name: &[u8]) -> Option<u32> {
        self.inode_of(self.find(directory, name)?)
    }

    /// Returns the inode of the name with this index.
    pub(crate) fn inode_of(&self, index: usize) -> Option<u32> {
        self.names.get(index).map(|name| name.inode)
    }

    /// Gives an inode a name, and takes the name from the inode that had it.
    pub(crate) fn bind(&mut self, directory: u32, name: &[u8], inode: u32) -> Result<(), Fault> {
        let index = match self.find(directory, name) {
            Some(index) => index,
            None => self.add_name(directory, name, inode)?,
        };
        let new = self.inode(inode);
        let is_link = new.is_some_and(|inode| inode.file_type() == mode::SYMLINK);
        let is_whiteout = new.is_some_and(Inode::is_null_device) && !self.is_lowest;
        let Some(entry) = self.names.get_mut(index) else {
            return Ok(());
        };
        let before = std::mem::replace(&mut entry.inode, inode);
        let is_deleted = entry.is_deleted || is_whiteout;
        let mut changes_paths = is_link;
        if before != inode
            && let Some(before) = self.inode_mut(before)
        {
            if before.is_directory() {
                before.flags |= REPLACED;
            }
            changes_paths |= matches!(before.file_type(), mode::DIRECTORY | mode::SYMLINK);
        }
        if changes_paths {
            self.recent = None;
        }
        if let Some(inode) = self.inode_mut(inode)
            && inode.is_directory()
        {
            (inode.place, inode.size) = (directory, index as u64);
        }
        if is_deleted {
            self.delete_lower(index);
        }
        Ok(())
    }

    /// Deletes a name in the lower layers. What this layer has at the name stays; if it is a directory,
    /// now or later, it hides the lower ones.
    pub(crate) fn delete_lower(&mut self, index: usize) {
        let Some(entry) = self.names.get_mut(index) else {
            return;
        };
        entry.is_deleted = true;
        let number = entry.inode;
        if let Some(inode) = self.inode_mut(number)
            && inode.is_directory()
        {
            inode.flags |= OPAQUE | NO_LOWER;
        }
    }

    /// Refuses a directory whose new children would inherit an access control list.
    pub(crate) fn check_default_acl(&self, directory: u32) -> Result<(), Fault> {
        let inode = self.inode(directory);
        match inode.is_some_and(|inode| inode.has(DEFAULT_ACL) && directory != ROOT) {
            true => Err(Fault::DefaultAcl),
            false => Ok(()),
        }
    }

    /// Records that a directory has content, and so have its parents.
    pub(crate) fn mark_content(&mut self, mut directory: u32) {
        while let Some(inode) = self.inode_mut(directory)
            && !inode.has(HAS_CONTENT)
        {
            inode.flags |= HAS_CONTENT;
            directory = inode.place;
        }
    }

    fn add_name(&mut self, directory: u32, name: &[u8], inode: u32) -> Result<usize, Fault> {
        let number = next_number("names", self.names.len())?;
        let length = u8::try_from(name.len()).map_err(|_| Fault::limit("bytes of a name", 255))?;
        let start = self.store(name)?;
        let index = self.names.len();
        self.budget.grow(&mut self.names, 1)?;
        if self.table.len() == self.table.capacity() {
            // The table doubles its size.
            self.budget
                .take(self.table.allocation_size().max(MIN_TABLE) as u64)?;
        }
        self.names.push(Name {
            directory,
            inode,
            start,
            length,
            is_deleted: false,
        });
        let Self {
            table,
            names,
            arena,
            hasher,
            ..
        } = self;
        let hash = |index: &u32| {
            let entry = names.get(*index as usize);
            let name = entry.and_then(|entry| {
                let start = entry.start as usize;
                Some((
                    entry.directory,
                    arena.get(start..start + usize::from(entry.length))?,
                ))
            });
            hasher.hash_one(name.unwrap_or_default())
        };
        table.insert_unique(hasher.hash_one((directory, name)), number, hash);
        Ok(index)
    }

    /// Marks the directories inside replaced and deleted ones. A deleted directory that contains only
    /// whiteouts becomes a whiteout: the lower layers have nothing there that shows.
    pub(crate) fn mark_replaced(&mut self) {
        // A directory comes after its parent.
        for index in 0..self.inodes.len() {
            let parent = self.inodes.get(index).filter(|inode| inode.is_directory());
            let parent = parent.and_then(|inode| self.inode(inode.place)).copied();
            if let (Some(parent), Some(inode)) = (parent, self.inodes.get_mut(index)) {
                inode.flags |= parent.flags & (REPLACED | NO_LOWER);
                if inode.has(NO_LOWER) && !inode.has(HAS_CONTENT | REPLACED) {
                    *inode = Inode {
                        mode: mode::CHARACTER,
                        flags: REPLACED,
                        ..Inode::implicit(0)
                    };
                }
            }
        }
    }

    /// Ends lookups. Drops the names in replaced directories, adds `.` and `..`, and orders all names by
    /// directory and name.
    pub(crate) fn seal(&mut self) -> Result<(), Fault> {
        self.table = HashTable::new();
        self.recent = None;
        let inodes = &self.inodes;
        let is_kept = |number: u32| {
            inodes
                .get(number as usize)
                .is_some_and(|inode| !inode.has(REPLACED))
        };
        let is_absent = |number: u32| {
            let inode = inodes.get(number as usize);
            inode.is_some_and(|inode| inode.has(ABSENT))
        };
        self.names
            .retain(|name| is_kept(name.directory) && !is_absent(name.inode));
        let start = self.store(b"..")?;
        let Self { inodes, names, .. } = self;
        let directories = inodes
            .iter()
            .zip(0..)
            .filter(|(inode, _)| inode.is_directory() && !inode.has(REPLACED));
        for (inode, number) in directories {
            for (target, length) in [(number, 1), (inode.place, 2)] {
                names.push(Name {
                    directory: number,
                    inode: target,
                    start,
                    length,
                    is_deleted: false,
                });
            }
        }
        let arena = &self.arena;
        let text = |name: &Name| {
            let start = name.start as usize;
            arena
                .get(start..start + usize::from(name.length))
                .unwrap_or_default()
        };
        self.names.sort_unstable_by(|left, right| {
            let directories = left.directory.cmp(&right.directory);
            directories.then_with(|| text(left).cmp(text(right)))
        });
        Ok(())
    }
}

/// Bytes of the smallest table.
const MIN_TABLE: usize = 64;

/// Returns the next number after `count`, if it is less than `u32::MAX`.
fn next_number(what: &'static str, count: usize) -> Result<u32, Fault> {
    let number = u32::try_from(count)
        .ok()
        .filter(|number| *number < u32::MAX);
    number.ok_or_else(|| Fault::limit(what, u32::MAX.into()))
}

/// Returns the permissions of a mode.
pub(crate) fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}
