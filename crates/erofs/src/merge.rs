// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One image with the merged tree of several.

use std::collections::HashMap;
use std::io::{self, Seek, Write};

use resnap_layer::Limits;

use crate::error::{Error, Fault};
use crate::format::{NO_BLOCK, mode};
use crate::governor::Governor;
use crate::image::Node;
use crate::layout::{self, Summary};
use crate::output::Output;
use crate::overlay::{check, visible};
use crate::reader::ErofsReader;
use crate::source::{ImageError, ReadAt};
use crate::tree::{Inode, ROOT, STATED, Tree};
use crate::union::{Shared, Union};

/// Bytes of a file that are copied at once.
const COPY: usize = 1 << 20;

/// Bytes that an inode with several names takes, with the free space of a table.
const LINK: u64 = 72;

/// Writes an image with the merged tree of the images of layers, the lowest first, as overlayfs shows it.
///
/// `target` is a new and empty file at position 0. The same trees and UUID always give the same bytes, also
/// from images of other writers.
///
/// | in the layers | in the image |
/// |---|---|
/// | a whiteout (a character device 0:0, in any layer) | absent, with what it hides |
/// | directories of the same name, down to an opaque one | a directory with all names and the metadata of the topmost |
/// | anything else | hides what is below |
/// | names of the same inode of a layer | those that are left are names of the same inode |
/// | attributes `trusted.*` | left out |
/// | attributes `trusted.overlay.*` that change what is shown, except `opaque` with the value `y` | an error |
/// | blocks of zeros in files | holes of the image's file |
/// | compressed data | an error |
///
/// The limits are those of [`Writer`](crate::Writer); a path has at most 4095 bytes, and each image on average
/// four million names, because a hostile image may have loops. Files of a hostile image may share data that the
/// new image has for each of them: only the format limits it, to 16 TiB, and an error from `target`.
///
/// # Errors
///
/// An image is malformed or cannot be read, the new one would exceed a limit, or `target` cannot be written.
pub fn merge<R: ReadAt, W: Write + Seek>(
    mut layers: Vec<ErofsReader<R>>,
    target: W,
    governor: Box<dyn Governor>,
    uuid: [u8; 16],
) -> Result<(W, Summary), Error> {
    layers.reverse();
    let mut merge = Merge {
        images: &layers,
        output: Output::new(target).map_err(Error::Write)?,
        tree: Tree::new(governor),
        links: HashMap::new(),
        todo: Vec::new(),
        path: Vec::new(),
        names: 0,
        buffer: Vec::new(),
    };
    if let Err(failure) = merge.run() {
        return Err(match failure {
            Failure::Write(error) => Error::Write(error),
            Failure::Entry(fault) => Error::Entry {
                path: merge.path,
                fault,
            },
            Failure::Image((index, source)) => Error::Entry {
                path: merge.path,
                fault: Fault::Layer {
                    number: layers.len() - index,
                    source,
                },
            },
        });
    }
    layout::write(merge.output, merge.tree, uuid, None)
}

/// The reason why an image is not written.
enum Failure {
    Write(io::Error),
    /// A fault at the current path.
    Entry(Fault),
    /// An error at the current path, of the image with an index.
    Image((usize, ImageError)),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Entry(fault)
    }
}

impl From<(usize, ImageError)> for Failure {
    fn from(error: (usize, ImageError)) -> Self {
        Self::Image(error)
    }
}

/// A directory whose names are not added yet.
struct Directory {
    number: u32,
    /// Bytes of its parent's path.
    parent: usize,
    /// The node IDs of the directories that are merged, with the indices of their images.
    parts: Vec<(usize, u64)>,
}

/// An image under construction.
struct Merge<'a, R, W> {
    /// The images, the topmost first.
    images: &'a [ErofsReader<R>],
    output: Output<W>,
    tree: Tree,
    /// The inodes of nodes that have several names.
    links: HashMap<(usize, u64), u32>,
    /// The next directory is the last.
    todo: Vec<Directory>,
    path: Vec<u8>,
    /// The number of names that were read.
    names: usize,
    buffer: Vec<u8>,
}

impl<R: ReadAt, W: Write + Seek> Merge<'_, R, W> {
    fn run(&mut self) -> Result<(), Failure> {
        let mut parts = Vec::new();
        for (index, image) in self.images.iter().enumerate() {
            let root = image.root().map_err(|error| (index, error))?;
            if !root.is_directory() {
                return Err((index, root.corrupt("root directory")).into());
            }
            if index == 0 {
                let root = self.inode(index, image, &root)?;
                self.tree.inodes = vec![root];
            }
            parts.push((index, root.id));
        }
        self.todo.push(Directory {
            number: ROOT,
            parent: 0,
            parts,
        });
        while let Some(directory) = self.todo.pop() {
            self.directory(&directory)?;
        }
        Ok(())
    }

    /// Adds the names in a directory.
    fn directory(&mut self, directory: &Directory) -> Result<(), Failure> {
        self.path.truncate(directory.parent);
        push(&mut self.path, self.tree.directory_name(directory.number));
        let (images, first) = (self.images, self.todo.len());
        let parts = nodes(images, &directory.parts).collect::<Result<Vec<_>, _>>()?;
        let mut names = Union::new(images, &parts)?;
        while let Some(Shared { name, nodes: ids }) = names.next()? {
            let length = self.path.len();
            push(&mut self.path, &name);
            self.check_limits(ids.len())?;
            let shown = visible(images, nodes(images, &ids))?;
            self.add(directory.number, (&name, length), &shown)?;
            self.path.truncate(length);
        }
        self.todo.get_mut(first..).unwrap_or_default().reverse();
        Ok(())
    }

    /// Counts names that were read.
    fn check_limits(&mut self, names: usize) -> Result<(), Fault> {
        self.tree.budget.entry()?;
        let limits = Limits::default();
        if self.path.len() > limits.path {
            return Err(Fault::limit("bytes of a path", limits.path as u64));
        }
        self.names += names;
        let limit = limits.entries.saturating_mul(self.images.len());
        match self.names > limit {
            true => Err(Fault::limit("names in all images", limit as u64)),
            false => Ok(()),
        }
    }

    /// Adds a name to a directory, whose path has `length` bytes.
    fn add(
        &mut self,
        directory: u32,
        (name, length): (&[u8], usize),
        shown: &[(usize, Node)],
    ) -> Result<(), Failure> {
        let Some((index, node)) = shown.first() else {
            return Ok(());
        };
        let Some(image) = self.images.get(*index) else {
            return Ok(());
        };
        let key = (*index, node.id);
        let has_links = node.links > 1 && !node.is_directory();
        if let Some(number) = self.links.get(&key).filter(|_| has_links) {
            return Ok(self.tree.bind(directory, name, *number)?);
        }
        let inode = self.inode(*index, image, node)?;
        let number = self.tree.add_inode(inode)?;
        self.tree.bind(directory, name, number)?;
        if has_links {
            self.tree.budget.take(LINK)?;
            self.links.insert(key, number);
        }
        if node.is_directory() {
            let parts: Vec<_> = shown
                .iter()
                .map(|(index, node)| (*index, node.id))
                .collect();
            let bytes = size_of::<Directory>() + size_of_val(&parts[..]);
            self.tree.budget.take(bytes as u64)?;
            self.todo.push(Directory {
                number,
                parent: length,
                parts,
            });
        }
        Ok(())
    }

    /// Returns the inode of a node, whose data is copied.
    fn inode(
        &mut self,
        index: usize,
        image: &ErofsReader<R>,
        node: &Node,
    ) -> Result<Inode, Failure> {
        let metadata = image.metadata(node).map_err(|error| (index, error))?;
        check(&metadata.xattrs)?;
        let Tree { xattrs, budget, .. } = &mut self.tree;
        let xattrs = xattrs.encode(&metadata.xattrs, node.inode.mode, budget)?;
        let (size, place) = match node.inode.mode & mode::TYPE {
            mode::FILE if node.size > 0 => (node.size, self.data(index, image, node)?),
            mode::FILE => (0, NO_BLOCK),
            mode::SYMLINK => {
                let target = target(image, node).map_err(|error| (index, error))?;
                (target.len() as u64, self.tree.store(&target)?)
            }
            mode::CHARACTER | mode::BLOCK => (0, node.inode.place),
            mode::DIRECTORY | mode::FIFO | mode::SOCKET => (0, 0),
            _ => return Err((index, node.corrupt("type of an inode")).into()),
        };
        Ok(Inode {
            size,
            mtime: node.mtime,
            uid: node.uid,
            gid: node.gid,
            place,
            xattrs,
            links: 0,
            node: 0,
            mode: node.inode.mode,
            flags: STATED,
        })
    }

    /// Copies the data of a file. Returns its first block.
    fn data(&mut self, index: usize, image: &ErofsReader<R>, file: &Node) -> Result<u32, Failure> {
        self.output.align()?;
        let start = self.output.position();
        let block = self.output.block.address(start, file.size)?;
        let wanted = usize::try_from(file.size).map_or(COPY, |size| size.min(COPY));
        self.buffer.resize(self.buffer.len().max(wanted), 0);
        let mut at = 0;
        while at < file.size {
            let hole = image.hole(file, at).map_err(|error| (index, error))?;
            if hole > 0 {
                self.output.hole(hole)?;
                at += hole;
                continue;
            }
            let read = image.read(file, at, &mut self.buffer);
            let read = read.map_err(|error| (index, error))?;
            let bytes = self.buffer.get(..read).unwrap_or_default();
            self.output.put_sparse(bytes)?;
            at += read as u64;
        }
        Ok(block)
    }
}

/// Reads nodes of images by their IDs.
fn nodes<R: ReadAt>(
    images: &[ErofsReader<R>],
    ids: &[(usize, u64)],
) -> impl Iterator<Item = Result<(usize, Node), (usize, ImageError)>> {
    ids.iter().filter_map(|(index, id)| {
        let node = images.get(*index)?.node(*id);
        Some(
            node.map(|node| (*index, node))
                .map_err(|error| (*index, error)),
        )
    })
}

/// Reads the target of a symbolic link.
fn target<R: ReadAt>(image: &ErofsReader<R>, link: &Node) -> Result<Vec<u8>, ImageError> {
    let size = usize::try_from(link.size).ok();
    let size = size.filter(|size| (1..=Limits::default().path).contains(size));
    let mut target = vec![0; size.ok_or_else(|| link.corrupt("symbolic link"))?];
    image.read(link, 0, &mut target)?;
    Ok(target)
}

/// Appends a name to a path.
fn push(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() && !name.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}
