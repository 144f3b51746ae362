// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The entry that is being read.

use crate::entry::Extent;

/// The entry that is being read, and the progress of reading its data.
#[derive(Debug, Default)]
pub(crate) struct CurrentEntry {
    /// The path, for error messages.
    pub(crate) path: Vec<u8>,
    /// The offset of the header in the stream.
    pub(crate) header: u64,
    /// Bytes of data left in the stream, without padding.
    pub(crate) left: u64,
    /// Bytes of padding after the data.
    pub(crate) padding: u64,
    /// The position in the file of the next byte.
    pub(crate) offset: u64,
    /// The extents of a sparse file that are not yet read, the last one first.
    pub(crate) extents: Option<Vec<Extent>>,
    /// Whether the data belongs to no file, such as that of a whiteout.
    pub(crate) is_hidden: bool,
}

impl CurrentEntry {
    /// Records that `count` bytes of data were read.
    pub(crate) fn advance(&mut self, count: u64) {
        self.left -= count;
        self.offset += count;
        if let Some(extents) = &mut self.extents
            && let Some(extent) = extents.last_mut()
        {
            extent.offset += count;
            extent.length -= count;
            if extent.length == 0 {
                extents.pop();
            }
        }
    }
}
