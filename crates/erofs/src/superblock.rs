// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The start of an image: the superblock, and the slots of devices.

use resnap_layer::Time;

use crate::format::{Get, HEADER, Put, SUPER_OFFSET, SUPER_SIZE};

const MAGIC: u32 = 0xe0f5_e1e2;
const COMPAT_CHECKSUM: u32 = 1;
const COMPAT_MTIME: u32 = 2;
/// Prefixes are not in an inode, even if there is one for fragments.
const COMPAT_PLAIN_PREFIXES: u32 = 0x10;
/// Data in chunks.
pub(crate) const INCOMPAT_CHUNKS: u32 = 4;
/// Devices besides the image.
pub(crate) const INCOMPAT_DEVICES: u32 = 8;
const INCOMPAT_PREFIXES: u32 = 0x40;

/// The fields of a superblock that this crate uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub(crate) block_bits: u8,
    /// The node ID of the root.
    pub(crate) root: u16,
    pub(crate) inodes: u64,
    /// The modification time of compact inodes.
    pub(crate) epoch: Time,
    pub(crate) blocks: u32,
    /// The block that node IDs count from.
    pub(crate) meta: u32,
    /// The block that IDs of shared extended attributes count from.
    pub(crate) xattrs: u32,
    pub(crate) uuid: [u8; 16],
    /// Features that a reader must know.
    pub(crate) incompatible: u32,
    pub(crate) devices: Devices,
    /// Directory blocks are `2^this` file system blocks.
    pub(crate) directory_bits: u8,
    pub(crate) prefixes: Prefixes,
}

/// The location of an image's own prefixes of extended attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Prefixes {
    pub(crate) count: u8,
    /// The offset of the first one.
    pub(crate) start: u64,
    /// The inode whose data they are in, if they are in one.
    pub(crate) node: Option<u64>,
}

/// The location of the slots of an image's devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Devices {
    /// The number of devices with data besides the image.
    pub(crate) count: u16,
    /// The first slot, in slots.
    pub(crate) start: u16,
}

impl Devices {
    /// One device, whose slot is behind the superblock.
    pub(crate) const ONE: Self = Self {
        count: 1,
        start: ((SUPER_OFFSET + SUPER_SIZE) / DeviceSlot::SIZE) as u16,
    };

    /// Returns the offset of the slot of the device at `index`.
    pub(crate) fn slot(self, index: u16) -> u64 {
        (u64::from(self.start) + u64::from(index)) * DeviceSlot::SIZE as u64
    }
}

/// A device with data, besides the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DeviceSlot {
    pub(crate) blocks: u32,
    /// The block of the image's own addresses that is the device's first.
    pub(crate) start: u32,
}

impl DeviceSlot {
    /// Bytes of a slot.
    pub(crate) const SIZE: usize = 128;

    /// The first field after the tag, which is unused here.
    const BLOCKS: usize = 64;

    /// Returns whether the device has this block of the image's own addresses.
    pub(crate) fn has(&self, block: u32) -> bool {
        let block = block.checked_sub(self.start);
        self.start > 0 && block.is_some_and(|block| block < self.blocks)
    }

    pub(crate) fn decode(bytes: &[u8; Self::SIZE]) -> Self {
        let get = Get(bytes);
        Self {
            blocks: get.u32(Self::BLOCKS),
            start: get.u32(Self::BLOCKS + 4),
        }
    }
}

impl Superblock {
    /// Returns the start of an image, with the slot of its device. The first 1024 bytes are free for boot
    /// sectors.
    pub(crate) fn encode(&self, device: Option<DeviceSlot>) -> [u8; HEADER] {
        let mut header = [0; HEADER];
        let mut put = Put::new(&mut header, SUPER_OFFSET);
        put.bytes(&MAGIC.to_le_bytes());
        put.bytes(&[0; 4]);
        let compatible = match self.checksum_end() {
            0 => COMPAT_MTIME,
            _ => COMPAT_CHECKSUM | COMPAT_MTIME,
        };
        put.bytes(&compatible.to_le_bytes());
        put.bytes(&[self.block_bits, 0]);
        put.bytes(&self.root.to_le_bytes());
        put.bytes(&self.inodes.to_le_bytes());
        put.bytes(&self.epoch.seconds.to_le_bytes());
        put.bytes(&self.epoch.nanoseconds.to_le_bytes());
        put.bytes(&self.blocks.to_le_bytes());
        put.bytes(&self.meta.to_le_bytes());
        put.bytes(&self.xattrs.to_le_bytes());
        put.bytes(&self.uuid);
        put.bytes(&[0; 16]);
        put.bytes(&self.incompatible.to_le_bytes());
        put.bytes(&[0; 2]);
        put.bytes(&self.devices.count.to_le_bytes());
        put.bytes(&self.devices.start.to_le_bytes());
        if let Some(device) = device {
            let at = SUPER_OFFSET + SUPER_SIZE + DeviceSlot::BLOCKS;
            let mut put = Put::new(&mut header, at);
            put.bytes(&device.blocks.to_le_bytes());
            put.bytes(&device.start.to_le_bytes());
        }
        if let Some(covered) = header.get(SUPER_OFFSET..self.checksum_end()) {
            let checksum = crc32c(covered);
            let mut put = Put::new(&mut header, SUPER_OFFSET + 4);
            put.bytes(&checksum.to_le_bytes());
        }
        header
    }

    /// Returns where the bytes end that the checksum covers: with the superblock's block. If that is not the
    /// first block, there is no checksum (0): fsck.erofs 1.8 crashes on one.
    fn checksum_end(&self) -> usize {
        match 1 << self.block_bits {
            block if block > SUPER_OFFSET => block,
            _ => 0,
        }
    }

    /// Returns the superblock in these bytes, or `None` if it is none.
    pub(crate) fn decode(bytes: &[u8; SUPER_SIZE]) -> Option<Self> {
        let get = Get(bytes);
        if get.u32(0) != MAGIC {
            return None;
        }
        let incompatible = get.u32(80);
        let node = Some(get.u64(96)).filter(|node| *node != 0);
        let prefixes = Prefixes {
            count: get.u8(91),
            start: 4 * u64::from(get.u32(92)),
            node: node.filter(|_| get.u32(8) & COMPAT_PLAIN_PREFIXES == 0),
        };
        Some(Self {
            block_bits: get.u8(12),
            root: get.u16(14),
            inodes: get.u64(16),
            epoch: Time {
                seconds: get.u64(24).cast_signed(),
                nanoseconds: get.u32(32),
            },
            blocks: get.u32(36),
            meta: get.u32(40),
            xattrs: get.u32(44),
            uuid: get.array(48),
            incompatible,
            devices: match incompatible & INCOMPAT_DEVICES {
                0 => Devices::default(),
                _ => Devices {
                    count: get.u16(86),
                    start: get.u16(88),
                },
            },
            directory_bits: get.u8(90),
            prefixes: match incompatible & INCOMPAT_PREFIXES {
                0 => Prefixes::default(),
                _ => prefixes,
            },
        })
    }
}

/// Returns the CRC-32C without the final inversion. Bit by bit is fast enough for the 3 KiB of an image.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn superblocks_are_encoded_and_decoded() {
        let superblock = Superblock {
            block_bits: 12,
            root: 36,
            inodes: 7,
            epoch: Time::default(),
            blocks: 99,
            meta: 5,
            xattrs: 0,
            uuid: *b"0123456789abcdef",
            incompatible: 0,
            devices: Devices::default(),
            directory_bits: 0,
            prefixes: Prefixes::default(),
        };
        let header = superblock.encode(None);
        let bytes = header[SUPER_OFFSET..].first_chunk().unwrap();
        assert_eq!(Superblock::decode(bytes), Some(superblock));
        assert_eq!(Superblock::decode(&[0; SUPER_SIZE]), None);

        let slot = DeviceSlot {
            blocks: 7,
            start: 9,
        };
        let superblock = Superblock {
            incompatible: INCOMPAT_DEVICES,
            devices: Devices::ONE,
            ..superblock
        };
        let header = superblock.encode(Some(slot));
        let bytes = header[SUPER_OFFSET..].first_chunk().unwrap();
        assert_eq!(Superblock::decode(bytes), Some(superblock));
        let at = usize::try_from(superblock.devices.slot(0)).unwrap();
        assert_eq!(at, SUPER_OFFSET + SUPER_SIZE);
        assert_eq!(
            DeviceSlot::decode(header[at..].first_chunk().unwrap()),
            slot
        );
    }

    #[test]
    fn checksum() {
        // The check value of CRC-32C, without its last inversion.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }
}
