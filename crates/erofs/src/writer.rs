// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A writer that turns a layer into an image.

use std::io::{Seek, Write};

use resnap_layer::resolve::LookupBudget;
use resnap_layer::{Entry, EntryKind, EntrySource, File, Metadata};

use crate::add::add;
use crate::block::BlockSize;
use crate::error::{Error, Fault};
use crate::format::{NO_BLOCK, mode};
use crate::governor::Governor;
use crate::layout::{self, Summary};
use crate::lower::Lower;
use crate::output::Output;
use crate::tree::{DataPlace, HAS_CONTENT, NO_LOWER, OPAQUE, ROOT, STATED, Tree, permissions};
use crate::walk::Walk;
use crate::xattr::has_default_acl;

/// An image under construction.
#[derive(Debug)]
pub struct Writer<W> {
    output: Output<W>,
    tree: Tree,
    /// Blocks of the tar up to the end of the last data, for an index.
    tar_blocks: Option<u64>,
}

impl<W: Write + Seek> Writer<W> {
    /// Returns a writer to `target`, a new and empty file at position 0, with as much memory as
    /// `governor` grants.
    ///
    /// # Errors
    ///
    /// `target` cannot be written.
    pub fn new(target: W, governor: Box<dyn Governor>) -> Result<Self, Error> {
        Ok(Self {
            output: Output::new(target).map_err(Error::Write)?,
            tree: Tree::new(governor),
            tar_blocks: None,
        })
    }

    /// Makes this the lowest layer: a whiteout removes what the layer has so far, and is not written.
    #[must_use]
    pub fn lowest(mut self) -> Self {
        self.tree.is_lowest = true;
        self
    }

    /// Makes this an index of the layer's tar: data stays in the tar, which is behind the index or is a
    /// device of its own. Must be called before [`Self::add`].
    #[must_use]
    pub fn index(mut self) -> Self {
        self.output.block = BlockSize::TAR;
        self.tar_blocks = Some(0);
        self
    }

    /// Adds all entries of the layer. Data that the image has is written as it is read.
    ///
    /// # Errors
    ///
    /// The layer is malformed, or has an entry that cannot be in an image, or the target cannot be
    /// written.
    pub fn add(&mut self, layer: &mut impl EntrySource) -> Result<(), Error> {
        while let Some(entry) = layer.next()? {
            let failed = |fault| Error::Entry {
                path: entry.path.clone(),
                fault,
            };
            self.tree.begin_entry().map_err(failed)?;
            let data = match &entry.kind {
                EntryKind::File(file) if file.size > 0 => self.data(&entry, file, layer)?,
                _ => DataPlace::Image(NO_BLOCK),
            };
            add(&mut self.tree, &entry, data).map_err(failed)?;
        }
        self.output.free_buffer().map_err(Error::Write)
    }

    /// Returns the target. All data that was added has been written to it; the rest follows in
    /// [`Self::finish`].
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.output.target
    }

    /// Returns the lookups that the paths of entries took so far.
    pub fn lookups(&self) -> LookupBudget {
        self.tree.lookups
    }

    /// Looks up the directories that the layer does not state in `lower`, and writes the rest of the
    /// image. The same layer must always have the same `uuid`, and different layers different ones, or
    /// overlayfs confuses them. The diff ID, which is known by now, is a good source.
    ///
    /// `lower` is called once for each such directory, depth first. Only the memory limits their number:
    /// to stop after some time, return an error from `lower`.
    ///
    /// # Errors
    ///
    /// The image is too large, `lower` failed, or the target cannot be written.
    pub fn finish(mut self, lower: &mut dyn Lower, uuid: [u8; 16]) -> Result<(W, Summary), Error> {
        self.tree.mark_replaced();
        self.apply_lower(lower)?;
        layout::write(self.output, self.tree, uuid, self.tar_blocks)
    }

    /// Returns where a file's data is, which is written if the image needs it.
    fn data(
        &mut self,
        entry: &Entry,
        file: &File,
        layer: &mut impl EntrySource,
    ) -> Result<DataPlace, Error> {
        let failed = |fault| Error::Entry {
            path: entry.path.clone(),
            fault,
        };
        let output = &mut self.output;
        if let Some(blocks) = &mut self.tar_blocks
            && let Some(start) = layer.tar_offset()
        {
            let block = output.block.address(start, file.size).map_err(failed)?;
            let end = u64::from(block) + output.block.count(file.size);
            *blocks = end.max(*blocks);
            return Ok(DataPlace::Tar(block));
        }
        output.align().map_err(Error::Write)?;
        let start = output.position();
        let block = output.block.address(start, file.size).map_err(failed)?;
        while let Some(piece) = layer.data()? {
            let hole = (start + piece.offset).saturating_sub(output.position());
            output.hole(hole).map_err(Error::Write)?;
            output.put(piece.bytes).map_err(Error::Write)?;
        }
        let hole = (start + file.size).saturating_sub(output.position());
        output.hole(hole).map_err(Error::Write)?;
        Ok(DataPlace::Image(block))
    }

    /// Gives the directories that the layer does not state the metadata they have in the lower layers.
    fn apply_lower(&mut self, lower: &mut dyn Lower) -> Result<(), Error> {
        let tree = &mut self.tree;
        let mut walk = Walk::new(tree);
        while let Some(number) = walk.next(tree) {
            let Some(inode) = tree.inode(number).copied() else {
                continue;
            };
            // A deleted directory has no lower one. The root cannot be hidden.
            let parent = tree.inode(inode.place).copied();
            let parent = parent.filter(|_| number != ROOT);
            let has_no_lower = inode.has(NO_LOWER)
                || parent.is_some_and(|parent| {
                    parent.has(NO_LOWER) || (parent.has(OPAQUE) && inode.place != ROOT)
                });
            if has_no_lower && let Some(inode) = tree.inode_mut(number) {
                inode.flags |= NO_LOWER;
            }
            if has_no_lower || inode.has(STATED) {
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
            let applied = apply_metadata(tree, number, &found);
            applied.map_err(|fault| Error::Entry {
                path: path.to_vec(),
                fault,
            })?;
        }
        Ok(())
    }
}

/// Gives a directory that the layer does not state the metadata of the lower one.
fn apply_metadata(tree: &mut Tree, number: u32, lower: &Metadata) -> Result<(), Fault> {
    let has_content = tree
        .inode(number)
        .is_some_and(|inode| inode.has(HAS_CONTENT));
    if has_default_acl(&lower.xattrs) && has_content && number != ROOT {
        return Err(Fault::DefaultAcl);
    }
    let mode = mode::DIRECTORY | permissions(lower.mode);
    let xattrs = tree.xattrs.encode(&lower.xattrs, mode, &mut tree.budget)?;
    if let Some(inode) = tree.inode_mut(number) {
        inode.mode = mode;
        (inode.uid, inode.gid) = (lower.uid, lower.gid);
        inode.mtime = lower.mtime;
        inode.xattrs = xattrs;
    }
    Ok(())
}
