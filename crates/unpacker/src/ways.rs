// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The ways to get the content of a layer, and the candidates for them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resnap_core::{BlobSource, LayerCopy};

use crate::chain::Chain;
use crate::feed::Gate;
use crate::sources::{Source, Tried};

/// A candidate for the content of a layer.
#[derive(Clone)]
pub(crate) enum Candidate {
    /// Its blob, if that exists.
    Blob,
    Source(Source),
}

/// A way to get the content of a layer.
#[derive(Clone)]
pub(crate) enum Way {
    /// From its blob, which exists.
    Blob,
    /// From its blob, which is fetched from a source.
    Fetch(Arc<dyn BlobSource>),
    /// From a snapshot of another snapshotter.
    Copy(LayerCopy),
}

/// The content of one layer.
pub(crate) struct LayerSupply {
    pub(crate) gate: Arc<Gate>,
    state: Mutex<LayerState>,
}

#[derive(Default)]
pub(crate) struct LayerState {
    /// `None` if there is no way, or none was chosen yet.
    pub(crate) way: Option<Way>,
    /// The candidates for the ways after this one.
    pub(crate) candidates: VecDeque<Candidate>,
    /// Whether the layer is copied in the batch.
    pub(crate) is_copy_in_batch: bool,
    /// Whether its blob is fetched before its turn.
    pub(crate) is_fetched_ahead: bool,
    /// Whether it is written from the bytes that are being fetched.
    pub(crate) is_fed: bool,
    pub(crate) tried: Vec<Tried>,
}

impl LayerSupply {
    /// Returns the supply of a layer for which no way was chosen yet.
    pub(crate) fn new(candidates: VecDeque<Candidate>) -> Self {
        Self {
            gate: Arc::new(Gate::new()),
            state: Mutex::new(LayerState {
                candidates,
                ..LayerState::default()
            }),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, LayerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LayerState {
    pub(crate) fn copy(&self) -> Option<LayerCopy> {
        match &self.way {
            Some(Way::Copy(copy)) => Some(copy.clone()),
            Some(Way::Blob | Way::Fetch(_)) | None => None,
        }
    }
}

/// Returns the candidates for the content of a layer, in order. `exists` is whether its blob exists, if
/// that is known.
pub(crate) fn candidates(chain: &Chain, exists: Option<bool>) -> VecDeque<Candidate> {
    // Nothing proves that a copy is the layer.
    let spec = &chain.job.spec;
    let is_healing = !spec.wrong.is_empty();
    let replaces_copies = spec.replace_copies || is_healing || chain.integrity().is_on();
    let is_allowed =
        |source: &&Source| !(replaces_copies && matches!(source, Source::Sibling { .. }));
    let is_first = |source: &&Source| {
        exists == Some(true) && matches!(source, Source::Sibling { always: true })
    };
    let sources = chain.backend.sources.iter().filter(is_allowed);
    let (first, others): (Vec<_>, Vec<_>) = sources.partition(is_first);
    let candidates = |sources: Vec<&Source>| {
        let sources = sources.into_iter().cloned();
        sources.map(Candidate::Source).collect::<Vec<_>>()
    };
    let blob = exists.unwrap_or(true).then_some(Candidate::Blob);
    let all = candidates(first).into_iter().chain(blob);
    all.chain(candidates(others)).collect()
}
