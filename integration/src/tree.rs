// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Is this file tree that file tree?
//!
//! [`Tree::read`] walks a directory and keeps all that a container could see of each path;
//! [`compare`] gives the differences of two trees, and [`surprises`] holds them against a table
//! of those that are known.
//!
//! What counts: type, mode, owner, group, size and SHA-256 of a regular file, target of a
//! symbolic link, device number, modification time in nanoseconds, which paths are one inode,
//! and the extended attributes of all namespaces that root can read. What does not: access and
//! change time, inode numbers, size and link count of directories, and the attributes
//! `trusted.overlay.*`, in which overlayfs keeps its own books.
//!
//! The walk goes by file descriptors, so no path is too long, follows no symbolic link, opens
//! nothing but directories and regular files, and fails at a mount point instead of crossing it.

mod difference;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::Result;

pub use difference::{Difference, Expected, Field, Surprise, compare, surprises};

/// Everything below a directory, by the path relative to it. The directory itself is `.`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    /// What is at each path; names in Linux are bytes.
    pub nodes: BTreeMap<Vec<u8>, Node>,
    /// Names that are listed with nothing behind them: so overlayfs shows a whiteout in a directory
    /// that no other layer has. [`compare`] does not look at them.
    pub ghosts: BTreeSet<Vec<u8>>,
}

/// What is at a path.
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

/// The type of what is at a path.
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

impl Tree {
    /// Reads all below `root`, which only root may do in full.
    pub fn read(root: &Path) -> Result<Self> {
        walk::read(root)
    }
}
