// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A reader of the trees of images from any source.

use std::ops::Range;

use resnap_layer::{Metadata, Xattr};

use crate::dirent;
use crate::image::{Image, Node};
use crate::read_xattr::{self, Prefixes};
use crate::source::{ImageError, ReadAt, Result};

/// A reader of an image.
#[derive(Debug, Clone)]
pub struct ErofsReader<R> {
    image: Image<R>,
    prefixes: Prefixes,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name: 1 to 255 bytes, no `/`, no NUL.
    pub name: Vec<u8>,
    /// The node ID of its inode.
    pub id: u64,
}

impl<R: ReadAt> ErofsReader<R> {
    /// Opens the image in `source`.
    ///
    /// # Errors
    ///
    /// The source is not an image, or one that needs features that this crate does not know.
    pub fn open(source: R) -> Result<Self> {
        Ok(Self {
            image: Image::open(source)?,
            prefixes: Prefixes::default(),
        })
    }

    /// Adds the devices that have data besides the image, in their order, as `mount -o device=` does.
    /// Without them, the image's own file must have their data at the addresses that the image states,
    /// such as the tar behind an index.
    ///
    /// # Errors
    ///
    /// The image has more or fewer devices, or its file cannot be read.
    pub fn with_devices(self, devices: Vec<R>) -> Result<Self> {
        Ok(Self {
            image: self.image.with_devices(devices)?,
            ..self
        })
    }

    /// Returns the UUID of the image.
    pub fn uuid(&self) -> [u8; 16] {
        self.image.superblock.uuid
    }

    /// Returns the bytes of a block.
    pub fn block_size(&self) -> u64 {
        self.image.block_size()
    }

    /// Returns the size in bytes that the image claims for its file; the file may be longer.
    pub fn size(&self) -> u64 {
        self.image.block_offset(self.image.superblock.blocks)
    }

    /// Returns the number of inodes that the image claims.
    pub fn inodes(&self) -> u64 {
        self.image.superblock.inodes
    }

    /// Returns the number of other devices with data that the image claims. Some kernels open the
    /// devices that an image names.
    pub fn devices(&self) -> u16 {
        self.image.superblock.devices.count
    }

    /// Returns the root directory.
    ///
    /// # Errors
    ///
    /// The same as [`Self::node`].
    pub fn root(&self) -> Result<Node> {
        self.node(self.image.superblock.root.into())
    }

    /// Returns the inode with this node ID.
    ///
    /// # Errors
    ///
    /// The inode is malformed, or the file cannot be read.
    pub fn node(&self, id: u64) -> Result<Node> {
        self.image.node(id)
    }

    /// Returns the inode at `path` (components joined by `/`; empty for the root), or `None` if there
    /// is none. Symbolic links are not followed.
    ///
    /// # Errors
    ///
    /// A part of the path is malformed, or the file cannot be read.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<Node>> {
        let mut node = self.root()?;
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            if !node.is_directory() {
                return Ok(None);
            }
            match self.child(&node, name)? {
                Some(child) => node = child,
                None => return Ok(None),
            }
        }
        Ok(Some(node))
    }

    /// Returns the child of `directory` with this name. It reads few blocks, however large the
    /// directory is.
    ///
    /// # Errors
    ///
    /// The same as [`Self::lookup`].
    pub fn child(&self, directory: &Node, name: &[u8]) -> Result<Option<Node>> {
        let blocks = directory.size.div_ceil(self.image.block_size());
        // Binary search for the last block whose first name is not after this one.
        let (mut low, mut high) = (0, blocks);
        let mut found = None;
        let mut block = Vec::new();
        while low < high {
            let middle = low + (high - low) / 2;
            let count = self.directory_block(directory, middle, &mut block)?;
            let first = entry(directory, &block, 0, count)?;
            if first.2 > name {
                high = middle;
                continue;
            }
            found = None;
            for index in 0..count {
                let (id, _, other) = entry(directory, &block, index, count)?;
                if other == name {
                    found = Some(id);
                    break;
                }
            }
            if found.is_some() {
                break;
            }
            low = middle + 1;
        }
        found.map(|id| self.node(id)).transpose()
    }

    /// Returns the names in a directory, without `.` and `..`, in their order on disk.
    pub fn entries<'a>(&'a self, directory: &Node) -> Entries<'a, R> {
        Entries {
            reader: self,
            directory: *directory,
            blocks: 0..directory.size.div_ceil(self.image.block_size()),
            block: Vec::new(),
            entries: 0..0,
        }
    }

    /// Returns the metadata of a node.
    ///
    /// # Errors
    ///
    /// The extended attributes are malformed, or the file cannot be read.
    pub fn metadata(&self, node: &Node) -> Result<Metadata> {
        Ok(Metadata {
            mode: node.mode & 0o7777,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            xattrs: self.xattrs(node)?,
        })
    }

    /// Returns the extended attributes of a node, ordered by name. Attributes of kinds that have no
    /// name on Linux are left out.
    ///
    /// # Errors
    ///
    /// The attributes are malformed, or the file cannot be read.
    pub fn xattrs(&self, node: &Node) -> Result<Vec<Xattr>> {
        read_xattr::all(&self.image, &self.prefixes, node)
    }

    /// Returns whether a node has this attribute with this value. Other attributes are not read.
    ///
    /// # Errors
    ///
    /// The same as [`Self::xattrs`].
    pub fn has_xattr(&self, node: &Node, name: &[u8], value: &[u8]) -> Result<bool> {
        read_xattr::has(&self.image, &self.prefixes, node, name, value)
    }

    /// Fills `buffer` with the data at `offset` of a file or symbolic link. Returns how many bytes
    /// there were.
    ///
    /// # Errors
    ///
    /// The data is compressed, or the file cannot be read.
    pub fn read(&self, node: &Node, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        self.image.read(node, offset, buffer)
    }

    /// Returns the bytes of a hole at `offset` of a file that need not be read. `offset` must be less than its
    /// size.
    pub(crate) fn hole(&self, node: &Node, offset: u64) -> Result<u64> {
        self.image.hole(node, offset)
    }

    /// Returns the offset in the image of the data of a file, which is all there.
    ///
    /// # Errors
    ///
    /// The data is compressed, on another device, or not in one piece.
    pub fn position(&self, node: &Node) -> Result<u64> {
        self.image.position(node)
    }

    /// Reads a block of a directory. Returns the number of its entries.
    fn directory_block(&self, directory: &Node, index: u64, block: &mut Vec<u8>) -> Result<usize> {
        let corrupt = ImageError::Corrupt {
            what: "directory",
            offset: directory.offset,
        };
        if !directory.is_directory() {
            return Err(corrupt);
        }
        let size = self.image.block_size();
        let offset = index * size;
        let length = size.min(directory.size.saturating_sub(offset));
        block.resize(usize::try_from(length).unwrap_or(0), 0);
        self.read(directory, offset, block)?;
        dirent::count(block).ok_or(corrupt)
    }
}

/// Decodes an entry of a directory's block.
fn entry<'a>(
    directory: &Node,
    block: &'a [u8],
    index: usize,
    count: usize,
) -> Result<dirent::Raw<'a>> {
    dirent::decode(block, index, count).ok_or(ImageError::Corrupt {
        what: "directory entry",
        offset: directory.offset,
    })
}

/// An iterator over the names in a directory. It ends after an error.
#[derive(Debug)]
pub struct Entries<'a, R> {
    reader: &'a ErofsReader<R>,
    directory: Node,
    blocks: Range<u64>,
    block: Vec<u8>,
    /// The entries of the block that are left.
    entries: Range<usize>,
}

impl<R: ReadAt> Entries<'_, R> {
    fn advance(&mut self) -> Result<Option<Named>> {
        loop {
            let Some(index) = self.entries.next() else {
                let Some(block) = self.blocks.next() else {
                    return Ok(None);
                };
                let reader = self.reader;
                let count = reader.directory_block(&self.directory, block, &mut self.block)?;
                self.entries = 0..count;
                continue;
            };
            let (id, _, name) = entry(&self.directory, &self.block, index, self.entries.end)?;
            if !matches!(name, b"." | b"..") {
                let name = name.to_vec();
                return Ok(Some(Named { name, id }));
            }
        }
    }
}

impl<R: ReadAt> Iterator for Entries<'_, R> {
    type Item = Result<Named>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.advance().transpose();
        if let Some(Err(_)) = next {
            (self.blocks, self.entries) = (0..0, 0..0);
        }
        next
    }
}
