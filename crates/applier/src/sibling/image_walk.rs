// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A walk through the EROFS image of a layer.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::Arc;
use std::vec::IntoIter;

use resnap_erofs::{ErofsReader, Node};
use resnap_layer::path::join;
use resnap_layer::{EntryKind, Limits, Metadata};
use rustix::fs::{FileType, major, minor};

use super::data::FileData;
use super::fault::Fault;
use super::item::{Item, is_marker};
use super::layers::LayerImage;
use super::links::Links;
use super::listing::NAME;
use super::metadata::copied;
use super::place::Place;
use super::position::Position;
use super::window::Window;
use crate::copy_fault::{CopyFault, EntryFault};
use crate::guard::Guard;

/// The smallest file that may have holes worth looking for.
const MAY_HAVE_HOLES: u64 = 64 * 1024;

/// A step of the walk.
enum Step {
    /// Walks through a directory.
    Enter(Vec<u8>, Node),
    /// Returns an item.
    Return(Item),
}

/// A walk through the EROFS image of a layer.
pub(crate) struct ImageWalk {
    file: Arc<File>,
    image: ErofsReader<Window>,
    place: Place,
    guard: Guard,
    /// The next step is the last.
    steps: Vec<Step>,
    ready: VecDeque<Item>,
    /// The files of the current directory, and its path.
    files: IntoIter<(Vec<u8>, Node)>,
    parent: Vec<u8>,
    links: Links,
    at: Position,
    /// Whether directories are returned as they are, once.
    pub(super) is_plain: bool,
}

impl ImageWalk {
    /// Starts a walk through the layer at `index` of a chain.
    pub(super) fn new(chain: &[LayerImage], index: usize, guard: Guard) -> Result<Self, CopyFault> {
        let layer = chain.get(index).ok_or(CopyFault::NoLayer(index))?;
        let place = Place {
            index,
            snapshot: layer.name.clone(),
        };
        let file = Arc::clone(&layer.file);
        let opened = ErofsReader::open(Window::new(Arc::clone(&file)));
        let opened = opened.and_then(|image| Ok((image.root()?, image)));
        let (root, image) = opened.map_err(|error| CopyFault::Image {
            snapshot: layer.name.clone(),
            error,
        })?;
        Ok(Self {
            file,
            image,
            place,
            guard,
            steps: vec![Step::Enter(Vec::new(), root)],
            ready: VecDeque::new(),
            files: Vec::new().into_iter(),
            parent: Vec::new(),
            links: Links::default(),
            at: Position::default(),
            is_plain: false,
        })
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    pub(super) fn path(&self) -> &[u8] {
        &self.at.path
    }

    /// Returns the next item, or `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<Item>, Fault> {
        loop {
            if let Some(item) = self.ready.pop_front() {
                return Ok(Some(item));
            }
            if let Some((name, node)) = self.files.next() {
                self.guard.give_memory(NAME + name.len() as u64);
                return self.file(&name, &node).map(Some);
            }
            match self.steps.pop() {
                None => return Ok(None),
                Some(Step::Return(item)) => return Ok(Some(item)),
                Some(Step::Enter(path, node)) => {
                    self.guard.give_memory(NAME + path.len() as u64);
                    self.enter(path, &node)?;
                }
            }
        }
    }

    /// Enters a directory.
    fn enter(&mut self, path: Vec<u8>, directory: &Node) -> Result<(), Fault> {
        self.at.go_to(path.clone(), &self.guard)?;
        let (metadata, is_opaque) = self.metadata(directory)?;
        let (mut files, mut directories) = (Vec::new(), Vec::new());
        for entry in self.image.entries(directory) {
            let name = entry?;
            let node = self.image.node(name.id)?;
            // The image may have loops.
            if self.at.count + files.len() + directories.len() > Limits::default().entries {
                return Err(EntryFault::Count(Limits::default().entries).into());
            }
            match node.is_directory() {
                true => {
                    let path = join(&path, &name.name);
                    self.guard.take_memory(NAME + path.len() as u64)?;
                    directories.push(Step::Enter(path, node));
                }
                false => {
                    self.guard.take_memory(NAME + name.name.len() as u64)?;
                    files.push((name.name, node));
                }
            }
        }
        let has_content = !(self.is_plain || files.is_empty() && directories.is_empty());
        let (before, after) = Item::directory(path.clone(), metadata, has_content);
        self.ready.push_back(before);
        if is_opaque {
            self.ready.push_back(Item::opaque(path.clone()));
        }
        self.steps.extend(after.map(Step::Return));
        self.steps.extend(directories.into_iter().rev());
        (self.parent, self.files) = (path, files.into_iter());
        Ok(())
    }

    fn metadata(&self, node: &Node) -> Result<(Metadata, bool), Fault> {
        let mut metadata = self.image.metadata(node)?;
        let is_opaque = copied(&mut metadata)?;
        Ok((metadata, is_opaque))
    }

    /// Returns the file of this name in the current directory.
    fn file(&mut self, name: &[u8], node: &Node) -> Result<Item, Fault> {
        self.at.go_to(join(&self.parent, name), &self.guard)?;
        if node.is_whiteout() {
            return Ok(Item::whiteout(self.at.path.clone())?);
        }
        if is_marker(name) {
            return Err(EntryFault::Name.into());
        }
        let (metadata, _) = self.metadata(node)?;
        let links = (node.links > 1).then_some(node.id);
        if let Some(first) = self.links.find(links, &self.at.path, &self.guard)? {
            let kind = EntryKind::Hardlink(first);
            return Ok(Item::new(self.at.path.clone(), kind, metadata));
        }
        let device = node.device().unwrap_or_default().into();
        let (major, minor) = (major(device), minor(device));
        let mut data = None;
        let kind = match FileType::from_raw_mode(node.mode) {
            FileType::RegularFile => {
                data = self.data(node)?;
                let (size, extents) = (node.size, None);
                EntryKind::File(resnap_layer::File { size, extents })
            }
            FileType::Symlink => EntryKind::Symlink(self.target(node)?),
            FileType::CharacterDevice => EntryKind::Character { major, minor },
            FileType::BlockDevice => EntryKind::Block { major, minor },
            FileType::Fifo => EntryKind::Fifo,
            // No layer has sockets.
            _ => return Err(EntryFault::Changed.into()),
        };
        let mut item = Item::new(self.at.path.clone(), kind, metadata);
        item.data = data;
        Ok(item)
    }

    fn data(&self, node: &Node) -> Result<Option<FileData>, Fault> {
        if node.size == 0 {
            return Ok(None);
        }
        Ok(Some(FileData {
            file: Arc::clone(&self.file),
            start: self.image.position(node)?,
            size: node.size,
            may_have_holes: node.size > MAY_HAVE_HOLES,
            modified: None,
        }))
    }

    fn target(&self, link: &Node) -> Result<Vec<u8>, Fault> {
        let limit = Limits::default().path;
        let size = usize::try_from(link.size).ok();
        let size = size.filter(|size| *size <= limit);
        let mut target = vec![0; size.ok_or(EntryFault::Path(limit))?];
        self.image.read(link, 0, &mut target)?;
        Ok(target)
    }
}
