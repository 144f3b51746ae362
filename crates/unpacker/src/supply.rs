// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The supply of a job with the content of missing layers: from blobs that exist, from blobs that
//! are fetched, or from snapshots of another snapshotter.

use std::collections::HashSet;
use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use futures::stream;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use resnap_core::{
    BatchLayer, BlobSource, ByteStream, Digest, Error, Inspection, Kind, Labels, MissingBlob,
    Stage, StageTiming, error_chain,
};
use tokio::sync::OnceCell;

use crate::backoff::is_limit;
use crate::chain::Chain;
use crate::event::Phase;
use crate::feed::{Feeding, Gate};
use crate::fetch::{Fetching, PARALLEL_FETCHES, adopt};
use crate::missing::missing_layer;
use crate::retention::retain;
use crate::sibling::{Layers, Sibling, origin};
use crate::sources::{SIBLING, Source, Tried};
use crate::ways::{Candidate, LayerSupply, Way, candidates};
use crate::{EngineEvent, UnpackError};

/// The content of the missing layers of a job, from `first` on.
pub(crate) struct Supply {
    first: usize,
    layers: Vec<LayerSupply>,
    sibling: OnceCell<Result<Sibling, Error>>,
    /// The inspection of a sibling before it is chosen.
    inspection: Inspection,
    /// The labels of the manifest.
    manifest_labels: OnceCell<Labels>,
}

impl Supply {
    /// Finds out which blobs exist, and how the others can be got. Snapshotters that may need no
    /// content are supplied when they ask for it.
    pub(crate) async fn plan(chain: &Chain, first: usize) -> Result<Self, UnpackError> {
        let (backend, snapshotter) = (&chain.backend, &chain.job.spec.snapshotter);
        match backend.sources.is_empty() || backend.profiles.need(snapshotter).is_some() {
            true => Ok(Self::new(chain, first, None, Inspection::Parents).await),
            false => Self::plan_all(chain, first, Inspection::Parents).await,
        }
    }

    /// Finds out which blobs exist, and how the others can be got, whatever the snapshotter is.
    pub(crate) async fn plan_all(
        chain: &Chain,
        first: usize,
        inspection: Inspection,
    ) -> Result<Self, UnpackError> {
        let backend = &chain.backend;
        let missing = chain.layers()[first..].iter();
        let digests: Vec<Digest> = missing
            .map(|layer| layer.descriptor.digest.clone())
            .collect();
        let existing = backend.ports.content.existing(&backend.scope, &digests);
        let existing = existing.await.map_err(|error| chain.failed(error))?;
        Ok(Self::new(chain, first, Some(existing), inspection).await)
    }

    /// Creates a supply. Without the set of the blobs that exist, they are looked for when they are
    /// needed.
    async fn new(
        chain: &Chain,
        first: usize,
        existing: Option<HashSet<Digest>>,
        inspection: Inspection,
    ) -> Self {
        let exists = |digest| existing.as_ref().map(|existing| existing.contains(digest));
        let layers = chain.layers()[first..]
            .iter()
            .map(|layer| LayerSupply::new(candidates(chain, exists(&layer.descriptor.digest))));
        let supply = Self {
            first,
            layers: layers.collect(),
            sibling: OnceCell::new(),
            inspection,
            manifest_labels: OnceCell::new(),
        };
        for index in first..chain.layers().len() {
            supply.advance(chain, index).await;
            let mut state = supply.layer(index).state();
            state.is_copy_in_batch = state.copy().is_some();
            state.is_fetched_ahead = matches!(state.way, Some(Way::Fetch(_)));
        }
        supply
    }

    /// Goes to the next way.
    async fn advance(&self, chain: &Chain, index: usize) {
        let layer = self.layer(index);
        let way = loop {
            let candidate = layer.state().candidates.pop_front();
            match candidate {
                None => break None,
                Some(Candidate::Blob) => break Some(Way::Blob),
                Some(Candidate::Source(source)) => match self.way(chain, index, &source).await {
                    Ok(way) => break Some(way),
                    Err(error) => self.add_tried(index, source.name(), error),
                },
            }
        };
        if matches!(way, Some(Way::Fetch(_))) {
            layer.gate.close();
        }
        layer.state().way = way;
    }

    /// Returns the way to get a layer from a source.
    async fn way(&self, chain: &Chain, index: usize, source: &Source) -> Result<Way, Error> {
        match source {
            Source::Blobs(source) => {
                let blob = self.blob(chain, index).await;
                if source.has(&blob).await? {
                    return Ok(Way::Fetch(Arc::clone(source)));
                }
                let none = Error::new(Kind::NotFound, "find", blob.descriptor.digest);
                Err(none.with_source("it is not there"))
            }
            Source::Sibling { .. } => {
                let spec = &chain.job.spec;
                let layers = Layers {
                    backend: &chain.backend,
                    lease: &chain.lease,
                    plan: &spec.plan,
                    first: self.first,
                };
                let find = || Sibling::find(layers, &spec.snapshotter, self.inspection);
                match self.sibling.get_or_init(find).await {
                    Ok(sibling) => sibling.copy(index).map(Way::Copy),
                    Err(error) => Err(error.clone()),
                }
            }
        }
    }

    async fn blob(&self, chain: &Chain, index: usize) -> MissingBlob {
        let (backend, plan) = (&chain.backend, &chain.job.spec.plan);
        let layer = &chain.layers()[index].descriptor;
        let labels = self.manifest_labels(chain).await;
        missing_layer(backend, plan, layer, labels, chain.job.pods()).await
    }

    async fn manifest_labels(&self, chain: &Chain) -> &Labels {
        let (backend, manifest) = (&chain.backend, &chain.job.spec.plan.manifest);
        let read = || async {
            let info = backend.ports.content.info(&backend.scope, &manifest.digest);
            // The labels only add to what the reference says.
            info.await.map(|info| info.labels).unwrap_or_default()
        };
        self.manifest_labels.get_or_init(read).await
    }

    /// Returns the layers of the batch.
    pub(crate) fn batch_layers(&self, chain: &Chain) -> Vec<BatchLayer> {
        let layers = chain.layers().iter().skip(self.first).zip(&self.layers);
        let layers = layers.map(|(layer, supply)| BatchLayer {
            descriptor: layer.descriptor.clone(),
            copy: supply.state().copy(),
            signed: None,
        });
        layers.collect()
    }

    /// Returns the gate before the writing of the layer.
    pub(crate) fn gate(&self, index: usize) -> &Gate {
        &self.layer(index).gate
    }

    /// Returns the bytes of the layer's blob while it is being fetched, once.
    pub(crate) fn take_feed(&self, index: usize) -> Option<ByteStream> {
        let layer = self.layer(index);
        let feed = layer.gate.take_feed()?;
        layer.state().is_fed = true;
        Some(feed.into_stream())
    }

    /// Fetches the blobs that are to be fetched, the lowest first, several at once. Does not end.
    pub(crate) async fn fetch_planned(&self, chain: &Chain) -> Infallible {
        let layers = (self.first..).zip(&self.layers);
        let planned = layers.filter(|(_, layer)| layer.state().is_fetched_ahead);
        let fetches = planned.map(|(index, layer)| {
            let feeding = Feeding::new(&layer.gate, &chain.backend.feeds);
            self.settle(chain, index, Some(feeding)).boxed()
        });
        let fetches: Vec<_> = fetches.collect();
        let mut fetches = stream::iter(fetches).buffer_unordered(PARALLEL_FETCHES);
        while fetches.next().await.is_some() {}
        std::future::pending().await
    }

    /// Fetches the blob of a layer, from one source after the other, unless there is another way.
    async fn settle(&self, chain: &Chain, index: usize, mut feeding: Option<Feeding>) {
        let layer = self.layer(index);
        loop {
            let way = layer.state().way.clone();
            let Some(Way::Fetch(source)) = way else {
                break;
            };
            if self.fetch(chain, index, &*source, feeding.as_mut()).await {
                layer.state().way = Some(Way::Blob);
                break;
            }
            self.advance(chain, index).await;
        }
        layer.state().is_fetched_ahead = false;
        layer.gate.settle();
    }

    /// Fetches a blob from a source. Returns whether there is the blob.
    async fn fetch(
        &self,
        chain: &Chain,
        index: usize,
        source: &dyn BlobSource,
        feeding: Option<&mut Feeding>,
    ) -> bool {
        let blob = self.blob(chain, index).await;
        let Ok(_lock) = chain.lock_blob(index).await else {
            return false;
        };
        let (backend, lease) = (&*chain.backend, &*chain.lease);
        // The previous holder of the lock may have fetched it.
        if adopt(backend, lease, &blob).await.unwrap_or(false) {
            return true;
        }
        let started = std::time::Instant::now();
        chain.job.emit(index, Phase::Fetching);
        let mut fetching = Fetching {
            backend,
            lease,
            blob: &blob,
            progress: &|bytes| chain.job.emit_fetching(index, bytes),
            feeding,
        };
        if let Err(error) = fetching.fetch(source).await {
            self.add_tried(index, source.name(), error);
            return false;
        }
        let timing = StageTiming::since(started);
        chain.job.record_stage(index, Stage::Fetch, timing);
        chain.job.notify_observer(&EngineEvent::Fetched {
            source: source.name(),
            bytes: blob.descriptor.size,
        });
        tracing::debug!(source = source.name(), index, "layer fetched");
        let labels = self.manifest_labels(chain).await;
        retain(backend, &chain.job.spec.plan, index, labels).await;
        true
    }

    /// Returns the layer as it is written if it differs from the batch's.
    pub(crate) fn replacement(&self, chain: &Chain, index: usize) -> Option<BatchLayer> {
        let state = self.layer(index).state();
        let descriptor = chain.layers()[index].descriptor.clone();
        let copy = state.copy();
        (state.is_copy_in_batch != copy.is_some()).then_some(BatchLayer {
            descriptor,
            copy,
            signed: None,
        })
    }

    /// Returns the snapshotter that the layer is copied from.
    pub(crate) fn copied_from(&self, index: usize) -> Option<String> {
        let copy = self.layer(index).state().copy();
        copy.map(|copy| origin(&copy).to_owned())
    }

    /// Waits until the layer can be written. Others may wait for the chain lock, which must not be
    /// held meanwhile.
    ///
    /// # Errors
    /// [`UnpackError::MissingBlob`] if no source has it.
    pub(crate) async fn obtain(&self, chain: &Chain, index: usize) -> Result<(), UnpackError> {
        let layer = self.layer(index);
        if !layer.gate.is_settled() && !layer.state().is_fetched_ahead {
            self.settle(chain, index, None).await;
        }
        layer.gate.ready().await;
        self.require_way(chain, index).await
    }

    async fn require_way(&self, chain: &Chain, index: usize) -> Result<(), UnpackError> {
        let tried = {
            let state = self.layer(index).state();
            match state.way {
                Some(_) => return Ok(()),
                None => state.tried.clone(),
            }
        };
        let lack = tried.iter().find(|tried| is_lack(&tried.error));
        Err(match lack {
            // The blob is not missing: there is no space for it.
            Some(tried) => chain.failed_layer(index, tried.error.clone()),
            None => chain.missing_blob(&chain.layers()[index], tried).await,
        })
    }

    /// Makes sure that layers can be written.
    ///
    /// # Errors
    /// [`UnpackError::MissingBlob`] if there is no way to one of them.
    pub(crate) async fn require(
        &self,
        chain: &Chain,
        layers: Range<usize>,
    ) -> Result<(), UnpackError> {
        let all = layers.map(|index| async move {
            self.settle(chain, index, None).await;
            self.require_way(chain, index).await
        });
        let all: Vec<_> = all.map(futures::FutureExt::boxed).collect();
        stream::iter(all)
            .buffered(PARALLEL_FETCHES)
            .try_collect()
            .await
    }

    /// Waits until the blob of a layer that was written is complete, and has the right digest. Returns
    /// false if it does not, or never will.
    pub(crate) async fn confirm(&self, index: usize) -> bool {
        let layer = self.layer(index);
        if !std::mem::take(&mut layer.state().is_fed) {
            return true;
        }
        layer.gate.settled().await;
        matches!(layer.state().way, Some(Way::Blob)) && !layer.gate.is_spoiled()
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
        let layer = self.layer(index);
        // The bytes may have come too slowly, or have been wrong.
        if std::mem::take(&mut layer.state().is_fed) || !layer.gate.is_settled() {
            return Ok(true);
        }
        let is_copy = layer.state().copy().is_some();
        if is_copy {
            // It is lacking for other sources as well.
            if is_lack(error) || error.kind() == Kind::Cancelled {
                return Ok(false);
            }
            self.add_tried(index, SIBLING, error.clone());
        } else {
            let blob = self.blob(chain, index).await;
            let adopted = adopt(&chain.backend, &chain.lease, &blob).await;
            if adopted.unwrap_or(true) {
                return Ok(false);
            }
            if !error.is_not_found() {
                // It was there, and the content store has removed it since, as damaged.
                self.add_tried(index, "content store", error.clone());
            }
        }
        self.advance(chain, index).await;
        self.require_way(chain, index).await?;
        Ok(true)
    }

    /// Removes what is not needed after the job. What was fetched in part goes with the lease.
    pub(crate) async fn end(&self, chain: &Chain) {
        if let Some(Ok(sibling)) = self.sibling.get() {
            sibling.end(&chain.backend).await;
        }
    }

    fn layer(&self, index: usize) -> &LayerSupply {
        &self.layers[index - self.first]
    }

    fn add_tried(&self, index: usize, source: &'static str, error: Error) {
        let reason = error_chain(&error);
        tracing::debug!(source, index, reason, "no layer from this source");
        let mut state = self.layer(index).state();
        state.tried.push(Tried::new(source, error));
    }
}

/// Returns whether the system lacks something, such as space.
fn is_lack(error: &Error) -> bool {
    error.kind() == Kind::ResourceExhausted && !is_limit(error)
}
