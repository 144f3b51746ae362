// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A walk through the directory of a layer. Parents come before their children, the files of a directory
//! before its directories, all ordered by name. One directory is open at a time.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use resnap_layer::path::join;
use resnap_layer::{EntryKind, File, Metadata};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::below::{Below, Merged};
use super::data::FileData;
use super::fault::Fault;
use super::item::{Item, is_marker};
use super::layers::LayerDirectory;
use super::links::Links;
use super::listing::{FileName, Lister, Listing, NAME};
use super::metadata::{At, MetadataReader};
use super::place::Place;
use super::position::Position;
use super::stated::{State, Time, state};
use crate::beneath::open_beneath;
use crate::copy_fault::{CopyFault, EntryFault};
use crate::error::StreamError;
use crate::guard::Guard;
use crate::inode::{is_whiteout, mtime};

/// A step of the walk.
enum Step {
    /// Walks through a directory; with the layers below whose parent of it shows.
    Enter(Vec<u8>, Vec<usize>),
    /// Returns an item.
    Return(Item),
}

/// A directory that is being walked through.
struct Current {
    fd: OwnedFd,
    path: Vec<u8>,
    /// The names of its files, in reverse order.
    names: Vec<FileName>,
}

/// A walk through the directory of a layer.
pub(crate) struct DirectoryWalk {
    layer: LayerDirectory,
    place: Place,
    device: u64,
    below: Below,
    guard: Guard,
    reader: MetadataReader,
    lister: Lister,
    /// The next step is the last.
    steps: Vec<Step>,
    ready: VecDeque<Item>,
    current: Option<Current>,
    links: Links,
    at: Position,
    /// Whether directories are returned as they are, once.
    is_plain: bool,
}

impl DirectoryWalk {
    /// Starts a walk through the layer at `index` of a chain.
    pub(super) fn new(
        chain: &[LayerDirectory],
        index: usize,
        guard: Guard,
    ) -> Result<Self, CopyFault> {
        let layer = chain.get(index).ok_or(CopyFault::NoLayer(index))?.clone();
        let device = fs::fstat(&layer.root)
            .map_err(|error| CopyFault::Chain(format!("the root of layer {index}: {error}")))?
            .st_dev;
        let below = chain.iter().take(index).rev();
        let below = Below::new(below.map(|layer| layer.root.clone()).collect());
        Ok(Self {
            steps: vec![Step::Enter(Vec::new(), below.all())],
            place: Place {
                index,
                snapshot: layer.name.clone(),
            },
            layer,
            device,
            below,
            guard,
            reader: MetadataReader::default(),
            lister: Lister::default(),
            ready: VecDeque::new(),
            current: None,
            links: Links::default(),
            at: Position::default(),
            is_plain: false,
        })
    }

    /// Makes the walk return every directory as it is, whatever is in the layers below.
    pub(super) fn set_plain(&mut self) {
        self.is_plain = true;
        self.steps = vec![Step::Enter(Vec::new(), Vec::new())];
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn path(&self) -> &[u8] {
        &self.at.path
    }

    /// Looks at the directories that layers below have, too, and at nothing else: no other can have been
    /// made without its parents. A copy looks at the rest, whose faults mean nothing for other layers.
    pub(super) fn inspect(mut self) -> Result<(), StreamError> {
        while let Some(step) = self.steps.pop() {
            if let Step::Enter(path, parents) = step {
                self.guard.give_memory(size_of_step(&path, &parents));
                let inspected = self.inspect_directory(path, &parents);
                inspected.map_err(|fault| self.place.error(&self.at.path, fault))?;
            }
        }
        Ok(())
    }

    fn inspect_directory(&mut self, path: Vec<u8>, parents: &[usize]) -> Result<(), Fault> {
        let merged = self.merge(&path, parents)?;
        if merged.layers.is_empty() {
            return Ok(());
        }
        self.enter(path, merged)?;
        let names = self.current.take().map(|current| current.names);
        for name in names.unwrap_or_default() {
            self.guard.give_memory(NAME + name.name.len() as u64);
        }
        self.ready.clear();
        Ok(())
    }

    /// Returns the next item, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Item>, Fault> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            if let Some(current) = &mut self.current {
                let Some(name) = current.names.pop() else {
                    self.current = None;
                    continue;
                };
                self.guard.give_memory(NAME + name.name.len() as u64);
                return self.file(&name);
            }
            match self.steps.pop() {
                None => return Ok(None),
                Some(Step::Return(item)) => return Ok(Some(item)),
                Some(Step::Enter(path, parents)) => {
                    self.guard.give_memory(size_of_step(&path, &parents));
                    let merged = self.merge(&path, &parents)?;
                    self.enter(path, merged)?;
                }
            }
        }
    }

    fn is_mounted(&self, stat: &Stat) -> Result<(), Fault> {
        match stat.st_dev == self.device {
            true => Ok(()),
            false => Err(EntryFault::Mounted.into()),
        }
    }

    /// Goes to a directory, and looks it up in the layers below.
    fn merge(&mut self, path: &[u8], parents: &[usize]) -> Result<Merged, Fault> {
        self.at.go_to(path.to_vec(), &self.guard)?;
        self.guard.count_lookup(parents.len())?;
        Ok(self.below.merge(parents, path)?)
    }

    /// Enters a directory.
    fn enter(&mut self, path: Vec<u8>, merged: Merged) -> Result<(), Fault> {
        let fd = open_beneath(&self.layer.root, &path)?;
        let stat = fs::fstat(&fd)?;
        self.is_mounted(&stat)?;
        let (own, is_opaque) = self.reader.read(&At::Open(&fd), &stat)?;
        let listing = self.lister.list(&fd, self.at.count, &self.guard)?;
        let Listing { files, directories } = listing;
        let is_empty = files.is_empty() && directories.is_empty();
        let makes_itself = is_empty && !is_opaque && !path.is_empty();
        let metadata = match self.is_plain {
            true => Some(own),
            false => self.stated(own, &stat, &merged, makes_itself)?,
        };
        if let Some(metadata) = metadata {
            let has_content = !(is_empty || self.is_plain);
            let (before, after) = Item::directory(path.clone(), metadata, has_content);
            self.ready.push_back(before);
            self.steps.extend(after.map(Step::Return));
        }
        if is_opaque {
            self.ready.push_back(Item::opaque(path.clone()));
        }
        let shown = match is_opaque && !path.is_empty() {
            true => Vec::new(),
            false => merged.layers,
        };
        for name in directories.into_iter().rev() {
            let child = join(&path, &name);
            self.guard.give_memory(NAME + name.len() as u64);
            self.guard.take_memory(size_of_step(&child, &shown))?;
            self.steps.push(Step::Enter(child, shown.clone()));
        }
        let names = files.into_iter().rev().collect();
        self.current = Some(Current { fd, path, names });
        Ok(())
    }

    /// Returns the entry of a directory in the layer, if it has one. `is_empty` is whether nothing in the
    /// layer makes the directory.
    fn stated(
        &mut self,
        own: Metadata,
        stat: &Stat,
        merged: &Merged,
        is_empty: bool,
    ) -> Result<Option<Metadata>, Fault> {
        let below = match &merged.top {
            Some(top) => Some(self.reader.read(&At::Open(top), &fs::fstat(top)?)?.0),
            None => None,
        };
        let time = Time {
            modified: own.mtime,
            changed: resnap_layer::Time {
                seconds: stat.st_ctime,
                nanoseconds: u32::try_from(stat.st_ctime_nsec).unwrap_or_default(),
            },
            created: self.layer.since,
        };
        Ok(match state(own, below, time, is_empty)? {
            State::Stated(metadata) => Some(metadata),
            State::Unstated => None,
        })
    }

    /// Returns the file of this name in the current directory.
    fn file(&mut self, name: &FileName) -> Result<Option<Item>, Fault> {
        let FileName { name, is_regular } = name;
        let parent = self.current.as_ref().map(|current| &current.path[..]);
        self.at
            .go_to(join(parent.unwrap_or_default(), name), &self.guard)?;
        let Some(Current { fd, .. }) = &self.current else {
            return Ok(None);
        };
        let file = match is_regular {
            true => Some(open(fd, name)?),
            false => None,
        };
        let stat = match &file {
            Some(file) => fs::fstat(file)?,
            None => fs::statat(fd, &name[..], AtFlags::SYMLINK_NOFOLLOW)?,
        };
        self.is_mounted(&stat)?;
        if is_whiteout(&stat) {
            return Ok(Some(Item::whiteout(self.at.path.clone())?));
        }
        if is_marker(name) {
            return Err(EntryFault::Name.into());
        }
        let at = match &file {
            Some(file) => At::Open(file),
            None => At::name(fd, name),
        };
        let (metadata, _) = self.reader.read(&at, &stat)?;
        let (kind, data) = match file {
            Some(file) => regular(file, &stat)?,
            None => (other(fd, name, &stat)?, None),
        };
        let links = (stat.st_nlink > 1).then_some(stat.st_ino);
        let (kind, data) = match self.links.find(links, &self.at.path, &self.guard)? {
            Some(first) => (EntryKind::Hardlink(first), None),
            None => (kind, data),
        };
        let mut item = Item::new(self.at.path.clone(), kind, metadata);
        item.data = data;
        Ok(Some(item))
    }
}

/// Opens a regular file, and does not wait if it is another by now.
fn open(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd, Fault> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let open = |more| fs::openat(parent, name, flags | more, Mode::empty());
    // Only the owner of a file may leave its access time alone.
    match open(OFlags::NOATIME) {
        Err(Errno::PERM) => Ok(open(OFlags::empty())?),
        opened => Ok(opened?),
    }
}

/// Returns the type and the data of an open file.
fn regular(file: OwnedFd, stat: &Stat) -> Result<(EntryKind, Option<FileData>), Fault> {
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(EntryFault::Changed.into());
    }
    let size = u64::try_from(stat.st_size).unwrap_or_default();
    let stored = u64::try_from(stat.st_blocks).unwrap_or_default();
    let data = FileData {
        file: Arc::new(file.into()),
        start: 0,
        size,
        may_have_holes: stored.saturating_mul(512) < size,
        modified: Some(mtime(stat)),
    };
    let extents = None;
    let kind = EntryKind::File(File { size, extents });
    Ok((kind, (size > 0).then_some(data)))
}

/// Returns the type of an inode that is not a regular file.
fn other(parent: &OwnedFd, name: &[u8], stat: &Stat) -> Result<EntryKind, Fault> {
    let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => {
            let target = fs::readlinkat(parent, name, Vec::new())?;
            EntryKind::Symlink(target.into_bytes())
        }
        FileType::CharacterDevice => EntryKind::Character { major, minor },
        FileType::BlockDevice => EntryKind::Block { major, minor },
        FileType::Fifo => EntryKind::Fifo,
        _ => return Err(EntryFault::Changed.into()),
    })
}

fn size_of_step(path: &[u8], layers: &[usize]) -> u64 {
    NAME + path.len() as u64 + size_of_val(layers) as u64
}
