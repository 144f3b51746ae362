// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! From a layer to an image.

use std::io::{Read, Seek, Write};

use resnap_layer::way::Budget;
use resnap_layer::{Entry, EntryKind, File, Layer};

use crate::error::{Error, Fault};
use crate::format::{NO_BLOCK, mode};
use crate::layout::{self, Summary};
use crate::lower::Lower;
use crate::output::Output;
use crate::room::Governor;
use crate::tree::{FRESH, OPAQUE, ROOT, SOLID, STATED, Tree, Walk, permissions};
use crate::xattr::has_default;

/// An image under construction.
#[derive(Debug)]
pub struct Writer<W> {
    output: Output<W>,
    tree: Tree,
}

impl<W: Write + Seek> Writer<W> {
    /// An image in `target`, a new and empty file, from its position 0 on, with as much memory as
    /// `governor` gives.
    ///
    /// # Errors
    ///
    /// The target's own.
    pub fn new(target: W, governor: Box<dyn Governor>) -> Result<Self, Error> {
        Ok(Self {
            output: Output::new(target).map_err(Error::Write)?,
            tree: Tree::new(governor),
        })
    }

    /// The same for the lowest layer of an image: what it deletes is what it has so far, and no
    /// whiteout stays.
    #[must_use]
    pub fn lowest(mut self) -> Self {
        self.tree.is_lowest = true;
        self
    }

    /// Adds all that the layer has. Data is written as it comes.
    ///
    /// # Errors
    ///
    /// What is wrong with the layer, what of it cannot be in an image, and the target's own.
    pub fn add<R: Read>(&mut self, layer: &mut Layer<R>) -> Result<(), Error> {
        while let Some(entry) = layer.next()? {
            let failed = |fault| Error::Entry {
                path: entry.path.clone(),
                fault,
            };
            self.tree.begin().map_err(failed)?;
            let place = match &entry.kind {
                EntryKind::File(file) => self.data(&entry, file, layer)?,
                _ => NO_BLOCK,
            };
            self.tree.add(&entry, place).map_err(failed)?;
        }
        self.output.rest().map_err(Error::Write)
    }

    /// How many names have been looked up on the ways to entries.
    pub fn ways(&self) -> Budget {
        self.tree.ways()
    }

    /// Asks `lower` for the directories that the layer does not state, and writes the rest of the
    /// image. `uuid` is the image's: the same layer must have the same, different ones others, or
    /// overlayfs takes them for one; so it is best made from the diff ID, which is known by now.
    ///
    /// `lower` is asked once for each such directory, of which there are as many as there is memory
    /// for, and depth first: who must stop after some time has it answer with an error then.
    ///
    /// # Errors
    ///
    /// An image too large, what `lower` says, and the target's own.
    pub fn finish(mut self, lower: &mut dyn Lower, uuid: [u8; 16]) -> Result<(W, Summary), Error> {
        self.tree.bury();
        self.ask(lower)?;
        layout::write(self.output, self.tree, uuid)
    }

    /// Writes a file's data; its first block.
    fn data<R: Read>(
        &mut self,
        entry: &Entry,
        file: &File,
        layer: &mut Layer<R>,
    ) -> Result<u32, Error> {
        if file.size == 0 {
            return Ok(NO_BLOCK);
        }
        let output = &mut self.output;
        output.align().map_err(Error::Write)?;
        let start = output.position();
        let place = layout::block(start, file.size).map_err(|fault| Error::Entry {
            path: entry.path.clone(),
            fault,
        })?;
        while let Some(piece) = layer.data()? {
            let hole = (start + piece.offset).saturating_sub(output.position());
            output.hole(hole).map_err(Error::Write)?;
            output.put(piece.bytes).map_err(Error::Write)?;
        }
        let hole = (start + file.size).saturating_sub(output.position());
        output.hole(hole).map_err(Error::Write)?;
        Ok(place)
    }

    /// Gives directories that the layer does not state the metadata they have below.
    fn ask(&mut self, lower: &mut dyn Lower) -> Result<(), Error> {
        let tree = &mut self.tree;
        let mut walk = Walk::new(tree);
        while let Some(number) = walk.next(tree) {
            let Some(inode) = tree.inode(number).copied() else {
                continue;
            };
            // In a deleted directory there is nothing below. The root cannot be hidden.
            let parent = tree.inode(inode.place).copied();
            let parent = parent.filter(|_| number != ROOT);
            let is_fresh = inode.has(FRESH)
                || parent.is_some_and(|parent| {
                    parent.has(FRESH) || (parent.has(OPAQUE) && inode.place != ROOT)
                });
            if is_fresh && let Some(inode) = tree.inode_mut(number) {
                inode.flags |= FRESH;
            }
            if is_fresh || inode.has(STATED) {
                continue;
            }
            let path = walk.path();
            let found = lower.directory(path).map_err(|source| Error::Lower {
                path: path.to_vec(),
                source,
            })?;
            let Some(found) = found else {
                continue;
            };
            if has_default(&found.xattrs) && inode.has(SOLID) && number != ROOT {
                return Err(Error::Entry {
                    path: path.to_vec(),
                    fault: Fault::Inherits,
                });
            }
            let mode = mode::DIRECTORY | permissions(found.mode);
            let xattrs = tree.xattrs.encode(&found.xattrs, mode, &mut tree.room);
            let xattrs = xattrs.map_err(|fault| Error::Entry {
                path: path.to_vec(),
                fault,
            })?;
            if let Some(inode) = tree.inode_mut(number) {
                inode.mode = mode;
                (inode.uid, inode.gid) = (found.uid, found.gid);
                inode.mtime = found.mtime;
                inode.xattrs = xattrs;
            }
        }
        Ok(())
    }
}
