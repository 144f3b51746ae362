// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A builder of layers for tests, byte for byte.

/// Types of entries (`typeflag` in POSIX `pax`).
pub mod typeflag {
    /// A regular file.
    pub const REGULAR: u8 = b'0';
    /// A hard link.
    pub const HARD_LINK: u8 = b'1';
    /// A symbolic link.
    pub const SYMLINK: u8 = b'2';
    /// A character device.
    pub const CHARACTER: u8 = b'3';
    /// A block device.
    pub const BLOCK: u8 = b'4';
    /// A directory.
    pub const DIRECTORY: u8 = b'5';
    /// A FIFO.
    pub const FIFO: u8 = b'6';
    /// A contiguous file.
    pub const CONTIGUOUS: u8 = b'7';
}

/// A tar stream under construction.
#[derive(Debug, Clone, Default)]
pub struct Tar {
    /// The stream so far.
    pub bytes: Vec<u8>,
    /// The metadata of entries that are added from now on.
    pub metadata: Metadata,
}

/// The metadata in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// The permissions.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The time of the last modification, in seconds.
    pub mtime: u64,
    /// Major and minor number of devices.
    pub device: (u32, u32),
}

impl Default for Metadata {
    fn default() -> Self {
        Self {
            mode: 0o644,
            uid: 1000,
            gid: 1001,
            mtime: 999,
            device: (0, 0),
        }
    }
}

/// Returns a number as a field of `width` bytes.
pub fn octal(value: u64, width: usize) -> Vec<u8> {
    let digits = width - 1;
    format!("{value:0digits$o}\0").into_bytes()
}

/// Returns a number as twelve bytes of base-256. The last eight fit a shorter field.
pub fn binary(value: i64) -> Vec<u8> {
    let mut bytes = i128::from(value).to_be_bytes()[4..].to_vec();
    bytes[0] |= 0x80;
    bytes
}

/// Returns a number as a field of 8 or 12 bytes: in octal if it fits, else in base-256.
fn number(value: u64, width: usize) -> Vec<u8> {
    if value >> (3 * (width - 1)) == 0 {
        return octal(value, width);
    }
    let mut bytes = u128::from(value).to_be_bytes()[16 - width..].to_vec();
    bytes[0] |= 0x80;
    bytes
}

/// Returns a header in POSIX format with `changes` at offsets, and a valid checksum.
pub fn header(
    kind: u8,
    name: impl AsRef<[u8]>,
    size: u64,
    changes: &[(usize, &[u8])],
) -> [u8; 512] {
    header_with(&Metadata::default(), kind, name, size, changes)
}

fn header_with(
    metadata: &Metadata,
    kind: u8,
    name: impl AsRef<[u8]>,
    size: u64,
    changes: &[(usize, &[u8])],
) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |offset: usize, bytes: &[u8]| {
        block[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, name.as_ref());
    put(100, &number(metadata.mode.into(), 8));
    put(108, &number(metadata.uid.into(), 8));
    put(116, &number(metadata.gid.into(), 8));
    put(124, &number(size, 12));
    put(136, &number(metadata.mtime, 12));
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    if metadata.device != (0, 0) {
        put(329, &octal(metadata.device.0.into(), 8));
        put(337, &octal(metadata.device.1.into(), 8));
    }
    for (offset, bytes) in changes {
        put(*offset, bytes);
    }
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    if !changes.iter().any(|(offset, _)| *offset == 148) {
        block[148..156].copy_from_slice(&octal(sum, 8));
    }
    block
}

/// Returns a record of an extended header.
pub fn record(key: impl AsRef<[u8]>, value: &[u8]) -> Vec<u8> {
    let body = [b" ", key.as_ref(), b"=", value, b"\n"].concat();
    let mut length = body.len();
    while length != body.len() + length.to_string().len() {
        length = body.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &body].concat()
}

impl Tar {
    /// Returns an empty stream whose entries have this metadata.
    pub fn new(metadata: Metadata) -> Self {
        Self {
            bytes: Vec::new(),
            metadata,
        }
    }

    /// Adds an entry with `changes` at offsets of its header.
    #[must_use]
    pub fn with(
        mut self,
        kind: u8,
        name: impl AsRef<[u8]>,
        data: &[u8],
        changes: &[(usize, &[u8])],
    ) -> Self {
        let size = data.len() as u64;
        let header = header_with(&self.metadata, kind, name, size, changes);
        self.bytes.extend(header);
        self.data(data)
    }

    /// Adds bytes and pads them to whole blocks.
    #[must_use]
    pub fn data(mut self, data: &[u8]) -> Self {
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// Adds an entry without data: type, name, and target of a link.
    #[must_use]
    pub fn link(self, kind: u8, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.with(kind, name, b"", &[(157, target.as_ref())])
    }

    /// Adds a file.
    #[must_use]
    pub fn file(self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        self.with(typeflag::REGULAR, name, data.as_ref(), &[])
    }

    /// Adds a directory.
    #[must_use]
    pub fn directory(self, name: impl AsRef<[u8]>) -> Self {
        self.with(typeflag::DIRECTORY, name, b"", &[])
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.link(typeflag::SYMLINK, name, target)
    }

    /// Adds a hard link.
    #[must_use]
    pub fn hardlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.link(typeflag::HARD_LINK, name, target)
    }

    /// Adds an extended header with these records.
    #[must_use]
    pub fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let records: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| record(key, value))
            .collect();
        self.with(b'x', "pax", &records, &[])
    }

    /// Adds the trailer and returns the stream.
    pub fn end(mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        self.bytes
    }
}
