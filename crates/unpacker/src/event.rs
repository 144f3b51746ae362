// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Events of a running job, and its final report.

use resnap_core::{ChainId, DiffId, Digest, Stage};
use serde::Serialize;

/// An event of a layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Event {
    /// The image as the caller wrote it.
    pub image: String,
    /// The snapshotter.
    pub snapshotter: String,
    /// The phase that the layer entered.
    #[serde(rename = "event")]
    pub phase: Phase,
    /// The number of the layer; the base is 1.
    pub layer: usize,
    /// The number of layers of the image.
    pub layers: usize,
    /// The layer's blob.
    pub digest: Digest,
    /// The name of the layer's committed snapshot.
    pub chain_id: ChainId,
    /// The size of the layer's blob.
    pub bytes: u64,
    /// The seconds since the job started.
    pub seconds: f64,
    /// The process or job that the layer waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// The bytes of the layer's blob that have been read, in [`Phase::Progress`], or fetched, in
    /// [`Phase::Fetching`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<u64>,
}

impl Event {
    /// Returns the event that layer number `layer` of `layers` entered `phase`, without size, time,
    /// progress and what it waits for.
    pub fn new(
        image: String,
        snapshotter: String,
        (layer, layers): (usize, usize),
        digest: Digest,
        chain_id: ChainId,
        phase: Phase,
    ) -> Self {
        Self {
            image,
            snapshotter,
            phase,
            layer,
            layers,
            digest,
            chain_id,
            bytes: 0,
            seconds: 0.0,
            waits_for: None,
            read: None,
        }
    }
}

/// A phase of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Phase {
    /// The layer is part of the plan. Emitted for every layer, the base first, before any work.
    Planned,
    /// The layer existed when the job started.
    Existed,
    /// The job waits for another job or process that makes the layer.
    Waiting,
    /// The layer's blob is being fetched ([`Event::read`]).
    Fetching,
    /// The layer has an active snapshot.
    Prepared,
    /// The content is being written to the snapshot, or to staging before the snapshot is prepared.
    Applying,
    /// More of the content has been written ([`Event::read`]). Emitted about ten times a second if
    /// the applier reports it.
    Progress,
    /// The layer was written and committed.
    Committed,
    /// The layer was copied from another snapshotter and committed.
    Copied,
    /// The snapshotter had the content; the layer was committed without being written.
    Staged,
    /// The snapshotter needs no content for the layer.
    Remote,
    /// Another job or client committed the layer first.
    Joined,
    /// The layer failed, and with it the job.
    Failed,
}

impl Phase {
    /// Returns whether the layer is ready in this phase. Each layer of a successful job enters
    /// exactly one such phase.
    pub fn is_ready(self) -> bool {
        match self {
            Self::Existed
            | Self::Committed
            | Self::Copied
            | Self::Staged
            | Self::Remote
            | Self::Joined => true,
            Self::Planned
            | Self::Waiting
            | Self::Fetching
            | Self::Prepared
            | Self::Applying
            | Self::Progress
            | Self::Failed => false,
        }
    }
}

/// The way in which a layer became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerOutcome {
    /// This job wrote the layer.
    Applied,
    /// This job copied the layer from another snapshotter, without proof that it is the image's.
    Copied,
    /// The layer existed before.
    Existed,
    /// Another job or client committed the layer meanwhile.
    Joined,
    /// The snapshotter had the content; this job committed the layer.
    Staged,
    /// The snapshotter needs no content for the layer.
    Remote,
}

impl From<LayerOutcome> for Phase {
    fn from(outcome: LayerOutcome) -> Self {
        match outcome {
            LayerOutcome::Applied => Self::Committed,
            LayerOutcome::Copied => Self::Copied,
            LayerOutcome::Existed => Self::Existed,
            LayerOutcome::Joined => Self::Joined,
            LayerOutcome::Staged => Self::Staged,
            LayerOutcome::Remote => Self::Remote,
        }
    }
}

/// One layer of a [`Report`].
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LayerReport {
    /// The layer's blob.
    pub digest: Digest,
    /// The digest of its uncompressed tar.
    pub diff_id: DiffId,
    /// The name of its committed snapshot.
    pub chain_id: ChainId,
    /// The size of its blob.
    pub bytes: u64,
    /// The way in which it became ready.
    pub outcome: LayerOutcome,
    /// The seconds from the end of the layer below to its own end.
    pub seconds: f64,
    /// The stages, as far as the applier reports them. The first may start before the layer's own
    /// time.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageTime>,
}

impl LayerReport {
    /// Returns the report of a layer without size, time and stages.
    pub fn new(digest: Digest, diff_id: DiffId, chain_id: ChainId, outcome: LayerOutcome) -> Self {
        Self {
            digest,
            diff_id,
            chain_id,
            bytes: 0,
            outcome,
            seconds: 0.0,
            stages: Vec::new(),
        }
    }
}

/// The times of a stage of a layer, in seconds since the job started.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct StageTime {
    /// The stage.
    pub stage: Stage,
    /// The start.
    pub start: f64,
    /// The end.
    pub end: f64,
    /// The seconds of work between start and end.
    pub busy: f64,
}

impl StageTime {
    /// Returns the times of a stage that starts and ends at these times and works `busy` seconds.
    pub fn new(stage: Stage, start: f64, end: f64, busy: f64) -> Self {
        Self {
            stage,
            start,
            end,
            busy,
        }
    }
}

/// The report of a successful job.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The image as the caller wrote it.
    pub image: String,
    /// The value of the label `cri.image-ref`, if the image has a reference.
    pub reference: Option<String>,
    /// The snapshotter.
    pub snapshotter: String,
    /// The platform of the chosen manifest.
    pub platform: String,
    /// The manifest.
    pub manifest: Digest,
    /// The config; its digest is the image's ID.
    pub config: Digest,
    /// The top layer's snapshot; `None` for an image without layers.
    pub chain_id: Option<ChainId>,
    /// The layers, the base first.
    pub layers: Vec<LayerReport>,
    /// The total time in seconds.
    pub seconds: f64,
}

impl Report {
    /// Returns the report of an image without reference, layers and time.
    pub fn new(
        image: String,
        snapshotter: String,
        platform: String,
        manifest: Digest,
        config: Digest,
    ) -> Self {
        Self {
            image,
            reference: None,
            snapshotter,
            platform,
            manifest,
            config,
            chain_id: None,
            layers: Vec::new(),
            seconds: 0.0,
        }
    }

    /// Returns the number of layers with this outcome.
    pub fn count(&self, outcome: LayerOutcome) -> usize {
        self.layers
            .iter()
            .filter(|layer| layer.outcome == outcome)
            .count()
    }

    /// Returns the bytes of the blobs that this job wrote.
    pub fn applied_bytes(&self) -> u64 {
        let applied = self
            .layers
            .iter()
            .filter(|layer| layer.outcome == LayerOutcome::Applied);
        // A descriptor may state any size, so the sum saturates.
        applied.fold(0, |sum, layer| sum.saturating_add(layer.bytes))
    }
}
