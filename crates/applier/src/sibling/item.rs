// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The items that a walk through a layer finds.

use resnap_layer::path::split;
use resnap_layer::{Entry, EntryKind, Metadata};

use super::data::FileData;
use crate::copy_fault::EntryFault;
use crate::xattr::has_default_acl;

/// A file, directory or marker of a layer.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) entry: Entry,
    /// The data of a regular file that is not empty.
    pub(crate) data: Option<FileData>,
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

    /// Returns a directory's items: before what is in it, and after that. What is in it has its own
    /// access control lists by now, and must not inherit one. The name may be that of a marker: a layer
    /// need not state the directory of a file.
    pub(super) fn directory(
        path: Vec<u8>,
        metadata: Metadata,
        has_content: bool,
    ) -> (Self, Option<Self>) {
        let mut before = Self::new(path, EntryKind::Directory, metadata);
        if !(has_content && has_default_acl(&before.entry.metadata.xattrs)) {
            return (before, None);
        }
        let Entry {
            path,
            kind,
            metadata,
        } = before.entry.clone();
        before.entry.metadata.xattrs.clear();
        (before, Some(Self::new(path, kind, metadata)))
    }

    /// Returns the whiteout of a path.
    pub(super) fn whiteout(path: Vec<u8>) -> Result<Self, EntryFault> {
        // This name would make it an opaque marker.
        match split(&path).1 {
            b".wh..opq" => Err(EntryFault::Name),
            _ => Ok(Self::new(path, EntryKind::Whiteout, Metadata::default())),
        }
    }

    /// Returns the opaque marker of a directory.
    pub(super) fn opaque(path: Vec<u8>) -> Self {
        Self::new(path, EntryKind::Opaque, Metadata::default())
    }
}

/// Returns whether a layer's reader takes this name for a marker.
pub(super) fn is_marker(name: &[u8]) -> bool {
    name.starts_with(b".wh.")
}
