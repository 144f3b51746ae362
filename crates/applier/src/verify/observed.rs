// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The entries of a layer, observed for what its image does not tell: which directories it states, and where
//! containerd's differ makes something else of it.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};

use resnap_layer::{Entry, EntryKind, EntrySource, Error, Fault, Piece};

use crate::error::StreamError;
use crate::guard::Guard;

/// Bytes that a path takes besides its own.
const PATH: u64 = 96;

/// Bytes that a hash takes.
const HASH: u64 = 32;

/// The observations of a layer.
#[derive(Debug, Default)]
pub(super) struct Observations {
    /// The hashes of the directories' paths. The key is random, so nobody can make two equal.
    stated: HashSet<u64>,
    key: RandomState,
    /// Directories with several entries. containerd gives one the attributes of all, and an image has those
    /// of the last.
    repeated: HashSet<Vec<u8>>,
    /// Whiteouts. If there is a directory of the same path, an image has it opaque, and containerd lets
    /// the content below show again.
    whiteouts: HashSet<Vec<u8>>,
}

impl Observations {
    /// Returns whether the layer has an entry for a directory. One whose entry has a symbolic link in its path
    /// is not found.
    pub(super) fn is_stated(&self, path: &[u8]) -> bool {
        self.stated.contains(&self.key.hash_one(path))
    }

    /// Returns whether the layer has several entries for a directory.
    pub(super) fn is_repeated(&self, path: &[u8]) -> bool {
        self.repeated.contains(path)
    }

    /// Returns whether the layer has a whiteout of a path.
    pub(super) fn is_whited_out(&self, path: &[u8]) -> bool {
        self.whiteouts.contains(path)
    }

    fn observe(&mut self, entry: &Entry, guard: &Guard) -> Result<(), StreamError> {
        let path = &entry.path;
        let bytes = match entry.kind {
            EntryKind::Directory => HASH,
            EntryKind::Whiteout => PATH + path.len() as u64,
            _ => return Ok(()),
        };
        guard.take_memory(bytes).map_err(StreamError::Stopped)?;
        if entry.kind == EntryKind::Whiteout {
            self.whiteouts.insert(path.clone());
        } else if !self.stated.insert(self.key.hash_one(&path[..])) {
            let bytes = PATH + path.len() as u64;
            guard.take_memory(bytes).map_err(StreamError::Stopped)?;
            self.repeated.insert(path.clone());
        }
        Ok(())
    }
}

/// The entries of a layer that are observed.
pub(super) struct Observed<'a, L> {
    pub(super) layer: L,
    pub(super) observations: Observations,
    pub(super) guard: &'a Guard,
}

impl<L: EntrySource> EntrySource for Observed<'_, L> {
    fn next(&mut self) -> Result<Option<Entry>, Error> {
        let next = self.layer.next()?;
        if let Some(entry) = &next {
            let observed = self.observations.observe(entry, self.guard);
            observed.map_err(|error| Error {
                offset: 0,
                entry: Some(entry.path.clone()),
                fault: Fault::Read(error.into()),
            })?;
        }
        Ok(next)
    }

    fn tar_offset(&self) -> Option<u64> {
        self.layer.tar_offset()
    }

    fn data(&mut self) -> Result<Option<Piece<'_>>, Error> {
        self.layer.data()
    }
}

#[cfg(test)]
mod tests {
    use resnap_layer::Metadata;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn directories_and_whiteouts_are_observed() {
        let guard = Guard::from(CancellationToken::new());
        let mut observations = Observations::default();
        for (path, kind) in [
            ("once", EntryKind::Directory),
            ("twice", EntryKind::Directory),
            ("twice", EntryKind::Directory),
            ("gone", EntryKind::Whiteout),
            ("pipe", EntryKind::Fifo),
        ] {
            let entry = Entry {
                path: path.as_bytes().to_vec(),
                kind,
                metadata: Metadata::default(),
            };
            observations.observe(&entry, &guard).unwrap();
        }
        for (path, expected) in [
            ("once", [true, false, false]),
            ("twice", [true, true, false]),
            ("gone", [false, false, true]),
            ("pipe", [false; 3]),
            ("other", [false; 3]),
        ] {
            let path = path.as_bytes();
            let found = [
                observations.is_stated(path),
                observations.is_repeated(path),
                observations.is_whited_out(path),
            ];
            assert_eq!(found, expected, "{path:?}");
        }
    }
}
