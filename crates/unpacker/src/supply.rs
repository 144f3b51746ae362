// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The supply of a job with the content of missing layers: from blobs that exist, from blobs that
//! are fetched, or from snapshots of another snapshotter.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::future::BoxFuture;
use futures::stream;
use futures::{FutureExt as _, StreamExt as _};
use resnap_core::{
    BatchLayer, BlobSource, Digest, Error, Kind, LayerCopy, MissingBlob, Stage, StageTiming,
    error_chain, labels, media_type,
};
use resnap_handler_wrapper::layer_urls;
use tokio::sync::{OnceCell, SetOnce};

use crate::UnpackError;
use crate::chain::Chain;
use crate::event::Phase;
use crate::fetch::{adopt, fetch};
use crate::sibling::{Sibling, origin};
use crate::sources::{Source, Tried};

/// The number of blobs that a job fetches at once, as in containerd (`max_concurrent_downloads`).
const PARALLEL_FETCHES: usize = 3;

/// A way to get the content of a layer.
#[derive(Clone)]
enum Way {
    /// From its blob, which exists.
    Blob,
    /// From its blob, which is fetched from the first source that has it.
    Fetch(Vec<Arc<dyn BlobSource>>),
    /// From a snapshot of another snapshotter.
    Copy(LayerCopy),
}

/// The content of one layer.
struct LayerSupply {
    /// Set when the layer can be written, or never will.
    ready: SetOnce<()>,
    state: Mutex<LayerState>,
}

struct LayerState {
    way: Way,
    /// Whether the blob of [`Way::Fetch`] was fetched; `None` before it was tried.
    is_fetched: Option<bool>,
    /// Whether the batch was started with this way.
    is_planned: bool,
    /// The ways to try after this one; `None` if they are not known yet.
    next: Option<VecDeque<Way>>,
    tried: Vec<Tried>,
}

/// The content of the missing layers of a job, from `first` on.
pub(crate) struct Supply {
    first: usize,
    layers: Vec<LayerSupply>,
    sibling: OnceCell<Result<Sibling, Error>>,
    repositories: OnceCell<BTreeMap<String, Vec<String>>>,
}

impl Supply {
    /// Finds out which blobs exist, and how the others can be got. Snapshotters that may need no
    /// content are supplied when they ask for it.
    pub(crate) async fn plan(chain: &Chain, first: usize) -> Result<Self, UnpackError> {
        let missing = &chain.layers()[first..];
        let new = || LayerSupply {
            ready: SetOnce::new(),
            state: Mutex::new(LayerState {
                way: Way::Blob,
                is_fetched: None,
                is_planned: true,
                next: None,
                tried: Vec::new(),
            }),
        };
        let supply = Self {
            first,
            layers: missing.iter().map(|_| new()).collect(),
            sibling: OnceCell::new(),
            repositories: OnceCell::new(),
        };
        let (backend, snapshotter) = (&chain.backend, &chain.job.spec.snapshotter);
        if !backend.sources.is_empty() && backend.profiles.need(snapshotter).is_none() {
            let digests = missing.iter().map(|layer| layer.descriptor.digest.clone());
            let digests: Vec<Digest> = digests.collect();
            let existing = backend.ports.content.existing(&backend.scope, &digests);
            let existing = existing.await.map_err(|error| chain.failed(error))?;
            for index in first..chain.layers().len() {
                supply.plan_layer(chain, index, &existing).await;
            }
        }
        for layer in &supply.layers {
            if !matches!(layer.state().way, Way::Fetch(_)) {
                layer.set_ready();
            }
        }
        Ok(supply)
    }

    async fn plan_layer(&self, chain: &Chain, index: usize, existing: &HashSet<Digest>) {
        let exists = existing.contains(&chain.layers()[index].descriptor.digest);
        let sources = &chain.backend.sources;
        let always = |source: &Source| matches!(source, Source::Sibling { always: true });
        if exists && !sources.iter().any(always) {
            return;
        }
        let mut ways = self.ways(chain, index).await;
        if exists {
            ways.retain(|way| matches!(way, Way::Copy(_)));
            ways.push_back(Way::Blob);
        }
        let mut state = self.layer(index).state();
        if let Some(way) = ways.pop_front() {
            state.way = way;
        }
        state.next = Some(ways);
    }

    /// Returns the ways to get a layer whose blob is missing, in the order of the sources.
    async fn ways(&self, chain: &Chain, index: usize) -> VecDeque<Way> {
        let mut ways = VecDeque::new();
        for source in &chain.backend.sources {
            match source {
                Source::Blobs(source) => {
                    let blob = self.blob(chain, index).await;
                    match source.has(&blob).await {
                        Ok(true) => match ways.back_mut() {
                            Some(Way::Fetch(sources)) => sources.push(Arc::clone(source)),
                            _ => ways.push_back(Way::Fetch(vec![Arc::clone(source)])),
                        },
                        Ok(false) => {
                            let none = Error::new(Kind::NotFound, "find", blob.descriptor.digest)
                                .with_source("it is not there");
                            self.add_tried(index, source.name(), none);
                        }
                        Err(error) => self.add_tried(index, source.name(), error),
                    }
                }
                Source::Sibling { .. } if chain.job.spec.replace_copies => {}
                Source::Sibling { .. } => {
                    let find = || Sibling::find(chain, self.first);
                    let copy = match self.sibling.get_or_init(find).await {
                        Ok(sibling) => sibling.copy(index),
                        Err(error) => Err(error.clone()),
                    };
                    match copy {
                        Ok(copy) => ways.push_back(Way::Copy(copy)),
                        Err(error) => self.add_tried(index, source.name(), error),
                    }
                }
            }
        }
        ways
    }

    async fn blob(&self, chain: &Chain, index: usize) -> MissingBlob {
        let (backend, spec) = (&chain.backend, &chain.job.spec);
        let repositories = self.repositories.get_or_init(|| async {
            let manifest = &spec.plan.manifest.digest;
            let info = backend.ports.content.info(&backend.scope, manifest).await;
            // The labels only add to what the reference says.
            let labels = info.map(|info| info.labels).unwrap_or_default().into_iter();
            let hosts = labels.filter_map(|(key, names)| {
                let host = key
                    .strip_prefix(labels::DISTRIBUTION_SOURCE_PREFIX)?
                    .to_owned();
                Some((host, names.split(',').map(str::to_owned).collect()))
            });
            hosts.collect()
        });
        let descriptor = chain.layers()[index].descriptor.clone();
        let mut urls = Vec::new();
        if media_type::is_foreign(&descriptor.media_type) {
            let (content, manifest) = (&*backend.ports.content, &spec.plan.manifest);
            let found = layer_urls(content, &backend.scope, manifest, &descriptor.digest);
            // They only add to what registries have.
            urls = found.await.unwrap_or_default();
        }
        MissingBlob {
            descriptor,
            urls,
            reference: spec.plan.image.reference.clone(),
            repositories: repositories.await.clone(),
            pods: chain.job.pods(),
        }
    }

    /// Returns the layers of the batch.
    pub(crate) fn batch_layers(&self, chain: &Chain) -> Vec<BatchLayer> {
        let layers = chain.layers().iter().skip(self.first).zip(&self.layers);
        let layers = layers.map(|(layer, supply)| BatchLayer {
            descriptor: layer.descriptor.clone(),
            copy: supply.state().copy(),
        });
        layers.collect()
    }

    /// Waits until the layer can be written, or never will.
    pub(crate) async fn ready(&self, index: usize) {
        self.layer(index).ready.wait().await;
    }

    /// Fetches the blobs that are to be fetched, the lowest first, several at once. Does not end.
    pub(crate) async fn fetch_planned(&self, chain: &Chain) -> Infallible {
        let mut fetches: Vec<BoxFuture<'_, ()>> = Vec::new();
        for (index, layer) in (self.first..).zip(&self.layers) {
            if let Way::Fetch(sources) = layer.state().way.clone() {
                fetches.push(self.fetch_ahead(chain, index, sources).boxed());
            }
        }
        let mut fetches = stream::iter(fetches).buffer_unordered(PARALLEL_FETCHES);
        while fetches.next().await.is_some() {}
        std::future::pending().await
    }

    async fn fetch_ahead(&self, chain: &Chain, index: usize, sources: Vec<Arc<dyn BlobSource>>) {
        let is_fetched = self.fetch(chain, index, &sources).await;
        self.layer(index).state().is_fetched = Some(is_fetched);
        self.layer(index).set_ready();
    }

    /// Fetches a blob from the first source that has it. Returns whether there is the blob.
    async fn fetch(&self, chain: &Chain, index: usize, sources: &[Arc<dyn BlobSource>]) -> bool {
        let blob = self.blob(chain, index).await;
        let Ok(_lock) = chain.lock_blob(index).await else {
            return false;
        };
        // The previous holder of the lock may have fetched it.
        if adopt(chain, &blob).await.unwrap_or(false) {
            return true;
        }
        let started = std::time::Instant::now();
        chain.job.emit(index, Phase::Fetching);
        for source in sources {
            match fetch(chain, index, &**source, &blob).await {
                Ok(()) => {
                    let timing = StageTiming::since(started);
                    chain.job.record_stage(index, Stage::Fetch, timing);
                    tracing::debug!(source = source.name(), index, "layer fetched");
                    return true;
                }
                Err(error) => self.add_tried(index, source.name(), error),
            }
        }
        false
    }

    /// Returns the layer as it is written if it differs from the batch's.
    pub(crate) fn replacement(&self, chain: &Chain, index: usize) -> Option<BatchLayer> {
        let state = self.layer(index).state();
        let descriptor = chain.layers()[index].descriptor.clone();
        let copy = state.copy();
        (!state.is_planned).then_some(BatchLayer { descriptor, copy })
    }

    /// Returns the snapshotter that the layer is copied from.
    pub(crate) fn copied_from(&self, index: usize) -> Option<String> {
        let copy = self.layer(index).state().copy();
        copy.map(|copy| origin(&copy).to_owned())
    }

    /// Waits until the content of the layer is there, and gets it from the next source if one has
    /// failed. Others may wait for the chain lock, which must not be held meanwhile.
    ///
    /// # Errors
    /// [`UnpackError::MissingBlob`] if no source has it.
    pub(crate) async fn obtain(&self, chain: &Chain, index: usize) -> Result<(), UnpackError> {
        self.ready(index).await;
        loop {
            let (sources, is_fetched) = {
                let state = self.layer(index).state();
                match &state.way {
                    Way::Blob | Way::Copy(_) => return Ok(()),
                    Way::Fetch(sources) => (sources.clone(), state.is_fetched),
                }
            };
            let is_fetched = match is_fetched {
                Some(is_fetched) => is_fetched,
                None => self.fetch(chain, index, &sources).await,
            };
            if is_fetched {
                self.layer(index).state().is_fetched = Some(true);
                return Ok(());
            }
            self.advance(chain, index).await?;
        }
    }

    /// Chooses another way for a layer that could not be written. Returns false if the error has
    /// another reason than missing content.
    ///
    /// # Errors
    /// [`UnpackError::MissingBlob`] if there is no other way.
    pub(crate) async fn fall_back(
        &self,
        chain: &Chain,
        index: usize,
        error: &Error,
    ) -> Result<bool, UnpackError> {
        let way = self.layer(index).state().way.clone();
        match way {
            Way::Copy(_) if error.kind() == Kind::Cancelled => return Ok(false),
            Way::Copy(_) => self.add_tried(index, "sibling", error.clone()),
            Way::Blob | Way::Fetch(_) => {
                let blob = self.blob(chain, index).await;
                if adopt(chain, &blob).await.unwrap_or(true) {
                    return Ok(false);
                }
            }
        }
        self.advance(chain, index).await?;
        Ok(true)
    }

    /// Goes to the next way.
    async fn advance(&self, chain: &Chain, index: usize) -> Result<(), UnpackError> {
        let is_known = self.layer(index).state().next.is_some();
        if !is_known {
            let ways = self.ways(chain, index).await;
            self.layer(index).state().next = Some(ways);
        }
        let tried = {
            let mut state = self.layer(index).state();
            let next = state.next.as_mut().and_then(VecDeque::pop_front);
            state.is_planned = false;
            state.is_fetched = None;
            match next {
                Some(next) => {
                    state.way = next;
                    return Ok(());
                }
                None => std::mem::take(&mut state.tried),
            }
        };
        Err(chain.missing_blob(&chain.layers()[index], tried).await)
    }

    /// Removes what is not needed after the job. What was fetched in part goes with the lease.
    pub(crate) async fn end(&self, chain: &Chain) {
        if let Some(Ok(sibling)) = self.sibling.get() {
            sibling.end(chain).await;
        }
    }

    fn layer(&self, index: usize) -> &LayerSupply {
        &self.layers[index - self.first]
    }

    fn add_tried(&self, index: usize, source: &'static str, error: Error) {
        tracing::debug!(
            source,
            index,
            error = error_chain(&error),
            "no layer from this source"
        );
        self.layer(index)
            .state()
            .tried
            .push(Tried::new(source, error));
    }
}

impl LayerSupply {
    fn state(&self) -> MutexGuard<'_, LayerState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_ready(&self) {
        // Set once.
        let _ = self.ready.set(());
    }
}

impl LayerState {
    fn copy(&self) -> Option<LayerCopy> {
        match &self.way {
            Way::Copy(copy) => Some(copy.clone()),
            Way::Blob | Way::Fetch(_) => None,
        }
    }
}
