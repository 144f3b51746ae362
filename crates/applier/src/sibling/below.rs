// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Directories of the layers below one that is walked.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use crate::beneath::open_beneath;
use crate::xattr::{OPAQUE_VALUE, XattrNamespace, get};

/// The layers below, the topmost first.
#[derive(Debug)]
pub(super) struct Below(Vec<Arc<OwnedFd>>);

/// The directories at a path in layers below.
#[derive(Debug, Default)]
pub(super) struct Merged {
    /// The topmost, whose metadata shows.
    pub(super) top: Option<OwnedFd>,
    /// The layers whose directory shows, the topmost first.
    pub(super) layers: Vec<usize>,
}

impl Below {
    pub(super) fn new(layers: Vec<Arc<OwnedFd>>) -> Self {
        Self(layers)
    }

    /// Returns all layers.
    pub(super) fn all(&self) -> Vec<usize> {
        (0..self.0.len()).collect()
    }

    /// Returns the directories at `path` that overlayfs merges. `parents` are the layers whose parent of
    /// it shows.
    pub(super) fn merge(&self, parents: &[usize], path: &[u8]) -> io::Result<Merged> {
        let mut merged = Merged::default();
        for layer in parents {
            let Some(root) = self.0.get(*layer) else {
                break;
            };
            let fd = match open_beneath(root, path) {
                Ok(fd) => fd,
                // A file or a whiteout hides what is below it.
                Err(Errno::NOTDIR | Errno::LOOP) => break,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(error.into()),
            };
            merged.layers.push(*layer);
            let name = XattrNamespace::Trusted.opaque_name();
            // overlayfs ignores the attribute on the roots of layers.
            let is_last =
                !path.is_empty() && get(&fd, name.as_bytes())?.as_deref() == Some(OPAQUE_VALUE);
            merged.top.get_or_insert(fd);
            if is_last {
                break;
            }
        }
        Ok(merged)
    }
}
