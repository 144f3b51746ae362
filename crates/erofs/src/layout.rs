// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The metadata on disk: inodes in the order of their directories, each followed by its inline data, then
//! the blocks of directories.

use std::io::{self, Seek, Write};
use std::ops::Range;

use crate::block::BlockSize;
use crate::chunk::{ChunkPlace, Chunks};
use crate::dirent;
use crate::error::{Error, Fault};
use crate::format::{self, INODE, Layout, NO_BLOCK, SLOT, entry_type, mode};
use crate::output::Output;
use crate::plan::{InodeLayout, directory_blocks, group_at, plan, visited};
use crate::superblock::{
    DeviceSlot, Devices, INCOMPAT_CHUNKS, INCOMPAT_DEVICES, Prefixes, Superblock,
};
use crate::tree::{Inode, Name, ROOT, Tree};

/// The device of the tar of an index.
const TAR: u16 = 1;

/// A summary of a written image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Bytes of the image including holes, a multiple of 4096.
    pub size: u64,
    /// The number of inodes.
    pub inodes: u64,
}

/// Returns the size in bytes of a device with an index of `index` bytes, its whole tar of `tar` bytes, and
/// zeros up to a multiple of 4096.
pub fn joined_size(index: u64, tar: u64) -> u64 {
    let end = index.checked_add(tar);
    let end = end.and_then(|end| end.checked_next_multiple_of(BlockSize::PAGE.bytes()));
    end.unwrap_or(u64::MAX)
}

/// Writes the metadata of `tree` behind the data, and the superblock. An index has the data of its tar in
/// `tar_blocks` blocks behind it.
pub(crate) fn write<W: Write + Seek>(
    mut output: Output<W>,
    mut tree: Tree,
    uuid: [u8; 16],
    tar_blocks: Option<u64>,
) -> Result<(W, Summary), Error> {
    output.align().map_err(Error::Write)?;
    let (start, block) = (output.position(), output.block);
    let meta = block.address(start, 0).map_err(Error::Image)?;
    let (inodes, bytes) = plan(&mut tree, start, block).map_err(Error::Image)?;
    // An index ends where pages do, for whatever is behind it.
    let size = BlockSize::PAGE.align(start + bytes);
    let blocks = block.address(size, 0).map_err(Error::Image)?;
    let device = tar_blocks.map(|count| device(size, count, block));
    let device = device.transpose().map_err(Error::Image)?;

    let writer = MetadataWriter {
        tree: &tree,
        start,
        block,
    };
    writer.inodes(&mut output).map_err(Error::Write)?;
    writer.directories(&mut output).map_err(Error::Write)?;
    let padding = size - output.position();
    output.hole(padding).map_err(Error::Write)?;

    let superblock = Superblock {
        block_bits: block.bits,
        root: root_node(&tree),
        inodes,
        epoch: resnap_layer::Time::default(),
        blocks,
        meta,
        xattrs: 0,
        uuid,
        incompatible: match device {
            None => 0,
            Some(_) => INCOMPAT_CHUNKS | INCOMPAT_DEVICES,
        },
        devices: match device {
            None => Devices::default(),
            Some(_) => Devices::ONE,
        },
        directory_bits: 0,
        prefixes: Prefixes::default(),
    };
    let header = superblock.encode(device);
    let target = output.finish(&header).map_err(Error::Write)?;
    Ok((target, Summary { size, inodes }))
}

/// Returns the node ID of the root, which is in one of the first blocks.
fn root_node(tree: &Tree) -> u16 {
    let root = tree.inode(ROOT).map_or(0, |root| root.node);
    u16::try_from(root).unwrap_or_default()
}

/// Returns the slot of a tar with this many blocks of data, behind an index of `size` bytes.
fn device(size: u64, blocks: u64, block: BlockSize) -> Result<DeviceSlot, Fault> {
    Ok(DeviceSlot {
        start: block.address(size, blocks << block.bits)?,
        blocks: u32::try_from(blocks).unwrap_or(NO_BLOCK),
    })
}

/// A writer of the metadata of a tree with assigned node IDs and blocks.
struct MetadataWriter<'a> {
    tree: &'a Tree,
    /// The offset of the metadata.
    start: u64,
    block: BlockSize,
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
            if inode.is_directory() && InodeLayout::new(self.tree, inode, self.block).inline > 0 {
                tail.clear();
                let start = self
                    .tree
                    .names
                    .partition_point(|name| name.directory < inode_number);
                let group = group_at(self.tree, start);
                if let Some((names, _)) = directory_blocks(self.tree, group, self.block).last() {
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
        let layout = InodeLayout::new(self.tree, inode, self.block);
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
                Layout::Chunks => Chunks::of_piece(inode.size, self.block).encode(),
                Layout::Inline if is_link => NO_BLOCK,
                _ if is_link => u32::try_from(target >> self.block.bits).unwrap_or(NO_BLOCK),
                _ => inode.place,
            },
            number,
            uid: inode.uid,
            gid: inode.gid,
            mtime: Some(inode.mtime),
            links: inode.links,
        };
        let indexes = layout.indexes(output.position());
        output.put(&encoded.encode())?;
        output.put(xattrs)?;
        if layout.layout == Layout::Chunks {
            output.hole(indexes - output.position())?;
            let place = ChunkPlace {
                device: TAR,
                block: inode.place,
            };
            let chunks = Chunks::of_piece(inode.size, self.block);
            for index in chunks.indexes(inode.size, self.block, place) {
                output.put(&index)?;
            }
        }
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
            let mut left = InodeLayout::new(self.tree, inode, self.block).blocks;
            for (names, _) in directory_blocks(self.tree, group, self.block) {
                if left == 0 {
                    break;
                }
                left -= self.block.bytes();
                block.clear();
                self.entries(names, &mut block);
                output.put(&block)?;
                output.align()?;
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
