// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The result of comparing the layers of an image with what proves them.

use std::collections::BTreeMap;
use std::time::SystemTime;

use resnap_core::{
    ChainId, Differences, Digest, Error, Evidence, SnapshotKey, Verified, error_chain,
};
use serde::Serialize;

/// The result for the layers of one image.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct Verification {
    /// The image.
    pub image: String,
    /// The snapshotter.
    pub snapshotter: String,
    /// The layers, the base first; fewer than the image has if the work was stopped.
    pub layers: Vec<VerifiedLayer>,
    /// Whether the work was stopped before its end.
    pub is_stopped: bool,
}

/// The result for one layer.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct VerifiedLayer {
    /// The digest of the blob.
    pub digest: Digest,
    /// The snapshot.
    pub chain_id: ChainId,
    /// The result.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The time that it took.
    pub seconds: f64,
    /// The time when the snapshot was made.
    #[serde(skip)]
    pub(crate) created: Option<SystemTime>,
}

/// The result of comparing a layer with what proves it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Verdict {
    /// There are no differences.
    Right {
        /// The evidence.
        by: Evidence,
        /// The bytes that were read.
        bytes: u64,
    },
    /// There are differences.
    Wrong {
        /// The evidence.
        by: Evidence,
        /// The bytes that were read.
        bytes: u64,
        /// The differences.
        differences: Differences,
    },
    /// The layer could not be compared.
    Unknown {
        /// The reason.
        reason: String,
    },
}

impl From<Result<Verified, Error>> for Verdict {
    fn from(result: Result<Verified, Error>) -> Self {
        match result {
            Err(error) => Self::unknown(&error),
            Ok(verified) if verified.differences.is_empty() => Self::Right {
                by: verified.by,
                bytes: verified.bytes,
            },
            Ok(verified) => Self::Wrong {
                by: verified.by,
                bytes: verified.bytes,
                differences: verified.differences,
            },
        }
    }
}

impl Verdict {
    pub(crate) fn unknown(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::Unknown {
            reason: error_chain(error),
        }
    }
}

impl Verification {
    /// Returns the snapshots of the layers with differences, with the times when they were made.
    pub(crate) fn wrong(&self) -> BTreeMap<SnapshotKey, SystemTime> {
        let layers = self.layers.iter();
        let wrong = layers.filter(|layer| matches!(layer.verdict, Verdict::Wrong { .. }));
        wrong
            .filter_map(|layer| Some((SnapshotKey::from(&layer.chain_id), layer.created?)))
            .collect()
    }

    /// Returns whether a layer has differences.
    pub fn has_differences(&self) -> bool {
        let mut layers = self.layers.iter();
        layers.any(|layer| matches!(layer.verdict, Verdict::Wrong { .. }))
    }

    /// Returns whether all layers were compared.
    pub fn is_complete(&self) -> bool {
        let mut layers = self.layers.iter();
        let is_unknown = layers.any(|layer| matches!(layer.verdict, Verdict::Unknown { .. }));
        !is_unknown && !self.is_stopped
    }
}
