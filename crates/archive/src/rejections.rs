// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The places whose bytes of a blob were wrong. They are asked last.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use resnap_core::Digest;

/// The limit on the number of blobs, and of places of blobs, that are remembered.
const MAX_ENTRIES: usize = 256;

/// The places that served blobs, and those that were rejected for it.
#[derive(Debug, Default)]
pub(crate) struct Rejections(Mutex<State>);

type Entries = VecDeque<(Digest, PathBuf)>;

#[derive(Debug, Default)]
struct State {
    /// The place that served a blob last.
    served: Entries,
    rejected: Entries,
}

impl Rejections {
    /// Records that a place serves a blob.
    pub(crate) fn serve(&self, blob: &Digest, place: &Path) {
        let served = &mut self.state().served;
        served.retain(|(served, _)| served != blob);
        push(served, (blob.clone(), place.to_owned()));
    }

    /// Rejects the place that served a blob last. Returns false if it was rejected before, so that no other has the
    /// blob.
    pub(crate) fn reject(&self, blob: &Digest) -> bool {
        let state = &mut *self.state();
        let served = state.served.iter().find(|(served, _)| served == blob);
        let Some(entry) = served.cloned() else {
            return false;
        };
        if state.rejected.contains(&entry) {
            return false;
        }
        push(&mut state.rejected, entry);
        true
    }

    /// Returns the places that were rejected for a blob.
    pub(crate) fn of(&self, blob: &Digest) -> Vec<PathBuf> {
        let state = self.state();
        let rejected = state.rejected.iter();
        let rejected = rejected.filter(|(rejected, _)| rejected == blob);
        rejected.map(|(_, place)| place.clone()).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn push(entries: &mut Entries, entry: (Digest, PathBuf)) {
    entries.push_back(entry);
    if entries.len() > MAX_ENTRIES {
        entries.pop_front();
    }
}
