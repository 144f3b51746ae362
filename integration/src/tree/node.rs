// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A file tree in memory.

use std::collections::{BTreeMap, BTreeSet};

/// Everything below a directory, by the path relative to it. The directory itself is `.`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    /// The node at each path; names in Linux are bytes.
    pub nodes: BTreeMap<Vec<u8>, Node>,
    /// Names that are listed with nothing behind them: so overlayfs shows a whiteout in a directory
    /// that no other layer has. The comparison does not look at them.
    pub ghosts: BTreeSet<Vec<u8>>,
}

/// A file, directory or other node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The type.
    pub kind: Kind,
    /// The permission bits with set-user-ID, set-group-ID and sticky.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The size of a regular file.
    pub size: Option<u64>,
    /// The SHA-256 of a regular file.
    pub content: Option<String>,
    /// The target of a symbolic link.
    pub target: Option<Vec<u8>>,
    /// The major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// The modification time in seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// The extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The other paths of the same inode.
    pub links: Vec<Vec<u8>>,
}

/// The type of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}
