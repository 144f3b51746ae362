// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The structures of the format with a fixed size (Linux, `fs/erofs/erofs_fs.h`). All numbers are
//! little endian.

use resnap_layer::Time;

/// Bytes at the start of an image that are left for the superblock and what belongs to it.
pub(crate) const HEADER: usize = 4096;

/// The offset of the superblock.
pub(crate) const SUPER_OFFSET: usize = 1024;
/// Bytes of a superblock.
pub(crate) const SUPER_SIZE: usize = 128;
/// Bytes of a slot: node IDs are numbers of slots.
pub(crate) const SLOT: usize = 32;
/// Bytes of an extended inode.
pub(crate) const INODE: usize = 64;
/// The block address of inodes without blocks.
pub(crate) const NO_BLOCK: u32 = u32::MAX;

/// Types of inodes, as in `stat`.
pub(crate) mod mode {
    pub(crate) const TYPE: u16 = 0o170_000;
    pub(crate) const FIFO: u16 = 0o010_000;
    pub(crate) const CHARACTER: u16 = 0o020_000;
    pub(crate) const DIRECTORY: u16 = 0o040_000;
    pub(crate) const BLOCK: u16 = 0o060_000;
    pub(crate) const FILE: u16 = 0o100_000;
    pub(crate) const SYMLINK: u16 = 0o120_000;
    pub(crate) const SOCKET: u16 = 0o140_000;
}

/// The location of an inode's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// In blocks of its own.
    Plain,
    /// The last part, less than a block, behind the inode; all else in blocks.
    Inline,
    /// In compressed blocks (two forms).
    Compressed(u8),
    /// In chunks at any address.
    Chunks,
}

impl Layout {
    fn from_number(number: u16) -> Option<Self> {
        match number {
            0 => Some(Self::Plain),
            2 => Some(Self::Inline),
            1 => Some(Self::Compressed(1)),
            3 => Some(Self::Compressed(3)),
            4 => Some(Self::Chunks),
            _ => None,
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Plain => 0,
            Self::Inline => 2,
            Self::Compressed(number) => number.into(),
            Self::Chunks => 4,
        }
    }
}

/// An inode on disk, without the data that follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inode {
    pub(crate) layout: Layout,
    /// Bytes of the inode: 32 or 64.
    pub(crate) length: usize,
    /// Bytes of extended attributes behind it.
    pub(crate) xattrs: usize,
    /// Type and permissions.
    pub(crate) mode: u16,
    pub(crate) size: u64,
    /// The first block, a device number, or the form of chunks.
    pub(crate) place: u32,
    /// The inode number in a 32-bit `stat`.
    pub(crate) number: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `None` in a compact inode, which has the image's epoch.
    pub(crate) mtime: Option<Time>,
    pub(crate) links: u32,
}

impl Inode {
    /// Returns the extended form.
    pub(crate) fn encode(&self) -> [u8; INODE] {
        let count = match self.xattrs.checked_sub(XATTR_HEADER) {
            None => 0,
            Some(entries) => u16::try_from(entries / 4 + 1).unwrap_or(u16::MAX),
        };
        let mtime = self.mtime.unwrap_or_default();
        let mut bytes = [0; INODE];
        let mut put = Put::new(&mut bytes, 0);
        put.bytes(&(1 | (self.layout.number() << 1)).to_le_bytes());
        put.bytes(&count.to_le_bytes());
        put.bytes(&self.mode.to_le_bytes());
        put.bytes(&[0; 2]);
        put.bytes(&self.size.to_le_bytes());
        put.bytes(&self.place.to_le_bytes());
        put.bytes(&self.number.to_le_bytes());
        put.bytes(&self.uid.to_le_bytes());
        put.bytes(&self.gid.to_le_bytes());
        put.bytes(&mtime.seconds.to_le_bytes());
        put.bytes(&mtime.nanoseconds.to_le_bytes());
        put.bytes(&self.links.to_le_bytes());
        bytes
    }

    /// Returns whether the inode that starts with these bytes is extended.
    pub(crate) fn is_extended(bytes: &[u8; SLOT]) -> bool {
        Get(bytes).u16(0) & 1 != 0
    }

    /// Returns the inode in these bytes, of which a compact one uses 32, or `None` for an unknown layout.
    pub(crate) fn decode(bytes: &[u8; INODE]) -> Option<Self> {
        let get = Get(bytes);
        let format = get.u16(0);
        let layout = Layout::from_number((format >> 1) & 7)?;
        let xattrs = match usize::from(get.u16(2)) {
            0 => 0,
            count => XATTR_HEADER + 4 * (count - 1),
        };
        let common = Self {
            layout,
            length: INODE,
            xattrs,
            mode: get.u16(4),
            size: get.u64(8),
            place: get.u32(16),
            number: get.u32(20),
            uid: get.u32(24),
            gid: get.u32(28),
            mtime: Some(Time {
                seconds: get.u64(32).cast_signed(),
                nanoseconds: get.u32(40),
            }),
            links: get.u32(44),
        };
        if format & 1 != 0 {
            return Some(common);
        }
        Some(Self {
            length: SLOT,
            size: get.u32(8).into(),
            uid: get.u16(24).into(),
            gid: get.u16(26).into(),
            mtime: None,
            links: get.u16(6).into(),
            ..common
        })
    }
}

/// Bytes before the first extended attribute of an inode.
pub(crate) const XATTR_HEADER: usize = 12;

/// Returns a device number as inodes store it, or `None` for one that Linux cannot represent.
pub(crate) fn device(major: u32, minor: u32) -> Option<u32> {
    if major > 0xfff || minor > 0xf_ffff {
        return None;
    }
    Some((minor & 0xff) | (major << 8) | ((minor & !0xff) << 12))
}

/// Returns the type of a directory entry.
pub(crate) fn entry_type(mode: u16) -> u8 {
    match mode & mode::TYPE {
        mode::FILE => 1,
        mode::DIRECTORY => 2,
        mode::CHARACTER => 3,
        mode::BLOCK => 4,
        mode::FIFO => 5,
        mode::SOCKET => 6,
        mode::SYMLINK => 7,
        _ => 0,
    }
}

/// A writer of consecutive fields.
pub(crate) struct Put<'a> {
    target: &'a mut [u8],
    at: usize,
}

impl<'a> Put<'a> {
    pub(crate) fn new(target: &'a mut [u8], at: usize) -> Self {
        Self { target, at }
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        if let Some(target) = self.target.get_mut(self.at..self.at + bytes.len()) {
            target.copy_from_slice(bytes);
        }
        self.at += bytes.len();
    }
}

/// A reader of fields at offsets. Bytes outside read as zeros.
pub(crate) struct Get<'a>(pub(crate) &'a [u8]);

impl Get<'_> {
    pub(crate) fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let bytes = self.0.get(at..).and_then(<[u8]>::first_chunk);
        bytes.copied().unwrap_or([0; N])
    }

    pub(crate) fn u8(&self, at: usize) -> u8 {
        u8::from_le_bytes(self.array(at))
    }

    pub(crate) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub(crate) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(crate) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inodes_are_encoded_and_decoded() {
        let inode = Inode {
            layout: Layout::Inline,
            length: INODE,
            xattrs: 12 + 8,
            mode: mode::FILE | 0o4755,
            size: 1 << 40,
            place: 77,
            number: 3,
            uid: u32::MAX,
            gid: 70_000,
            mtime: Some(Time {
                seconds: -5,
                nanoseconds: 999,
            }),
            links: 2,
        };
        assert_eq!(Inode::decode(&inode.encode()), Some(inode));
    }

    #[test]
    fn devices() {
        assert_eq!(device(8, 3), Some(0x803));
        assert_eq!(device(0xfff, 0xf_ffff), Some(0xffff_ffff));
        assert_eq!(device(0x1000, 0), None);
        assert_eq!(device(0, 0x10_0000), None);
    }
}
