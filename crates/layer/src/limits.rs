// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Bounds on what a layer may contain.

/// Bounds on what a layer may contain. A layer that exceeds one of them is refused with
/// [`Fault::Limit`](crate::Fault::Limit), before memory is allocated for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a path or of a link's target, as written.
    pub path: usize,
    /// Bytes of all extension headers of one entry.
    pub extensions: usize,
    /// Bytes of the names and values of one entry's extended attributes.
    pub xattrs: usize,
    /// Extents of one sparse file.
    pub extents: usize,
    /// Entries of the layer.
    pub entries: usize,
}

/// Paths as long as Linux accepts them (`PATH_MAX` without the terminating NUL: 4095), 1 MiB of
/// extension headers, 256 KiB of extended attributes, 2^18 extents (4 MiB of memory), 4 million entries.
impl Default for Limits {
    fn default() -> Self {
        Self {
            path: 4095,
            extensions: 1 << 20,
            xattrs: 1 << 18,
            extents: 1 << 18,
            entries: 4_000_000,
        }
    }
}
