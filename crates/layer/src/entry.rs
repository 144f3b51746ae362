// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What a layer consists of.

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Where it is below the root: components joined by `/`, none of them empty, `.`, `..` or longer
    /// than 255 bytes; any bytes but NUL. Empty for the root itself, which is always a directory.
    ///
    /// Of a whiteout it is the path that is hidden, of an opaque marker the directory's.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permissions with set-user-ID, set-group-ID and sticky bit: `0` to `0o7777`.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it was modified last.
    pub mtime: Time,
    /// Extended attributes, ordered by name, each name once.
    pub xattrs: Vec<Xattr>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file; [`Layer::data`](crate::Layer::data) has its data.
    File(File),
    /// A directory.
    Directory,
    /// A symbolic link to this target, as it was written: any bytes but NUL, at least one.
    Symlink(Vec<u8>),
    /// Another name of the entry at this path, which is written as [`Entry::path`] is.
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
    /// What lower layers have at this path is gone.
    Whiteout,
    /// What lower layers have in this directory is gone.
    Opaque,
}

/// A regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its size in bytes, holes included; at most `i64::MAX`.
    pub size: u64,
    /// Where its data is, if there are holes: in order, without overlap, inside the size, none
    /// empty. All else reads as zeros.
    pub extents: Option<Vec<Extent>>,
}

/// A stretch of a file that is no hole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
}

/// A point in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Time {
    /// Seconds since 1970, rounded down: negative before.
    pub seconds: i64,
    /// Nanoseconds after that second, less than 10^9.
    pub nanoseconds: u32,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Xattr {
    /// The whole name, as `user.mime_type`: any bytes but NUL, at least one.
    pub name: Vec<u8>,
    /// Its value: any bytes, or none.
    pub value: Vec<u8>,
}

/// Some of a file's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Where it belongs in the file, in bytes.
    pub offset: u64,
    /// The data, never empty.
    pub bytes: &'a [u8],
}
