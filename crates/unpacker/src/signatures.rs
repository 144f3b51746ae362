// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The root hashes that the publisher of an image has signed, as far as a job knows them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resnap_core::{Digest, SignedRoot};

/// The limit on the artifacts of a job that are tried. Each may cost the fetch of its indexes and the writing of
/// a layer.
const MAX_TRIED: usize = 4;

/// The signed root hashes of the layers of a job.
#[derive(Debug, Default)]
pub(crate) struct Signatures(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// Whether they were looked for.
    are_known: bool,
    found: Option<Arc<Found>>,
    /// The artifacts that are wrong.
    wrong: BTreeSet<Digest>,
    rejection: Option<Rejection>,
}

/// Signed root hashes, and the artifact that they are from.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) artifact: Digest,
    /// Those of all layers, the base first.
    pub(crate) roots: Vec<Arc<SignedRoot>>,
}

/// The reason why an artifact was rejected.
#[derive(Debug, Clone)]
pub(crate) struct Rejection {
    /// The index of the layer.
    pub(crate) layer: usize,
    pub(crate) root_hash: String,
    pub(crate) why: String,
}

impl Signatures {
    /// Sets what was found.
    pub(crate) fn set(&self, found: Option<Found>) {
        let mut state = self.state();
        state.are_known = true;
        state.found = found.map(Arc::new);
    }

    /// Returns whether they were looked for.
    pub(crate) fn are_known(&self) -> bool {
        self.state().are_known
    }

    /// Returns what was found, if there is anything.
    pub(crate) fn found(&self) -> Option<Arc<Found>> {
        self.state().found.clone()
    }

    /// Returns the signed root hash of the layer at `index`, if it has one.
    pub(crate) fn get(&self, index: usize) -> Option<Arc<SignedRoot>> {
        self.state().found.as_ref()?.roots.get(index).cloned()
    }

    /// Has an artifact not used, as it is wrong or incomplete.
    pub(crate) fn exclude(&self, artifact: &Digest) {
        self.state().wrong.insert(artifact.clone());
    }

    /// Excludes the artifact that they are from, which is wrong about a layer. They are to be looked for again.
    /// Returns false if there is none.
    pub(crate) fn reject(&self, layer: usize, why: String) -> bool {
        let Some(root) = self.get(layer) else {
            return false;
        };
        let mut state = self.state();
        if let Some(found) = state.found.take() {
            state.wrong.insert(found.artifact.clone());
        }
        state.are_known = false;
        state.rejection = Some(Rejection {
            layer,
            root_hash: root.root_hash.clone(),
            why,
        });
        true
    }

    /// Returns the reason of the last rejection, if there was one.
    pub(crate) fn rejection(&self) -> Option<Rejection> {
        self.state().rejection.clone()
    }

    /// Returns whether another artifact may be tried.
    pub(crate) fn may_try(&self, artifact: &Digest) -> bool {
        let state = self.state();
        state.wrong.len() < MAX_TRIED && !state.wrong.contains(artifact)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
