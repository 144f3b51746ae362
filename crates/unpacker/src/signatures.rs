// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The root hashes that the publisher of an image has signed, as far as a job knows them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resnap_core::{Digest, SignedRoot};

/// The signed root hashes of the layers of a job.
#[derive(Debug, Default)]
pub(crate) struct Signatures(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// `None` before they are looked for.
    found: Option<Found>,
    /// The artifacts that are wrong.
    wrong: BTreeSet<Digest>,
}

/// Signed root hashes, and the artifact that they are from.
#[derive(Debug)]
struct Found {
    artifact: Option<Digest>,
    /// Those of the layers, the base first.
    roots: Vec<Option<Arc<SignedRoot>>>,
}

impl Signatures {
    /// Sets the root hashes of the layers from `first` on, and the artifact that they are from.
    pub(crate) fn set(&self, first: usize, roots: Vec<Arc<SignedRoot>>, artifact: Option<Digest>) {
        let none = std::iter::repeat_n(None, first);
        let roots = none.chain(roots.into_iter().map(Some)).collect();
        self.state().found = Some(Found { artifact, roots });
    }

    /// Has none used of the artifact that they are from, which is wrong. They are to be looked for again.
    pub(crate) fn reject(&self) {
        let mut state = self.state();
        if let Some(artifact) = state.found.take().and_then(|found| found.artifact) {
            state.wrong.insert(artifact);
        }
    }

    /// Returns whether an artifact is wrong.
    pub(crate) fn is_wrong(&self, artifact: &Digest) -> bool {
        self.state().wrong.contains(artifact)
    }

    /// Returns whether an artifact was used that is wrong.
    pub(crate) fn have_changed(&self) -> bool {
        !self.state().wrong.is_empty()
    }

    /// Returns whether they were looked for.
    pub(crate) fn are_known(&self) -> bool {
        self.state().found.is_some()
    }

    /// Returns the artifact that they are from, if there are any.
    pub(crate) fn artifact(&self) -> Option<Digest> {
        self.state().found.as_ref()?.artifact.clone()
    }

    /// Returns the signed root hash of the layer at `index`, if it has one.
    pub(crate) fn get(&self, index: usize) -> Option<Arc<SignedRoot>> {
        self.state().found.as_ref()?.roots.get(index)?.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
