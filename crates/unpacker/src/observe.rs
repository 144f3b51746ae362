// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What an engine tells of all its jobs, to be counted.

use crate::{Phase, UnpackError};

/// Something that happened in an engine, whoever asked for it.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum EngineEvent<'a> {
    /// Somebody asked for what cannot be begun, such as an image that is not there.
    Refused(&'a UnpackError),
    /// Somebody asked for what a job does already, and waits for that.
    Joined,
    /// A job began.
    Began,
    /// Something happened to a layer of a job.
    Layer(Phase),
    /// A job ended.
    Ended {
        /// What kept the image from being ready, if anything did.
        error: Option<&'a UnpackError>,
        /// The time it took.
        seconds: f64,
    },
    /// A job could not remove its active snapshot or its lease. It is tried again for some minutes,
    /// then by the next job, and last by the lease's expiry.
    CleanupFailed,
}

/// Who is told.
pub trait EngineObserver: std::fmt::Debug + Send + Sync {
    /// Is told at once, and must not block.
    fn on_event(&self, event: &EngineEvent<'_>);
}
