// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Where the metadata goes: inodes in the order of their directories, each with what is inline
//! behind it, and then the blocks of directories.

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

/// The root's node ID. Any but 0, which some programs take for a deleted file's.
const ROOT_NODE: u32 = 2;

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the image, a multiple of 4096; holes included.
    pub size: u64,
    /// Inodes in it.
    pub inodes: u64,
}

/// The block at `offset`, if `size` bytes from there have addresses, and some are left for metadata.
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
    let meta = block(start, 0).map_err(Error::ErofsReader)?;
    let (inodes, bytes) = plan(&mut tree, start).map_err(Error::ErofsReader)?;

    let planned = Planned { tree: &tree, start };
    planned.inodes(&mut output).map_err(Error::Write)?;
    planned.directories(&mut output).map_err(Error::Write)?;

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

/// Gives every inode that has a name its node ID and every directory its blocks. How many inodes
/// there are, and how many bytes all that takes.
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
        let shape = Shape::of(tree, &inode);
        let at = shape.place(cursor);
        cursor = shape.end(at);
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
        let blocks = Shape::of(tree, inode).blocks;
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

/// Counts links, and gives directories their sizes and the attributes that overlayfs looks for.
fn measure(tree: &mut Tree) -> Result<(), Fault> {
    let mut at = 0;
    while let Some(first) = tree.names.get(at) {
        let directory = first.directory;
        let group = group(tree, at);
        at = group.end;
        let mut has_whiteouts = false;
        for index in group.clone() {
            let number = tree.names.get(index).map_or(ROOT, |name| name.inode);
            if let Some(inode) = tree.inode_mut(number) {
                inode.links += 1;
                has_whiteouts |= inode.is_whiteout();
            }
        }
        let size = blocks(tree, group).last().map_or(0, |(_, end)| end);
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
            &mut tree.room,
        )?;
        if let Some(inode) = tree.inode_mut(directory) {
            (inode.size, inode.xattrs) = (size, xattrs);
        }
    }
    Ok(())
}

/// The inode to look at, in the order of inodes on disk: the root first, as its node ID has 16 bits
/// only, and then as the names come. An inode with several names comes several times.
fn visited(tree: &Tree, step: usize) -> u32 {
    let name = step.checked_sub(1).and_then(|index| tree.names.get(index));
    name.map_or(ROOT, |name| name.inode)
}

/// The names that are in one directory with the one at `start`.
fn group(tree: &Tree, start: usize) -> Range<usize> {
    let names = tree.names.get(start..).unwrap_or_default();
    let directory = names.first().map(|name| name.directory);
    let count = names.partition_point(|name| Some(name.directory) == directory);
    start..start + count
}

/// The blocks of a directory: the names in each, and how many bytes there are to its end.
fn blocks(tree: &Tree, group: Range<usize>) -> impl Iterator<Item = (Range<usize>, u64)> {
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

/// How an inode lies on disk.
#[derive(Debug, Clone, Copy)]
struct Shape {
    layout: Layout,
    /// Bytes of the inode and its attributes.
    head: usize,
    /// Bytes behind that.
    inline: usize,
    /// Bytes of a symbolic link's blocks, which follow at once.
    target: u64,
    /// Bytes of a directory's blocks.
    blocks: u64,
}

impl Shape {
    fn of(tree: &Tree, inode: &Inode) -> Self {
        let head = INODE + tree.xattrs.get(inode.xattrs).len();
        let tail = match inode.file_type() {
            mode::DIRECTORY => inode.size % BLOCK as u64,
            mode::SYMLINK => inode.size,
            _ => 0,
        };
        let tail = usize::try_from(tail).unwrap_or(0);
        // What is inline must be in one block with its inode.
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

    /// Where it goes, at `cursor` or later.
    fn place(&self, cursor: u64) -> u64 {
        let cursor = cursor.next_multiple_of(SLOT as u64);
        let room = BLOCK as u64 - cursor % BLOCK as u64;
        // Attributes may go over a block's end. The inode may, too, but that takes two reads.
        let together = match self.inline {
            0 => INODE,
            _ => self.head + self.inline,
        };
        if together as u64 > room {
            cursor + room
        } else {
            cursor
        }
    }

    /// Where the target of a symbolic link begins that has blocks, if its inode is at `at`.
    fn target(&self, at: u64) -> u64 {
        (at + self.head as u64).next_multiple_of(BLOCK as u64)
    }

    /// Where what follows an inode at `at` may begin.
    fn end(&self, at: u64) -> u64 {
        match self.target {
            0 => at + (self.head + self.inline) as u64,
            length => self.target(at) + length,
        }
    }
}

/// A tree that has its places.
struct Planned<'a> {
    tree: &'a Tree,
    /// Where the metadata begins, in bytes.
    start: u64,
}

impl Planned<'_> {
    fn inodes(&self, output: &mut Output<impl Write + Seek>) -> io::Result<()> {
        let mut count = 0;
        let mut tail = Vec::new();
        for index in 0..=self.tree.names.len() {
            let inode_number = visited(self.tree, index);
            let Some(inode) = self.tree.inode(inode_number) else {
                continue;
            };
            let at = self.start + u64::from(inode.node) * SLOT as u64;
            // An inode with more names than one is written already.
            let Some(hole) = at.checked_sub(output.position()) else {
                continue;
            };
            count += 1;
            output.hole(hole)?;
            self.inode(inode, count, output)?;
            if inode.is_directory() && Shape::of(self.tree, inode).inline > 0 {
                tail.clear();
                let start = self
                    .tree
                    .names
                    .partition_point(|name| name.directory < inode_number);
                let group = group(self.tree, start);
                if let Some((names, _)) = blocks(self.tree, group).last() {
                    self.entries(names, &mut tail);
                }
                output.put(&tail)?;
            }
        }
        output.align()
    }

    fn inode(
        &self,
        inode: &Inode,
        number: u32,
        output: &mut Output<impl Write + Seek>,
    ) -> io::Result<()> {
        let shape = Shape::of(self.tree, inode);
        let xattrs = self.tree.xattrs.get(inode.xattrs);
        let is_link = inode.file_type() == mode::SYMLINK;
        let target = shape.target(output.position());
        let encoded = format::Inode {
            layout: shape.layout,
            length: INODE,
            xattrs: xattrs.len(),
            mode: inode.mode,
            size: inode.size,
            place: match shape.layout {
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
            if shape.target > 0 {
                output.align()?;
            }
            output.put(self.tree.target(inode))?;
        }
        Ok(())
    }

    fn directories(&self, output: &mut Output<impl Write + Seek>) -> io::Result<()> {
        let mut at = 0;
        let mut block = Vec::new();
        while let Some(first) = self.tree.names.get(at) {
            let group = group(self.tree, at);
            at = group.end;
            let Some(inode) = self.tree.inode(first.directory) else {
                continue;
            };
            let mut left = Shape::of(self.tree, inode).blocks;
            for (names, _) in blocks(self.tree, group) {
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
