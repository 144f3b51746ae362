// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The status of a job.

use std::time::SystemTime;

use serde::Serialize;

use crate::UnpackError;
use crate::progress::percent;

/// The state of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// The job is running, or waits for others who make its layers.
    Running,
    /// The job was cancelled and cleans up.
    Cancelling,
    /// The image is ready.
    Done,
    /// The image is not ready.
    Failed,
    /// The job was cancelled, and left nothing but committed layers.
    Cancelled,
}

/// A job at one moment. `F` is the form of the error: that of the engine, or one for display.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct JobStatus<F = UnpackError> {
    /// The number of the job, unique within the engine.
    pub id: u64,
    /// The image's name in the store. If that is a bare ID: the reference that the user wrote or
    /// one to pull it by, followed by the ID in parentheses.
    pub image: String,
    /// The snapshotter.
    pub snapshotter: String,
    /// The platform of the manifest.
    pub platform: String,
    /// The caller that started the job ([`Request::origin`](crate::Request::origin)).
    pub origin: String,
    /// The state.
    pub state: JobState,
    /// When the job started.
    #[serde(serialize_with = "crate::clock::rfc3339")]
    pub started: SystemTime,
    /// The number of layers of the image.
    pub layers: usize,
    /// The number of layers that are ready.
    pub ready_layers: usize,
    /// The bytes of all layer blobs.
    pub bytes: u64,
    /// The bytes of the blobs of ready layers.
    pub ready_bytes: u64,
    /// The bytes read so far, including layers in progress
    /// ([`Progress::read_bytes`](crate::Progress::read_bytes)).
    pub read_bytes: u64,
    /// The number of callers that wait for the job.
    pub waiters: usize,
    /// The process or job that the job waits for, if another one makes its layer.
    pub waits_for: Option<String>,
    /// The error of a job that failed.
    pub failure: Option<F>,
}

impl<F> JobStatus<F> {
    /// Returns the status of a job that has done nothing yet, without platform and origin.
    pub fn new(
        id: u64,
        image: String,
        snapshotter: String,
        state: JobState,
        started: SystemTime,
    ) -> Self {
        Self {
            id,
            image,
            snapshotter,
            platform: String::new(),
            origin: String::new(),
            state,
            started,
            layers: 0,
            ready_layers: 0,
            bytes: 0,
            ready_bytes: 0,
            read_bytes: 0,
            waiters: 0,
            waits_for: None,
            failure: None,
        }
    }

    /// Returns the progress in percent, 0 to 100, as
    /// [`Progress::percent`](crate::Progress::percent).
    pub fn percent(&self) -> u8 {
        percent(self.read_bytes, self.bytes)
    }

    /// Converts the error.
    pub fn map_failure<G>(self, convert: impl FnOnce(F) -> G) -> JobStatus<G> {
        JobStatus {
            id: self.id,
            image: self.image,
            snapshotter: self.snapshotter,
            platform: self.platform,
            origin: self.origin,
            state: self.state,
            started: self.started,
            layers: self.layers,
            ready_layers: self.ready_layers,
            bytes: self.bytes,
            ready_bytes: self.ready_bytes,
            read_bytes: self.read_bytes,
            waiters: self.waiters,
            waits_for: self.waits_for,
            failure: self.failure.map(convert),
        }
    }
}
