// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The items that a walk through a layer finds.

use resnap_layer::{Entry, EntryKind, Metadata};

use super::data::FileData;

/// A file, directory or marker of a layer.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) entry: Entry,
    /// The data of a regular file that is not empty.
    pub(super) data: Option<FileData>,
}

impl Item {
    /// Returns an item without data.
    pub(super) fn new(path: Vec<u8>, kind: EntryKind, metadata: Metadata) -> Self {
        Self {
            entry: Entry {
                path,
                kind,
                metadata,
            },
            data: None,
        }
    }
}
