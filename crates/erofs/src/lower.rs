// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What lower layers know of a directory.

use std::error::Error as StdError;

use resnap_layer::{Time, Xattr};

/// The metadata of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permissions with set-user-ID, set-group-ID and sticky bit: `0` to `0o7777`.
    pub mode: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// When it was modified last.
    pub mtime: Time,
    /// Extended attributes by whole names.
    pub xattrs: Vec<Xattr>,
}

/// Layers below the one that is written.
///
/// A layer may have `a/b` and not state `a`. In the merged tree the metadata of its `a` count all the
/// same, so they must be those of `a` in the layers below.
pub trait Lower {
    /// The metadata of the directory at `path` (components joined by `/`; empty for the root) in the
    /// tree that the layers below make together; `None` if there is no such directory.
    ///
    /// Paths come depth first, all that are in one directory after each other.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from knowing, or that it has taken too long: no more is asked then, and the
    /// image is not written.
    fn directory(
        &mut self,
        path: &[u8],
    ) -> Result<Option<Metadata>, Box<dyn StdError + Send + Sync>>;
}

/// No layers: the layer is the lowest.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLower;

impl Lower for NoLower {
    fn directory(&mut self, _: &[u8]) -> Result<Option<Metadata>, Box<dyn StdError + Send + Sync>> {
        Ok(None)
    }
}
