// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A layer of the table, and what the layers are made of.

use std::io;

use anyhow::{Context, Result};

use super::super::layer::{Compression, Layer};
use super::super::tar_entry::{self, Entry};

/// A layer of the table: its name and the function that makes its tar.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// The unusual property.
    pub name: &'static str,
    /// Makes the uncompressed tar.
    pub tar: fn() -> io::Result<Vec<u8>>,
    /// The error of mkfs.erofs 1.8, with which containerd 2.1 makes EROFS layers.
    pub mkfs_fails: Option<&'static str>,
}

impl Case {
    pub(super) const fn new(name: &'static str, tar: fn() -> io::Result<Vec<u8>>) -> Self {
        Self {
            name,
            tar,
            mkfs_fails: None,
        }
    }

    pub(super) const fn mkfs_fails(mut self, how: &'static str) -> Self {
        self.mkfs_fails = Some(how);
        self
    }

    /// Returns the layer of this case.
    pub fn layer(&self, compression: Compression) -> Result<Layer> {
        let tar = (self.tar)().with_context(|| format!("cannot write the layer {}", self.name))?;
        Layer::new(&tar, compression)
    }
}

/// Returns the tar of `entries` with their paths, and the targets of hard links, taken from `dir`, which
/// is stated before them with its parents.
pub(super) fn within<const N: usize>(dir: &str, entries: [Entry; N]) -> io::Result<Vec<u8>> {
    all_within(dir, entries.to_vec())
}

/// [`within`] for entries that are counted at run time.
pub(super) fn all_within(dir: &str, entries: Vec<Entry>) -> io::Result<Vec<u8>> {
    let mut all: Vec<_> = dir
        .match_indices('/')
        .map(|(end, _)| Entry::dir(&dir[..end]))
        .chain([Entry::dir(dir)])
        .collect();
    for mut entry in entries {
        entry.path = [dir.as_bytes(), b"/", &entry.path].concat();
        if entry.typeflag == b'1' {
            entry.link = [dir.as_bytes(), b"/", &entry.link].concat();
        }
        all.push(entry);
    }
    tar_entry::pack(&all)
}

/// Returns `length` bytes that do not compress, always the same ones.
pub(super) fn noise(length: usize) -> Vec<u8> {
    super::super::noise::noise(0x2545_f491_4f6c_dd1d, length)
}
