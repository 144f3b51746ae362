// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Events of an engine, for metrics.

use crate::{Phase, UnpackError};

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
    Layer(Phase),
    /// A job ended.
    Ended {
        /// The error, if the image is not ready.
        error: Option<&'a UnpackError>,
        /// The duration of the job.
        seconds: f64,
    },
    /// A job could not remove its active snapshot or its lease. The engine retries for some
    /// minutes; after that, the next job or the lease's expiry removes them.
    CleanupFailed,
}

/// Receives the events of an engine.
pub trait EngineObserver: std::fmt::Debug + Send + Sync {
    /// Called synchronously; must not block.
    fn on_event(&self, event: &EngineEvent<'_>);
}
