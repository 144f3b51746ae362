// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The inodes of an image and their data.

use resnap_layer::Time;

use crate::format::{self, INODE, Layout, SLOT, SUPER_OFFSET, SUPER_SIZE, Superblock, mode};
use crate::source::{ImageError, ReadAt, Result, read};

/// Features that do not change inodes and directories: zero padding, compression configurations,
/// chunks, device tables, inline pclusters, fragments, long prefixes of attributes.
const KNOWN: u32 = 0x7f;

/// An image whose superblock has been read.
#[derive(Debug, Clone)]
pub(crate) struct Image<R> {
    pub(crate) source: R,
    pub(crate) superblock: Superblock,
}

/// An inode of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// The node ID, which hard links share.
    pub id: u64,
    /// Type and permissions, as in `stat`.
    pub mode: u32,
    /// Bytes of data.
    pub size: u64,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The time of the last modification.
    pub mtime: Time,
    /// The number of names.
    pub links: u32,
    pub(crate) inode: format::Inode,
    /// The offset of the inode in the file.
    pub(crate) offset: u64,
}

impl Node {
    /// Returns whether this is a directory.
    pub fn is_directory(&self) -> bool {
        self.inode.mode & mode::TYPE == mode::DIRECTORY
    }

    /// Returns whether overlayfs treats this as a whiteout: a character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.inode.mode & mode::TYPE == mode::CHARACTER && self.inode.place == 0
    }

    /// Returns the device number, as `stat` has it in 32 bits; `None` for other types.
    pub fn device(&self) -> Option<u32> {
        let is_device = matches!(self.inode.mode & mode::TYPE, mode::CHARACTER | mode::BLOCK);
        is_device.then_some(self.inode.place)
    }
}

impl<R: ReadAt> Image<R> {
    /// Reads the superblock. Refuses what is not an image, or needs unknown features.
    pub(crate) fn open(source: R) -> Result<Self> {
        let mut bytes = [0; SUPER_SIZE];
        read(&source, SUPER_OFFSET as u64, &mut bytes)?;
        let superblock = Superblock::decode(&bytes)
            .filter(|superblock| (9..=16).contains(&superblock.block_bits))
            .ok_or(ImageError::Corrupt {
                what: "superblock",
                offset: SUPER_OFFSET as u64,
            })?;
        if superblock.incompatible & !KNOWN != 0 {
            return Err(ImageError::Features(superblock.incompatible & !KNOWN));
        }
        if superblock.directory_bits != 0 {
            return Err(ImageError::Unsupported("directory blocks of another size"));
        }
        Ok(Self { source, superblock })
    }

    /// Reads the inode with this node ID.
    pub(crate) fn node(&self, id: u64) -> Result<Node> {
        let offset = id.checked_mul(SLOT as u64);
        let meta = self.block_offset(self.superblock.meta);
        let offset = offset.and_then(|offset| offset.checked_add(meta));
        let corrupt = |offset| ImageError::Corrupt {
            what: "inode",
            offset,
        };
        let offset = offset.ok_or(corrupt(0))?;
        let mut bytes = [0; INODE];
        let mut head = [0; SLOT];
        read(&self.source, offset, &mut head)?;
        match format::Inode::is_extended(&head) {
            true => read(&self.source, offset, &mut bytes)?,
            false => bytes.iter_mut().zip(head).for_each(|(to, from)| *to = from),
        }
        let inode = format::Inode::decode(&bytes).ok_or(corrupt(offset))?;
        let mtime = inode.mtime.unwrap_or(self.superblock.epoch);
        if mtime.nanoseconds >= 1_000_000_000 {
            return Err(corrupt(offset));
        }
        Ok(Node {
            id,
            mode: inode.mode.into(),
            size: inode.size,
            uid: inode.uid,
            gid: inode.gid,
            mtime,
            links: inode.links,
            inode,
            offset,
        })
    }

    /// Fills `buffer` with the data at `offset` of a node. Returns how many bytes there were.
    pub(crate) fn read(&self, node: &Node, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset.saturating_add(done as u64);
            if at >= node.size {
                break;
            }
            let (place, left) = self.locate(node, at)?;
            let length = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let part = rest.get_mut(..length).unwrap_or_default();
            read(&self.source, place, part)?;
            done += length;
        }
        Ok(done)
    }

    /// Returns the offset in the file of all data of a node.
    pub(crate) fn position(&self, node: &Node) -> Result<u64> {
        match self.locate(node, 0)? {
            (place, left) if left == node.size => Ok(place),
            _ => Err(ImageError::Unsupported("data in several pieces here")),
        }
    }

    /// Returns the bytes of a block.
    pub(crate) fn block_size(&self) -> u64 {
        1 << self.superblock.block_bits
    }

    /// Returns the offset of a block in the file.
    pub(crate) fn block_offset(&self, address: u32) -> u64 {
        u64::from(address) << self.superblock.block_bits
    }

    /// Returns the offset in the file of the data at `offset` of a node, and how much data follows
    /// there without a gap.
    fn locate(&self, node: &Node, offset: u64) -> Result<(u64, u64)> {
        let size = self.block_size();
        // The start of the inline part.
        let tail = match node.inode.layout {
            Layout::Plain => node.size,
            Layout::Inline => node.size.saturating_sub(1) / size * size,
            Layout::Compressed(_) => return Err(ImageError::Unsupported("compressed data here")),
            Layout::Chunks => return Err(ImageError::Unsupported("chunks here")),
        };
        let corrupt = |what| ImageError::Corrupt {
            what,
            offset: node.offset,
        };
        if offset < tail {
            let place = self.block_offset(node.inode.place).checked_add(offset);
            return Ok((place.ok_or(corrupt("block address"))?, tail - offset));
        }
        let inline = node.offset + (node.inode.length + node.inode.xattrs) as u64;
        let left = node.size - offset;
        if inline % size + (node.size - tail) > size {
            return Err(corrupt("inline data"));
        }
        Ok((inline + (offset - tail), left))
    }
}
