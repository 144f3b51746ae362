// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What a job tells: events while it runs, a report at its end.

use resnap_core::{ChainId, DiffId, Digest, Stage};
use serde::Serialize;

/// Something happened to a layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Event {
    /// The image as it was asked for.
    pub image: String,
    /// The snapshotter.
    pub snapshotter: String,
    /// What happened.
    #[serde(rename = "event")]
    pub phase: Phase,
    /// The layer, the base being 1.
    pub layer: usize,
    /// Layers of the image.
    pub layers: usize,
    /// The layer's blob.
    pub digest: Digest,
    /// The layer's snapshot.
    pub chain_id: ChainId,
    /// The size of the layer's blob.
    pub bytes: u64,
    /// Since the job began.
    pub seconds: f64,
    /// For whom the layer waits, if it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<String>,
    /// How much of the layer's blob has been read, while that is told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<u64>,
}

/// What can happen to a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Phase {
    /// It is part of the plan. Told for every layer, the base first, before anything is done.
    Planned,
    /// It was there when the job looked.
    Existed,
    /// Somebody else makes it, and the job waits for them.
    Waiting,
    /// Its snapshot is active.
    Prepared,
    /// Its content is being written: into its snapshot, or ahead, before that is prepared.
    Applying,
    /// More of its content is written: [`Event::read`]. Told some ten times a second, if the applier
    /// knows.
    Progress,
    /// It was written and committed.
    Committed,
    /// The snapshotter had its content; it was committed without being written.
    Staged,
    /// The snapshotter needs no content for it.
    Remote,
    /// Somebody else committed it first.
    Joined,
    /// It failed, and with it the job.
    Failed,
}

impl Phase {
    /// Whether the layer is ready by it. Of each layer of a job that succeeds one such is told.
    pub fn is_ready(self) -> bool {
        match self {
            Self::Existed | Self::Committed | Self::Staged | Self::Remote | Self::Joined => true,
            Self::Planned
            | Self::Waiting
            | Self::Prepared
            | Self::Applying
            | Self::Progress
            | Self::Failed => false,
        }
    }
}

/// How a layer came to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerOutcome {
    /// Written by this job.
    Applied,
    /// There before.
    Existed,
    /// Committed by somebody else meanwhile.
    Joined,
    /// Its content was there; committed by this job.
    Staged,
    /// The snapshotter needs no content for it.
    Remote,
}

impl From<LayerOutcome> for Phase {
    fn from(outcome: LayerOutcome) -> Self {
        match outcome {
            LayerOutcome::Applied => Self::Committed,
            LayerOutcome::Existed => Self::Existed,
            LayerOutcome::Joined => Self::Joined,
            LayerOutcome::Staged => Self::Staged,
            LayerOutcome::Remote => Self::Remote,
        }
    }
}

/// One layer of a [`Report`].
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerReport {
    /// The layer's blob.
    pub digest: Digest,
    /// The digest of its uncompressed tar.
    pub diff_id: DiffId,
    /// Its snapshot.
    pub chain_id: ChainId,
    /// The size of its blob.
    pub bytes: u64,
    /// How it came to be ready.
    pub outcome: LayerOutcome,
    /// The time it took, from the layer below's end on.
    pub seconds: f64,
    /// What it took the time for, as far as the applier tells; it may begin before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StageTime>,
}

/// When a layer went through a stage. Times are in seconds since the job began.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StageTime {
    /// The stage.
    pub stage: Stage,
    /// When it began.
    pub start: f64,
    /// When it ended.
    pub end: f64,
    /// How long it was at work between.
    pub busy: f64,
}

/// The end of a job that succeeded.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The image as it was asked for.
    pub image: String,
    /// What `cri.image-ref` says, if the image has a reference.
    pub reference: Option<String>,
    /// The snapshotter.
    pub snapshotter: String,
    /// The platform of the manifest that was chosen.
    pub platform: String,
    /// The manifest.
    pub manifest: Digest,
    /// The config: the image's ID.
    pub config: Digest,
    /// The top layer's snapshot; `None` for an image without layers.
    pub chain_id: Option<ChainId>,
    /// The layers, the base first.
    pub layers: Vec<LayerReport>,
    /// The whole time.
    pub seconds: f64,
}

impl Report {
    /// Layers with this outcome.
    pub fn count(&self, outcome: LayerOutcome) -> usize {
        self.layers
            .iter()
            .filter(|layer| layer.outcome == outcome)
            .count()
    }

    /// Bytes of the blobs that were written.
    pub fn applied_bytes(&self) -> u64 {
        let applied = self
            .layers
            .iter()
            .filter(|layer| layer.outcome == LayerOutcome::Applied);
        // A descriptor may state any size.
        applied.fold(0, |sum, layer| sum.saturating_add(layer.bytes))
    }
}
