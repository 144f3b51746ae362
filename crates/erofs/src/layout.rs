// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The layout of the metadata: inodes in the order of their directories, each followed by its inline
//! data, then the blocks of directories.

use std::io::{self, Seek, Write};
use std::ops::Range;

use crate::dirent;
use crate::error::{Error, Fault};
use crate::format::{
    self, BLOCK, INODE, Layout, NO_BLOCK, Prefixes, SLOT, Superblock, entry_type, mode,
};
use crate::output::Output;
use crate::tree::{Inode, Name, OPAQUE, ROOT, Tree};
use crate::xattr;

/// The node ID of the root. It is not 0, which some programs treat as that of a deleted file.
const ROOT_NODE: u32 = 2;

/// A summary of a written image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the image including holes, a multiple of 4096.
    pub size: u64,
    /// The number of inodes.
    pub inodes: u64,
}

/// Returns the block at `offset`. Refuses `size` bytes that exceed the block addresses, of which some
/// are left for the metadata.
pub(crate) fn block(offset: u64, size: u64) -> Result<u32, Fault> {
    let blocks = (offset / BLOCK as u64) + size.div_ceil(BLOCK as u64);
    if blocks >= u64::from(NO_BLOCK) {
        return Err(Fault::limit("blocks of 4096 bytes", NO_BLOCK.into()));
    }
    Ok(u32::try_from(offset / BLOCK as u64).unwrap_or(NO_BLOCK))
}

/// Writes the metadata of `tree` behind the data, and the superblock.
pub(crate) fn write<W: Write + Seek>(
    mut output: Output<W>,
    mut tree: Tree,
    uuid: [u8; 16],
) -> Result<(W, Summary), Error> {
    output.align().map_err(Error::Write)?;
    let start = output.position();
    let meta = block(start, 0).map_err(Error::Image)?;
    let (inodes, bytes) = plan(&mut tree, start).map_err(Error::Image)?;

    let writer = MetadataWriter { tree: &tree, start };
    writer.inodes(&mut output).map_err(Error::Write)?;
    writer.directories(&mut output).map_err(Error::Write)?;

    let size = start + bytes;
    let superblock = Superblock {
        block_bits: 12,
        root: u16::try_from(ROOT_NODE).unwrap_or_default(),
        inodes,
        epoch: resnap_layer::Time::default(),
        blocks: u32::try_from(size / BLOCK as u64).unwrap_or(NO_BLOCK),
        meta,
        xattrs: 0,
        uuid,
        incompatible: 0,
        devices: 0,
        directory_bits: 0,
        prefixes: Prefixes::default(),
    };
    let target = output.finish(&superblock.encode()).map_err(Error::Write)?;
    Ok((target, Summary { size, inodes }))
}

/// Assigns a node ID to every inode that has a name, and blocks to every directory. Returns the number
/// of inodes, and the bytes of all metadata.
fn plan(tree: &mut Tree, start: u64) -> Result<(u64, u64), Fault> {
    tree.seal()?;
    measure(tree)?;

    let mut cursor = u64::from(ROOT_NODE) * SLOT as u64;
    let mut inodes = 0;
    for index in 0..=tree.names.len() {
        let number = visited(tree, index);
        let Some(inode) = tree.inode(number).filter(|inode| inode.node == 0).copied() else {
            continue;
        };
        let layout = InodeLayout::new(tree, &inode);
        let at = layout.start(cursor);
        cursor = layout.end(at);
        inodes += 1;
        let node = u32::try_from(at / SLOT as u64);
        let node = node.map_err(|_| Fault::limit("slots of 32 bytes", u32::MAX.into()))?;
        if let Some(inode) = tree.inode_mut(number) {
            inode.node = node;
        }
    }

    let mut end = cursor.next_multiple_of(BLOCK as u64);
    for index in 0..tree.inodes.len() {
        let Some(inode) = tree
            .inodes
            .get(index)
            .filter(|inode| inode.is_directory() && inode.node != 0)
        else {
            continue;
        };
        let blocks = InodeLayout::new(tree, inode).blocks;
        let place = match blocks {
            0 => NO_BLOCK,
            _ => block(start + end, blocks)?,
        };
        end += blocks;
        if let Some(inode) = tree.inodes.get_mut(index) {
            inode.place = place;
        }
    }
    block(start, end)?;
    Ok((inodes, end))
}

/// Counts links, and sets the sizes of directories and the attributes that overlayfs needs.
fn measure(tree: &mut Tree) -> Result<(), Fault> {
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
        let size = directory_blocks(tree, group)
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
fn visited(tree: &Tree, step: usize) -> u32 {
    let name = step.checked_sub(1).and_then(|index| tree.names.get(index));
    name.map_or(ROOT, |name| name.inode)
}

/// Returns the names in the same directory as the one at `start`.
fn group_at(tree: &Tree, start: usize) -> Range<usize> {
    let names = tree.names.get(start..).unwrap_or_default();
    let directory = names.first().map(|name| name.directory);
    let count = names.partition_point(|name| Some(name.directory) == directory);
    start..start + count
}

/// Returns the blocks of a directory: the names in each, and the bytes of the directory up to its end.
fn directory_blocks(tree: &Tree, group: Range<usize>) -> impl Iterator<Item = (Range<usize>, u64)> {
    let mut at = group.start;
    let mut full = 0;
    std::iter::from_fn(move || {
        let names = tree
            .names
            .get(at..group.end)
            .filter(|names| !names.is_empty())?;
        let (count, used) = dirent::fit(names.iter().map(|name| tree.name(name).len()));
        let block = at..at + count;
        at = block.end;
        full += BLOCK as u64;
        Some((block, full - BLOCK as u64 + used as u64))
    })
}

/// The layout of an inode on disk.
#[derive(Debug, Clone, Copy)]
struct InodeLayout {
    layout: Layout,
    /// Bytes of the inode and its attributes.
    head: usize,
    /// Bytes of inline data behind that.
    inline: usize,
    /// Bytes of a symbolic link's blocks, which follow the inode.
    target: u64,
    /// Bytes of a directory's blocks.
    blocks: u64,
}

impl InodeLayout {
    fn new(tree: &Tree, inode: &Inode) -> Self {
        let head = INODE + tree.xattrs.get(inode.xattrs).len();
        let tail = match inode.file_type() {
            mode::DIRECTORY => inode.size % BLOCK as u64,
            mode::SYMLINK => inode.size,
            _ => 0,
        };
        let tail = usize::try_from(tail).unwrap_or(0);
        // Inline data must be in one block with its inode.
        let inline = if head + tail <= BLOCK { tail } else { 0 };
        let blocks = inode.size.saturating_sub(inline as u64);
        let blocks = blocks.div_ceil(BLOCK as u64) * BLOCK as u64;
        let (target, blocks) = match inode.file_type() {
            mode::SYMLINK => (blocks, 0),
            mode::DIRECTORY => (0, blocks),
            _ => (0, 0),
        };
        Self {
            layout: if inline > 0 {
                Layout::Inline
            } else {
                Layout::Plain
            },
            head,
            inline,
            target,
            blocks,
        }
    }

    /// Returns where the inode starts, at `cursor` or later.
    fn start(&self, cursor: u64) -> u64 {
        let cursor = cursor.next_multiple_of(SLOT as u64);
        let left = BLOCK as u64 - cursor % BLOCK as u64;
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
    fn target(&self, at: u64) -> u64 {
        (at + self.head as u64).next_multiple_of(BLOCK as u64)
    }

    /// Returns where an inode at `at` ends.
    fn end(&self, at: u64) -> u64 {
        match self.target {
            0 => at + (self.head + self.inline) as u64,
            length => self.target(at) + length,
        }
    }
}

/// A writer of the metadata of a tree with assigned node IDs and blocks.
struct MetadataWriter<'a> {
    tree: &'a Tree,
    /// The offset of the metadata.
    start: u64,
}

impl MetadataWriter<'_> {
    /// Writes all inodes with their inline data.
    fn inodes(&self, output: &mut Output<impl Write + Seek>) -> io::Result<()> {
        let mut count = 0;
        let mut tail = Vec::new();
        for index in 0..=self.tree.names.len() {
            let inode_number = visited(self.tree, index);
            let Some(inode) = self.tree.inode(inode_number) else {
                continue;
            };
            let at = self.start + u64::from(inode.node) * SLOT as u64;
            // An inode with several names is already written.
            let Some(hole) = at.checked_sub(output.position()) else {
                continue;
            };
            count += 1;
            output.hole(hole)?;
            self.inode(inode, count, output)?;
            if inode.is_directory() && InodeLayout::new(self.tree, inode).inline > 0 {
                tail.clear();
                let start = self
                    .tree
                    .names
                    .partition_point(|name| name.directory < inode_number);
                let group = group_at(self.tree, start);
                if let Some((names, _)) = directory_blocks(self.tree, group).last() {
                    self.entries(names, &mut tail);
                }
                output.put(&tail)?;
            }
        }
        output.align()
    }

    /// Writes an inode, its attributes, and the target of a symbolic link.
    fn inode(
        &self,
        inode: &Inode,
        number: u32,
        output: &mut Output<impl Write + Seek>,
    ) -> io::Result<()> {
        let layout = InodeLayout::new(self.tree, inode);
        let xattrs = self.tree.xattrs.get(inode.xattrs);
        let is_link = inode.file_type() == mode::SYMLINK;
        let target = layout.target(output.position());
        let encoded = format::Inode {
            layout: layout.layout,
            length: INODE,
            xattrs: xattrs.len(),
            mode: inode.mode,
            size: inode.size,
            place: match layout.layout {
                Layout::Inline if is_link => NO_BLOCK,
                _ if is_link => u32::try_from(target / BLOCK as u64).unwrap_or(NO_BLOCK),
                _ => inode.place,
            },
            number,
            uid: inode.uid,
            gid: inode.gid,
            mtime: Some(inode.mtime),
            links: inode.links,
        };
        output.put(&encoded.encode())?;
        output.put(xattrs)?;
        if is_link {
            if layout.target > 0 {
                output.align()?;
            }
            output.put(self.tree.target(inode))?;
        }
        Ok(())
    }

    /// Writes the blocks of directories.
    fn directories(&self, output: &mut Output<impl Write + Seek>) -> io::Result<()> {
        let mut at = 0;
        let mut block = Vec::new();
        while let Some(first) = self.tree.names.get(at) {
            let group = group_at(self.tree, at);
            at = group.end;
            let Some(inode) = self.tree.inode(first.directory) else {
                continue;
            };
            let mut left = InodeLayout::new(self.tree, inode).blocks;
            for (names, _) in directory_blocks(self.tree, group) {
                if left == 0 {
                    break;
                }
                left -= BLOCK as u64;
                block.clear();
                self.entries(names, &mut block);
                block.resize(BLOCK, 0);
                output.put(&block)?;
            }
        }
        Ok(())
    }

    /// Encodes the entries of these names into a block.
    fn entries(&self, names: Range<usize>, block: &mut Vec<u8>) {
        let names = self.tree.names.get(names).unwrap_or_default();
        let entry = |name: &Name| {
            let inode = self.tree.inode(name.inode);
            let (node, mode) = inode.map_or((0, 0), |inode| (inode.node, inode.mode));
            (u64::from(node), entry_type(mode))
        };
        let entries = names.iter().map(|name| {
            let (node, kind) = entry(name);
            (node, kind, self.tree.name(name))
        });
        dirent::encode(entries, block);
    }
}
