// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The items that a walk through a layer finds.

use std::fs::File;

use resnap_layer::{EntryKind, Metadata};

/// A file, directory or marker of a layer.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) path: Vec<u8>,
    pub(super) kind: ItemKind,
    pub(super) metadata: Metadata,
}

/// The type of an item.
#[derive(Debug)]
pub(super) enum ItemKind {
    /// A file, with its size.
    File {
        file: File,
        size: u64,
        may_have_holes: bool,
    },
    /// All others.
    Other(EntryKind),
}
