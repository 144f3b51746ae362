// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The plan of the metadata: the place of each inode and directory, before anything is written.

use std::ops::Range;

use crate::block::BlockSize;
use crate::chunk::{Chunks, INDEX};
use crate::dirent;
use crate::error::Fault;
use crate::format::{INODE, Layout, NO_BLOCK, SLOT, mode};
use crate::tree::{IN_TAR, Inode, OPAQUE, ROOT, Tree};
use crate::xattr;

/// The first node ID. It is not 0, which some programs treat as that of a deleted file.
const FIRST_NODE: u32 = 2;

/// Assigns a node ID to every inode that has a name, and blocks to every directory. Returns the number
/// of inodes, and the bytes of all metadata.
pub(crate) fn plan(tree: &mut Tree, start: u64, block: BlockSize) -> Result<(u64, u64), Fault> {
    tree.seal()?;
    measure(tree, block)?;

    let mut cursor = u64::from(FIRST_NODE) * SLOT as u64;
    let mut inodes = 0;
    for index in 0..=tree.names.len() {
        let number = visited(tree, index);
        let Some(inode) = tree.inode(number).filter(|inode| inode.node == 0).copied() else {
            continue;
        };
        let layout = InodeLayout::new(tree, &inode, block);
        let at = layout.start(cursor);
        cursor = layout.end(at);
        inodes += 1;
        let node = u32::try_from(at / SLOT as u64);
        let node = node.map_err(|_| Fault::limit("slots of 32 bytes", u32::MAX.into()))?;
        if let Some(inode) = tree.inode_mut(number) {
            inode.node = node;
        }
    }

    let mut end = block.align(cursor);
    for index in 0..tree.inodes.len() {
        let Some(inode) = tree
            .inodes
            .get(index)
            .filter(|inode| inode.is_directory() && inode.node != 0)
        else {
            continue;
        };
        let blocks = InodeLayout::new(tree, inode, block).blocks;
        let place = match blocks {
            0 => NO_BLOCK,
            _ => block.address(start + end, blocks)?,
        };
        end += blocks;
        if let Some(inode) = tree.inodes.get_mut(index) {
            inode.place = place;
        }
    }
    block.address(start, end)?;
    Ok((inodes, end))
}

/// Counts links, and sets the sizes of directories and the attributes that overlayfs needs.
fn measure(tree: &mut Tree, block: BlockSize) -> Result<(), Fault> {
    let mut at = 0;
    while let Some(first) = tree.names.get(at) {
        let directory = first.directory;
        let group = group_at(tree, at);
        at = group.end;
        let mut has_whiteouts = false;
        for index in group.clone() {
            let number = tree.names.get(index).map_or(ROOT, |name| name.inode);
            if let Some(inode) = tree.inode_mut(number) {
                inode.links += 1;
                has_whiteouts |= inode.is_null_device();
            }
        }
        let size = directory_blocks(tree, group, block)
            .last()
            .map_or(0, |(_, end)| end);
        let mut extra = Vec::new();
        let inode = tree.inode(directory).copied();
        if inode.is_some_and(|inode| inode.has(OPAQUE)) {
            extra.push(xattr::OPAQUE);
        }
        if has_whiteouts {
            extra.push(xattr::ORIGIN);
        }
        let xattrs = tree.xattrs.with(
            inode.map_or(0, |inode| inode.xattrs),
            &extra,
            &mut tree.budget,
        )?;
        if let Some(inode) = tree.inode_mut(directory) {
            (inode.size, inode.xattrs) = (size, xattrs);
        }
    }
    Ok(())
}

/// Returns the inode for a step, in the order of inodes on disk: the root first, because its node ID has
/// only 16 bits, then in the order of names. An inode with several names comes several times.
pub(crate) fn visited(tree: &Tree, step: usize) -> u32 {
    let name = step.checked_sub(1).and_then(|index| tree.names.get(index));
    name.map_or(ROOT, |name| name.inode)
}

/// Returns the names in the same directory as the one at `start`.
pub(crate) fn group_at(tree: &Tree, start: usize) -> Range<usize> {
    let names = tree.names.get(start..).unwrap_or_default();
    let directory = names.first().map(|name| name.directory);
    let count = names.partition_point(|name| Some(name.directory) == directory);
    start..start + count
}

/// Returns the blocks of a directory: the names in each, and the bytes of the directory up to its end.
pub(crate) fn directory_blocks(
    tree: &Tree,
    group: Range<usize>,
    block: BlockSize,
) -> impl Iterator<Item = (Range<usize>, u64)> {
    let mut at = group.start;
    let mut full = 0;
    std::iter::from_fn(move || {
        let names = tree
            .names
            .get(at..group.end)
            .filter(|names| !names.is_empty())?;
        let lengths = names.iter().map(|name| tree.name(name).len());
        let (count, used) = dirent::fit(lengths, block.bytes());
        let names = at..at + count;
        at = names.end;
        let end = full + used as u64;
        full += block.bytes();
        Some((names, end))
    })
}

/// The layout of an inode on disk.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InodeLayout {
    block: BlockSize,
    pub(crate) layout: Layout,
    /// Bytes of the inode and its attributes.
    head: usize,
    /// Bytes of inline data behind that.
    pub(crate) inline: usize,
    /// Bytes of the indexes of a file's chunks behind that.
    indexes: u64,
    /// Bytes of a symbolic link's blocks, which follow the inode.
    pub(crate) target: u64,
    /// Bytes of a directory's blocks.
    pub(crate) blocks: u64,
}

impl InodeLayout {
    pub(crate) fn new(tree: &Tree, inode: &Inode, block: BlockSize) -> Self {
        let head = INODE + tree.xattrs.get(inode.xattrs).len();
        let tail = match inode.file_type() {
            mode::DIRECTORY => block.remainder(inode.size),
            mode::SYMLINK => inode.size,
            _ => 0,
        };
        let tail = usize::try_from(tail).unwrap_or(0);
        // Inline data must be in one block with its inode.
        let inline = if (head + tail) as u64 <= block.bytes() {
            tail
        } else {
            0
        };
        let blocks = block.align(inode.size.saturating_sub(inline as u64));
        let (target, blocks) = match inode.file_type() {
            mode::SYMLINK => (blocks, 0),
            mode::DIRECTORY => (0, blocks),
            _ => (0, 0),
        };
        let is_in_tar = inode.has(IN_TAR);
        let layout = match inline {
            _ if is_in_tar => Layout::Chunks,
            0 => Layout::Plain,
            _ => Layout::Inline,
        };
        Self {
            block,
            layout,
            head,
            inline,
            indexes: match is_in_tar {
                true => Chunks::of_piece(inode.size, block).table(inode.size, block),
                false => 0,
            },
            target,
            blocks,
        }
    }

    /// Returns where the inode starts, at `cursor` or later.
    fn start(&self, cursor: u64) -> u64 {
        let cursor = cursor.next_multiple_of(SLOT as u64);
        let left = self.block.bytes() - self.block.remainder(cursor);
        // Attributes may cross the end of a block. An inode may, too, but then it takes two reads.
        let together = match self.inline {
            0 => INODE,
            _ => self.head + self.inline,
        };
        if together as u64 > left {
            cursor + left
        } else {
            cursor
        }
    }

    /// Returns where the blocks of a symbolic link start whose inode is at `at`.
    pub(crate) fn target(&self, at: u64) -> u64 {
        self.block.align(at + self.head as u64)
    }

    /// Returns where the indexes of chunks start of an inode at `at`.
    pub(crate) fn indexes(&self, at: u64) -> u64 {
        (at + self.head as u64).next_multiple_of(INDEX)
    }

    /// Returns where an inode at `at` ends.
    fn end(&self, at: u64) -> u64 {
        match (self.layout, self.target) {
            (Layout::Chunks, _) => self.indexes(at) + self.indexes,
            (_, 0) => at + (self.head + self.inline) as u64,
            (_, length) => self.target(at) + length,
        }
    }
}
