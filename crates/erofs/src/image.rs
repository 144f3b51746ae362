// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Reading the tree of an image, whoever wrote it.

use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use resnap_layer::Time;

use crate::dirent;
use crate::format::{self, INODE, Layout, SLOT, SUPER_OFFSET, SUPER_SIZE, Superblock, mode};
use crate::lower::Metadata;

mod xattr;

/// Features that change nothing about inodes and directories: zero padding, compression
/// configurations, chunks, device tables, inline pclusters, fragments, long prefixes of attributes.
const KNOWN: u32 = 0x7f;

/// What an image is read from.
pub trait ReadAt {
    /// Fills `buffer` with the bytes at `offset`.
    ///
    /// # Errors
    ///
    /// As [`std::io::Read::read_exact`].
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

#[cfg(unix)]
impl ReadAt for std::fs::File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset).ok();
        let bytes = bytes.and_then(|start| self.get(start..)?.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self[..].read_exact_at(buffer, offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// Its file cannot be read, or ends early.
    #[error("read the EROFS image at byte {offset}")]
    Read {
        /// Where.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is malformed.
    #[error("malformed {what} at byte {offset} of the EROFS image")]
    Corrupt {
        /// What is malformed.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// It needs what is not built here.
    #[error("the EROFS image has {0}, which is not supported")]
    Unsupported(&'static str),
    /// It needs what is not even known here.
    #[error("the EROFS image has features that are not known: {0:#x} in feature_incompat")]
    Features(u32),
}

type Result<T> = std::result::Result<T, ImageError>;

/// An image.
#[derive(Debug, Clone)]
pub struct ErofsReader<R> {
    source: R,
    superblock: Superblock,
    /// Prefixes of extended attributes, once one is needed.
    prefixes: OnceLock<Vec<Option<Vec<u8>>>>,
}

/// An inode of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Its node ID, which hard links share.
    pub id: u64,
    /// Type and permissions, as `stat` has them.
    pub mode: u32,
    /// Bytes of its data.
    pub size: u64,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it was modified last.
    pub mtime: Time,
    /// How many names it has.
    pub links: u32,
    inode: format::Inode,
    /// Where the inode is, in bytes.
    offset: u64,
}

impl Node {
    /// Whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.inode.mode & mode::TYPE == mode::DIRECTORY
    }

    /// Whether overlayfs takes it for a whiteout: a character device 0:0.
    pub fn is_whiteout(&self) -> bool {
        self.inode.mode & mode::TYPE == mode::CHARACTER && self.inode.place == 0
    }

    /// The number of a device as `stat` has it in 32 bits; `None` for other types.
    pub fn device(&self) -> Option<u32> {
        let is_device = matches!(self.inode.mode & mode::TYPE, mode::CHARACTER | mode::BLOCK);
        is_device.then_some(self.inode.place)
    }
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// The name: 1 to 255 bytes, no `/`, no NUL.
    pub name: Vec<u8>,
    /// Its inode's node ID.
    pub id: u64,
}

impl<R: ReadAt> ErofsReader<R> {
    /// The image in `source`.
    ///
    /// # Errors
    ///
    /// No image, or one that needs features that are not known here.
    pub fn open(source: R) -> Result<Self> {
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
        Ok(Self {
            source,
            superblock,
            prefixes: OnceLock::new(),
        })
    }

    /// The image's UUID.
    pub fn uuid(&self) -> [u8; 16] {
        self.superblock.uuid
    }

    /// How many bytes the image says its file has, at least.
    pub fn size(&self) -> u64 {
        u64::from(self.superblock.blocks) << self.superblock.block_bits
    }

    /// How many inodes the image says it has.
    pub fn inodes(&self) -> u64 {
        self.superblock.inodes
    }

    /// How many other devices the image says it has data on. Some kernels open what it names.
    pub fn devices(&self) -> u16 {
        self.superblock.devices
    }

    /// The root directory.
    ///
    /// # Errors
    ///
    /// As [`Self::node`].
    pub fn root(&self) -> Result<Node> {
        self.node(self.superblock.root.into())
    }

    /// The inode with this node ID.
    ///
    /// # Errors
    ///
    /// It is malformed, or the file cannot be read.
    pub fn node(&self, id: u64) -> Result<Node> {
        let offset = id.checked_mul(SLOT as u64);
        let offset = offset.and_then(|offset| offset.checked_add(self.block(self.superblock.meta)));
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

    /// The inode at `path` (components joined by `/`; empty for the root); `None` if there is none.
    /// Symbolic links are not followed.
    ///
    /// # Errors
    ///
    /// Something on the way is malformed, or the file cannot be read.
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

    /// What `directory` has under this name. It reads few blocks, however large the directory is.
    ///
    /// # Errors
    ///
    /// As [`Self::lookup`].
    pub fn child(&self, directory: &Node, name: &[u8]) -> Result<Option<Node>> {
        let blocks = directory.size.div_ceil(self.block_size());
        // The last block whose first name is not after this one.
        let (mut low, mut high) = (0, blocks);
        let mut found = None;
        let mut block = Vec::new();
        while low < high {
            let middle = low + (high - low) / 2;
            let count = self.directory_block(directory, middle, &mut block)?;
            let first = self.entry(directory, &block, 0, count)?;
            if first.2 > name {
                high = middle;
                continue;
            }
            found = None;
            for index in 0..count {
                let (id, _, other) = self.entry(directory, &block, index, count)?;
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

    /// The names in a directory, without `.` and `..`, block by block.
    pub fn entries<'a>(&'a self, directory: &Node) -> Entries<'a, R> {
        Entries {
            image: self,
            directory: *directory,
            blocks: 0..directory.size.div_ceil(self.block_size()),
            block: Vec::new(),
            entries: 0..0,
        }
    }

    /// The metadata of a node.
    ///
    /// # Errors
    ///
    /// Its extended attributes are malformed, or the file cannot be read.
    pub fn metadata(&self, node: &Node) -> Result<Metadata> {
        Ok(Metadata {
            mode: node.mode & 0o7777,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            xattrs: self.xattrs(node)?,
        })
    }

    /// Fills `buffer` with the data at `offset` of a file or symbolic link; how many bytes there were.
    ///
    /// # Errors
    ///
    /// The data is compressed or in chunks, or the file cannot be read.
    pub fn read(&self, node: &Node, offset: u64, buffer: &mut [u8]) -> Result<usize> {
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

    fn block_size(&self) -> u64 {
        1 << self.superblock.block_bits
    }

    /// Where a block is, in bytes.
    fn block(&self, address: u32) -> u64 {
        u64::from(address) << self.superblock.block_bits
    }

    /// Where the data at `offset` of a node is, and how much of it follows there.
    fn locate(&self, node: &Node, offset: u64) -> Result<(u64, u64)> {
        let size = self.block_size();
        // Where what is behind the inode begins.
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
            let place = self.block(node.inode.place).checked_add(offset);
            return Ok((place.ok_or(corrupt("block address"))?, tail - offset));
        }
        let inline = node.offset + (node.inode.length + node.inode.xattrs) as u64;
        let left = node.size - offset;
        if inline % size + (node.size - tail) > size {
            return Err(corrupt("inline data"));
        }
        Ok((inline + (offset - tail), left))
    }

    /// Reads a block of a directory; how many entries it has.
    fn directory_block(&self, directory: &Node, index: u64, block: &mut Vec<u8>) -> Result<usize> {
        let corrupt = ImageError::Corrupt {
            what: "directory",
            offset: directory.offset,
        };
        if !directory.is_directory() {
            return Err(corrupt);
        }
        let offset = index * self.block_size();
        let length = self.block_size().min(directory.size.saturating_sub(offset));
        block.resize(usize::try_from(length).unwrap_or(0), 0);
        self.read(directory, offset, block)?;
        dirent::count(block).ok_or(corrupt)
    }

    fn entry<'a>(
        &self,
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
}

fn read(source: &impl ReadAt, offset: u64, buffer: &mut [u8]) -> Result<()> {
    let result = source.read_exact_at(buffer, offset);
    result.map_err(|source| ImageError::Read { offset, source })
}

/// The names in a directory. Ends after an error.
#[derive(Debug)]
pub struct Entries<'a, R> {
    image: &'a ErofsReader<R>,
    directory: Node,
    blocks: Range<u64>,
    block: Vec<u8>,
    /// Those of the block that are left.
    entries: Range<usize>,
}

impl<R: ReadAt> Entries<'_, R> {
    fn advance(&mut self) -> Result<Option<Named>> {
        loop {
            let Some(index) = self.entries.next() else {
                let Some(block) = self.blocks.next() else {
                    return Ok(None);
                };
                let count = self
                    .image
                    .directory_block(&self.directory, block, &mut self.block)?;
                self.entries = 0..count;
                continue;
            };
            let count = self.entries.end;
            let (id, _, name) = self
                .image
                .entry(&self.directory, &self.block, index, count)?;
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
