// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Committed layers that are compared with what proves them.

use std::num::NonZeroU64;

use serde::Serialize;

use crate::{ChainView, Descriptor, DiffId, Integrity};

/// A committed layer that is to be compared with what proves it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct LayerToVerify {
    /// The chain, which a lease holds meanwhile.
    pub chain: ChainView,
    /// The index of the layer in the chain, the base being 0.
    pub index: usize,
    /// The blob.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// The proof that layers of the snapshotter need.
    pub integrity: Integrity,
    /// The most bytes that are read in a second; `None` for as many as there are.
    pub rate: Option<NonZeroU64>,
}

impl LayerToVerify {
    /// Returns a layer of a chain, to be read as fast as can be, which needs no proof.
    pub fn new(chain: ChainView, index: usize, descriptor: Descriptor, diff_id: DiffId) -> Self {
        Self {
            chain,
            index,
            descriptor,
            diff_id,
            integrity: Integrity::Off,
            rate: None,
        }
    }
}

/// The evidence that a layer is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Evidence {
    /// The dm-verity tree of its image.
    Tree,
    /// Its blob in the content store.
    Blob,
}

impl Evidence {
    /// Returns the word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tree => "tree",
            Self::Blob => "blob",
        }
    }
}

/// The differences between a layer and what proves it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Differences {
    /// Their number.
    pub total: u64,
    /// The first [`Differences::KEPT`] of them, each with the file or block.
    pub first: Vec<String>,
}

impl Differences {
    /// The most differences that are described.
    pub const KEPT: usize = 32;

    /// Adds a difference, which is described if there is room.
    pub fn add(&mut self, describe: impl FnOnce() -> String) {
        self.total += 1;
        if self.first.len() < Self::KEPT {
            self.first.push(describe());
        }
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.total == 0
    }
}

/// The result of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// The evidence that the layer was compared with.
    pub by: Evidence,
    /// The bytes that were read.
    pub bytes: u64,
    /// The differences.
    pub differences: Differences,
}

impl Verified {
    /// Returns a result without differences.
    pub fn new(by: Evidence, bytes: u64) -> Self {
        Self {
            by,
            bytes,
            differences: Differences::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_differences_are_counted_and_the_first_described() {
        let mut differences = Differences::default();
        assert!(differences.is_empty());
        for number in 0..100 {
            differences.add(|| format!("file {number}"));
        }
        assert_eq!(differences.total, 100);
        assert_eq!(differences.first.len(), Differences::KEPT);
        assert_eq!(differences.first[31], "file 31");
    }
}
