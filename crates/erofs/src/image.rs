// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The inodes of an image and their data.

use resnap_layer::Time;

use crate::chunk::{ChunkPlace, Chunks};
use crate::format::{self, INODE, Layout, SLOT, SUPER_OFFSET, SUPER_SIZE, mode};
use crate::source::{ImageError, ReadAt, Result, read};
use crate::superblock::{DeviceSlot, Superblock};

/// Features that do not change inodes and directories: zero padding, compression configurations,
/// chunks, device tables, inline pclusters, fragments, long prefixes of attributes.
const KNOWN: u32 = 0x7f;

/// An image whose superblock has been read.
#[derive(Debug, Clone)]
pub(crate) struct Image<R> {
    pub(crate) source: R,
    pub(crate) superblock: Superblock,
    /// The other devices. If there are none, the image has their data at the addresses in their slots.
    devices: Vec<Device<R>>,
}

/// A device with data, besides the image.
#[derive(Debug, Clone)]
struct Device<R> {
    source: R,
    slot: DeviceSlot,
}

/// A piece of a node's data.
#[derive(Debug)]
struct DataPiece<'a, R> {
    /// The location, or `None` for a hole.
    place: Option<DataPlace<'a, R>>,
    /// Bytes of data that follow there without a gap.
    length: u64,
}

/// The location of data.
#[derive(Debug)]
struct DataPlace<'a, R> {
    /// The device, or `None` for the image.
    device: Option<&'a Device<R>>,
    /// The offset in its file.
    offset: u64,
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

    /// Returns where the inode and its attributes end.
    fn end(&self) -> u64 {
        self.offset + (self.inode.length + self.inode.xattrs) as u64
    }

    pub(crate) fn corrupt(&self, what: &'static str) -> ImageError {
        ImageError::Corrupt {
            what,
            offset: self.offset,
        }
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
        Ok(Self {
            source,
            superblock,
            devices: Vec::new(),
        })
    }

    /// Adds the devices, which must be as many as the image has.
    pub(crate) fn with_devices(mut self, sources: Vec<R>) -> Result<Self> {
        let count = self.superblock.devices.count;
        if sources.len() != usize::from(count) {
            return Err(ImageError::Devices {
                needed: count,
                given: sources.len(),
            });
        }
        let devices = sources.into_iter().zip(0..).map(|(source, index)| {
            let slot = self.slot(index)?;
            Ok(Device { source, slot })
        });
        self.devices = devices.collect::<Result<_>>()?;
        Ok(self)
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
            let piece = self.locate(node, at)?;
            let length = usize::try_from(piece.length).unwrap_or(usize::MAX);
            let part = rest.get_mut(..length.min(rest.len()));
            let part = part.unwrap_or_default();
            match piece.place {
                Some(DataPlace { device, offset }) => {
                    let source = device.map_or(&self.source, |device| &device.source);
                    read(source, offset, part)?;
                }
                None => part.fill(0),
            }
            done += part.len();
        }
        Ok(done)
    }

    /// Returns the bytes of a hole at `offset` of a node that are known to be one without reading them.
    pub(crate) fn hole(&self, node: &Node, offset: u64) -> Result<u64> {
        if node.inode.layout != Layout::Chunks {
            return Ok(0);
        }
        let piece = self.locate(node, offset)?;
        Ok(piece.place.map_or(piece.length, |_| 0))
    }

    /// Returns the offset in the file of all data of a node.
    pub(crate) fn position(&self, node: &Node) -> Result<u64> {
        let piece = self.locate(node, 0)?;
        match piece.place {
            Some(place) if piece.length == node.size => match place.device {
                None => Ok(place.offset),
                Some(_) => Err(ImageError::Unsupported("data on another device here")),
            },
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

    /// Returns the data at `offset` of a node, which must be less than its size.
    fn locate(&self, node: &Node, offset: u64) -> Result<DataPiece<'_, R>> {
        let size = self.block_size();
        // The start of the inline part.
        let tail = match node.inode.layout {
            Layout::Plain => node.size,
            Layout::Inline => node.size.saturating_sub(1) / size * size,
            Layout::Chunks => return self.locate_chunk(node, offset),
            Layout::Compressed(_) => return Err(ImageError::Unsupported("compressed data here")),
        };
        let (start, end) = match offset < tail {
            true => (
                self.block_offset(node.inode.place).checked_add(offset),
                tail,
            ),
            false if node.end() % size + (node.size - tail) > size => {
                return Err(node.corrupt("inline data"));
            }
            false => (Some(node.end() + (offset - tail)), node.size),
        };
        Ok(DataPiece {
            place: Some(DataPlace {
                device: None,
                offset: start.ok_or(node.corrupt("block address"))?,
            }),
            length: end - offset,
        })
    }

    /// Returns the data at `offset` of a node in chunks.
    fn locate_chunk(&self, node: &Node, offset: u64) -> Result<DataPiece<'_, R>> {
        let chunks = Chunks::decode(node.inode.place);
        let chunks = chunks.ok_or(ImageError::Unsupported("chunks of an unknown form"))?;
        let size = chunks.bytes(self.superblock.block_bits);
        let table = node.end().checked_next_multiple_of(chunks.unit());
        let unit = (offset / size).checked_mul(chunks.unit());
        let unit = unit.and_then(|unit| unit.checked_add(table?));
        let unit = unit.ok_or(node.corrupt("chunk"))?;
        let mut bytes = [0; 8];
        let length = usize::try_from(chunks.unit()).unwrap_or(0);
        let bytes = bytes.get_mut(..length).unwrap_or_default();
        read(&self.source, unit, bytes)?;

        let within = offset % size;
        let place = chunks.place(bytes);
        let place = place.map(|place| self.place(node, place, within));
        Ok(DataPiece {
            place: place.transpose()?,
            length: (size - within).min(node.size - offset),
        })
    }

    /// Returns the location of the data at `offset` of a chunk.
    fn place(&self, node: &Node, place: ChunkPlace, offset: u64) -> Result<DataPlace<'_, R>> {
        let count = self.superblock.devices.count;
        // Linux ignores the bits that the number of the last device does not need.
        let used = (u32::from(count) + 1).next_power_of_two() - 1;
        let number = u32::from(place.device) & used;
        let block = self.block_offset(place.block);
        let (device, start) = match number.checked_sub(1) {
            // The image's own addresses go on in the devices.
            None => {
                let mut devices = self.devices.iter();
                let device = devices.find(|device| device.slot.has(place.block));
                let start = device.map_or(0, |device| self.block_offset(device.slot.start));
                (device, block - start)
            }
            Some(index) => {
                let index = u16::try_from(index).ok().filter(|index| *index < count);
                let index = index.ok_or(node.corrupt("number of a device"))?;
                match self.devices.get(usize::from(index)) {
                    Some(device) => (Some(device), block),
                    None => (None, self.block_offset(self.slot(index)?.start) + block),
                }
            }
        };
        let offset = start.checked_add(offset);
        let offset = offset.ok_or(node.corrupt("chunk"))?;
        Ok(DataPlace { device, offset })
    }

    /// Reads the slot of the device at `index`.
    fn slot(&self, index: u16) -> Result<DeviceSlot> {
        let mut bytes = [0; DeviceSlot::SIZE];
        let offset = self.superblock.devices.slot(index);
        read(&self.source, offset, &mut bytes)?;
        Ok(DeviceSlot::decode(&bytes))
    }
}
