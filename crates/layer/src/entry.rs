// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Entries of a layer and their parts.

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path below the root: components joined by `/`, none of them empty, `.`, `..` or longer than
    /// 255 bytes, with any bytes but NUL. Empty for the root itself, which is always a directory.
    ///
    /// For a whiteout this is the hidden path, for an opaque marker the directory.
    pub path: Vec<u8>,
    /// The type, with the data that belongs to it.
    pub kind: EntryKind,
    /// The metadata. Whiteouts and opaque markers have some too, but it means nothing.
    pub metadata: Metadata,
}

/// The metadata of a file, directory or other inode.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permissions with set-user-ID, set-group-ID and sticky bit: `0` to `0o7777`.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The time of the last modification.
    pub mtime: Time,
    /// Extended attributes, ordered by name, each name once.
    pub xattrs: Vec<Xattr>,
}

/// The type of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file. [`Layer::data`](crate::Layer::data) returns its data.
    File(File),
    /// A directory.
    Directory,
    /// A symbolic link to this target, as written: at least one byte, no NUL.
    Symlink(Vec<u8>),
    /// Another name for the entry at this path, which has the form of [`Entry::path`].
    Hardlink(Vec<u8>),
    /// A character device.
    Character {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A whiteout: hides this path in the layers below.
    Whiteout,
    /// An opaque marker: hides the content of this directory in the layers below.
    Opaque,
}

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// The size in bytes, including holes; at most `i64::MAX`.
    pub size: u64,
    /// The extents that hold data, if the file has holes: in order, within the size, none empty, no two
    /// overlapping. Everything else reads as zeros.
    pub extents: Option<Vec<Extent>>,
}

/// A range of a sparse file that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The first byte.
    pub offset: u64,
    /// The number of bytes.
    pub length: u64,
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Seconds since 1970, rounded down: negative before.
    pub seconds: i64,
    /// Nanoseconds within that second, less than 10^9.
    pub nanoseconds: u32,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// The full name, such as `user.mime_type`: at least one byte, no NUL.
    pub name: Vec<u8>,
    /// The value: any bytes, or none.
    pub value: Vec<u8>,
}

/// A piece of a file's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// The position in the file, in bytes.
    pub offset: u64,
    /// The data, never empty.
    pub bytes: &'a [u8],
}
