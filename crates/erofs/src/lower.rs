// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The layers below the one that is written.

use std::error::Error as StdError;

use resnap_layer::Metadata;

/// The layers below the one that is written.
///
/// A layer may have `a/b` without an entry for `a`. Its `a` still decides the metadata of `a` in the
/// merged tree, so it must have the metadata of `a` in the layers below.
pub trait Lower {
    /// Returns the metadata of the directory at `path` in the merged tree of the layers below, or
    /// `None` if there is no such directory. `path` is clean: components joined by `/`, empty for the
    /// root.
    ///
    /// Paths come depth first, all children of a directory after each other.
    ///
    /// # Errors
    ///
    /// The metadata cannot be read, or the lookups have taken too long. The image is not written then.
    fn directory(
        &mut self,
        path: &[u8],
    ) -> Result<Option<Metadata>, Box<dyn StdError + Send + Sync>>;
}

/// No layers below, for the lowest layer.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoLower;

impl Lower for NoLower {
    fn directory(&mut self, _: &[u8]) -> Result<Option<Metadata>, Box<dyn StdError + Send + Sync>> {
        Ok(None)
    }
}
