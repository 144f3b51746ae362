// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Events of an engine, for metrics.

use crate::{Phase, Report, UnpackError};

/// An event of an engine, whichever caller caused it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum EngineEvent<'a> {
    /// A request was refused before a job started, such as for an unknown image.
    Refused(&'a UnpackError),
    /// A request joined a running job.
    Joined,
    /// A job started.
    Began,
    /// A layer of a job entered a phase.
    Layer {
        /// The phase.
        phase: Phase,
        /// The size of the layer's blob.
        bytes: u64,
    },
    /// A layer got a slot for writing, after it waited for so many seconds.
    Admitted {
        /// The time of the wait.
        seconds: f64,
    },
    /// The blob of a layer was fetched.
    Fetched {
        /// The name of the source.
        source: &'static str,
        /// The size of the blob.
        bytes: u64,
    },
    /// Layers without labels or proof were repaired: they got labels, or were removed to be unpacked again.
    Repaired,
    /// A job ended.
    Ended {
        /// The snapshotter.
        snapshotter: &'a str,
        /// The report, or the error if the image is not ready.
        result: Result<&'a Report, &'a UnpackError>,
        /// The duration of the job.
        seconds: f64,
    },
    /// A request of the backend to write a layer ended.
    Asked(AskedOutcome),
    /// A job could not remove its active snapshot or its lease. The engine retries for some
    /// minutes; after that, the next job or the lease's expiry removes them.
    CleanupFailed,
}

/// The outcome of a request of the backend to write a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskedOutcome {
    /// The layer was written.
    Written,
    /// The layer was left to the backend.
    Left,
    /// The layer could not be written.
    Failed,
    /// The request or its job was cancelled.
    Cancelled,
}

impl AskedOutcome {
    /// All outcomes.
    pub const ALL: [Self; 4] = [Self::Written, Self::Left, Self::Failed, Self::Cancelled];

    /// Returns the word for the outcome.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Written => "written",
            Self::Left => "left",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// Receives the events of an engine.
pub trait EngineObserver: std::fmt::Debug + Send + Sync {
    /// Called synchronously; must not block.
    fn on_event(&self, event: &EngineEvent<'_>);
}
