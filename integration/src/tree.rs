// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Is this file tree that file tree?
//!
//! [`read`] walks a directory and keeps all that a container could see of each path;
//! [`compare`] gives the differences of two trees, and [`surprises`] holds them against a table
//! of those that are known.
//!
//! Compared are type, mode, owner, group, size and SHA-256 of a regular file, target of a
//! symbolic link, device number, modification time in nanoseconds, which paths are one inode,
//! and the extended attributes of all namespaces that root can read. Ignored are access and
//! change time, inode numbers, size and link count of directories, and the attributes
//! `trusted.overlay.*`, in which overlayfs keeps its own books.
//!
//! The walk goes by file descriptors, so no path is too long, follows no symbolic link, opens
//! nothing but directories and regular files, and fails at a mount point instead of crossing it.

mod difference;
mod node;
mod walk;

pub use difference::{Difference, Expected, Field, Surprise, compare, surprises};
pub use node::{Kind, Node, Tree};
pub use walk::read;
