// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The tree of a layer in memory: 56 bytes an inode, about 35 and the name itself for each name, and
//! a quarter of that.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use resnap_layer::{Time, way};

use crate::error::Fault;
use crate::format::mode;
use crate::room::{Governor, Room};
use crate::xattr::Xattrs;

mod add;
mod path;
mod walk;

pub(crate) use walk::Walk;

/// The root's inode.
pub(crate) const ROOT: u32 = 0;

/// The layer states its metadata.
pub(crate) const STATED: u8 = 1;
/// A directory that hides the content of lower ones.
pub(crate) const OPAQUE: u8 = 2;
/// A directory that was replaced, with all that is in it.
pub(crate) const DEAD: u8 = 4;
/// A directory that has no lower ones, as they are deleted.
pub(crate) const FRESH: u8 = 8;
/// A directory that is stated, or has something in it that is no whiteout.
pub(crate) const SOLID: u8 = 16;
/// What the lowest layer has and deletes.
const GONE: u8 = 32;
/// A directory that what is made in inherits an access control list of.
const DEFAULT: u8 = 64;

/// An inode under construction. What two of its fields mean depends on its type:
///
/// | | `size` | `place` |
/// |---|---|---|
/// | file | bytes | first block |
/// | directory | its name, later bytes | its parent, later first block |
/// | symbolic link | bytes of the target | the target in the arena |
/// | device | 0 | device number |
#[derive(Debug, Clone, Copy)]
pub(crate) struct Inode {
    pub(crate) size: u64,
    pub(crate) mtime: Time,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) place: u32,
    /// A set of [`Xattrs`].
    pub(crate) xattrs: u32,
    /// Names, later links.
    pub(crate) links: u32,
    /// The node ID, once it is known.
    pub(crate) node: u32,
    /// With the type.
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

    pub(crate) fn is_whiteout(&self) -> bool {
        self.file_type() == mode::CHARACTER && self.place == 0
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// A directory that no layer states: what containerd gives it, but for the time, which is not
    /// that of the unpacking.
    fn implicit(parent: u32) -> Self {
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
    start: u32,
    length: u8,
    /// The layer has a whiteout of this name, whatever became of it: what is below is deleted.
    is_deleted: bool,
}

/// Bytes that a directory takes once all entries are there: its names `.` and `..`, and its place in
/// a [`Walk`].
const DIRECTORY: u64 = 2 * size_of::<Name>() as u64 + walk::DIRECTORY;

/// The tree of a layer, under construction.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) inodes: Vec<Inode>,
    pub(crate) names: Vec<Name>,
    pub(crate) xattrs: Xattrs,
    /// For all bytes that are kept.
    pub(crate) room: Room,
    /// Names and targets, one after the other.
    arena: Vec<u8>,
    /// From directory and name to the index in `names`.
    table: HashTable<u32>,
    hasher: RandomState,
    /// Names that may be looked up on ways.
    ways: way::Budget,
    /// The directory that was asked for last: the next entry is mostly in it, too.
    recent: Option<(Vec<u8>, u32)>,
    /// There is no layer below.
    pub(crate) is_lowest: bool,
}

impl Tree {
    pub(crate) fn new(governor: Box<dyn Governor>) -> Self {
        Self {
            inodes: vec![Inode::implicit(ROOT)],
            names: Vec::new(),
            xattrs: Xattrs::default(),
            room: Room::new(governor),
            arena: Vec::new(),
            table: HashTable::new(),
            hasher: RandomState::new(),
            ways: way::Budget::default(),
            recent: None,
            is_lowest: false,
        }
    }

    pub(crate) fn ways(&self) -> way::Budget {
        self.ways
    }

    /// Begins with another entry of the layer.
    pub(crate) fn begin(&mut self) -> Result<(), Fault> {
        self.ways.entry();
        self.room.entry()
    }

    pub(crate) fn inode(&self, inode: u32) -> Option<&Inode> {
        self.inodes.get(inode as usize)
    }

    pub(crate) fn inode_mut(&mut self, inode: u32) -> Option<&mut Inode> {
        self.inodes.get_mut(inode as usize)
    }

    /// Whether an inode says that there is nothing. In the lowest layer a device 0:0 is a device.
    fn is_nothing(&self, inode: &Inode) -> bool {
        inode.is_whiteout() && (!self.is_lowest || inode.has(GONE))
    }

    /// The bytes of a name.
    pub(crate) fn name(&self, name: &Name) -> &[u8] {
        self.text(name.start, name.length.into())
    }

    /// The target of a symbolic link.
    pub(crate) fn target(&self, link: &Inode) -> &[u8] {
        self.text(link.place, usize::try_from(link.size).unwrap_or(0))
    }

    /// Bytes of the arena.
    fn text(&self, start: u32, length: usize) -> &[u8] {
        let start = start as usize;
        self.arena.get(start..start + length).unwrap_or_default()
    }

    /// Puts bytes into the arena.
    pub(crate) fn keep(&mut self, bytes: &[u8]) -> Result<u32, Fault> {
        self.room.grow(&mut self.arena, bytes.len())?;
        let end = u32::try_from(self.arena.len() + bytes.len());
        let most = || Fault::limit("bytes of names and links", u32::MAX.into());
        end.map_err(|_| most())?;
        let start = u32::try_from(self.arena.len()).unwrap_or(u32::MAX);
        self.arena.extend_from_slice(bytes);
        Ok(start)
    }

    pub(crate) fn add_inode(&mut self, inode: Inode) -> Result<u32, Fault> {
        let number = number("inodes", self.inodes.len())?;
        if inode.is_directory() {
            self.room.take(DIRECTORY)?;
        }
        self.room.grow(&mut self.inodes, 1)?;
        self.inodes.push(inode);
        Ok(number)
    }

    /// The index of this name.
    fn find(&self, directory: u32, name: &[u8]) -> Option<usize> {
        let found = self
            .table
            .find(self.hasher.hash_one((directory, name)), |index| {
                let entry = self.names.get(*index as usize);
                entry.is_some_and(|entry| entry.directory == directory && self.name(entry) == name)
            });
        found.map(|index| *index as usize)
    }

    /// The inode of this name.
    pub(crate) fn lookup(&self, directory: u32, name: &[u8]) -> Option<u32> {
        self.named(self.find(directory, name)?)
    }

    /// The inode of the name with this index.
    fn named(&self, index: usize) -> Option<u32> {
        self.names.get(index).map(|name| name.inode)
    }

    /// Gives an inode a name. What had the name before has it no longer.
    pub(crate) fn bind(&mut self, directory: u32, name: &[u8], inode: u32) -> Result<(), Fault> {
        let index = match self.find(directory, name) {
            Some(index) => index,
            None => self.add_name(directory, name, inode)?,
        };
        let new = self.inode(inode);
        let is_link = new.is_some_and(|inode| inode.file_type() == mode::SYMLINK);
        let is_whiteout = new.is_some_and(Inode::is_whiteout) && !self.is_lowest;
        let Some(entry) = self.names.get_mut(index) else {
            return Ok(());
        };
        let before = std::mem::replace(&mut entry.inode, inode);
        let is_deleted = entry.is_deleted || is_whiteout;
        let mut is_way_changed = is_link;
        if before != inode
            && let Some(before) = self.inode_mut(before)
        {
            if before.is_directory() {
                before.flags |= DEAD;
            }
            is_way_changed |= matches!(before.file_type(), mode::DIRECTORY | mode::SYMLINK);
        }
        if is_way_changed {
            self.recent = None;
        }
        if let Some(inode) = self.inode_mut(inode)
            && inode.is_directory()
        {
            (inode.place, inode.size) = (directory, index as u64);
        }
        if is_deleted {
            self.delete(index);
        }
        Ok(())
    }

    /// Deletes what lower layers have of this name. The layer's own stays; a directory of the name,
    /// this or a later one, hides what is below.
    fn delete(&mut self, index: usize) {
        let Some(entry) = self.names.get_mut(index) else {
            return;
        };
        entry.is_deleted = true;
        let number = entry.inode;
        if let Some(inode) = self.inode_mut(number)
            && inode.is_directory()
        {
            inode.flags |= OPAQUE | FRESH;
        }
    }

    /// Refuses to make something in a directory that would inherit from it.
    fn inherit(&self, directory: u32) -> Result<(), Fault> {
        let inode = self.inode(directory);
        match inode.is_some_and(|inode| inode.has(DEFAULT) && directory != ROOT) {
            true => Err(Fault::Inherits),
            false => Ok(()),
        }
    }

    /// Notes that there is something in a directory, and so in those that it is in.
    fn fill(&mut self, mut directory: u32) {
        while let Some(inode) = self.inode_mut(directory)
            && !inode.has(SOLID)
        {
            inode.flags |= SOLID;
            directory = inode.place;
        }
    }

    fn add_name(&mut self, directory: u32, name: &[u8], inode: u32) -> Result<usize, Fault> {
        let number = number("names", self.names.len())?;
        let length = u8::try_from(name.len()).map_err(|_| Fault::limit("bytes of a name", 255))?;
        let start = self.keep(name)?;
        let index = self.names.len();
        self.room.grow(&mut self.names, 1)?;
        if self.table.len() == self.table.capacity() {
            // It gets twice as many places.
            self.room
                .take(self.table.allocation_size().max(TABLE) as u64)?;
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

    /// Marks all directories in those that were replaced or deleted. Those that are deleted and were
    /// made for the whiteouts in them become whiteouts: what is in them is gone anyway.
    pub(crate) fn bury(&mut self) {
        // A directory comes after the one that it is in.
        for index in 0..self.inodes.len() {
            let parent = self.inodes.get(index).filter(|inode| inode.is_directory());
            let parent = parent.and_then(|inode| self.inode(inode.place)).copied();
            if let (Some(parent), Some(inode)) = (parent, self.inodes.get_mut(index)) {
                inode.flags |= parent.flags & (DEAD | FRESH);
                if inode.has(FRESH) && !inode.has(SOLID | DEAD) {
                    *inode = Inode {
                        mode: mode::CHARACTER,
                        flags: DEAD,
                        ..Inode::implicit(0)
                    };
                }
            }
        }
    }

    /// Ends lookups: only names in living directories stay, with `.` and `..`, ordered by directory
    /// and then name.
    pub(crate) fn seal(&mut self) -> Result<(), Fault> {
        self.table = HashTable::new();
        self.recent = None;
        let inodes = &self.inodes;
        let lives = |number: u32| {
            inodes
                .get(number as usize)
                .is_some_and(|inode| !inode.has(DEAD))
        };
        let is_gone = |number: u32| {
            let inode = inodes.get(number as usize);
            inode.is_some_and(|inode| inode.has(GONE))
        };
        self.names
            .retain(|name| lives(name.directory) && !is_gone(name.inode));
        let start = self.keep(b"..")?;
        let Self { inodes, names, .. } = self;
        let directories = inodes
            .iter()
            .zip(0..)
            .filter(|(inode, _)| inode.is_directory() && !inode.has(DEAD));
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
const TABLE: usize = 64;

/// The number of the next of these; the last is none.
fn number(what: &'static str, count: usize) -> Result<u32, Fault> {
    let number = u32::try_from(count)
        .ok()
        .filter(|number| *number < u32::MAX);
    number.ok_or_else(|| Fault::limit(what, u32::MAX.into()))
}

/// The permissions of a mode.
pub(crate) fn permissions(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}
