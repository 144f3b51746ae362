// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A job for one layer that the backend asked for.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use resnap_core::{Descriptor, Error};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::slots::{Share, Urgency};
use crate::{JobState, JobStatus};

/// The [`JobStatus::origin`] of these jobs.
const ORIGIN: &str = "diff";

/// A job for one layer that the backend asked for, from its start until the last reference is dropped.
#[derive(Debug)]
pub(crate) struct RunningLayer {
    pub(crate) id: u64,
    pub(crate) share: Share,
    pub(crate) layer: Descriptor,
    pub(crate) snapshotter: String,
    started: SystemTime,
    /// The backend waits for it.
    _urgency: Urgency,
    /// The bytes of the blob that have been read.
    read: AtomicU64,
    cancellation: CancellationToken,
    result: OnceLock<Result<(), Error>>,
    ended: CancellationToken,
    /// The engine's; sent when the status changes.
    changed: watch::Sender<()>,
}

impl RunningLayer {
    pub(crate) fn new(
        (id, share): (u64, Share),
        layer: Descriptor,
        snapshotter: String,
        started: SystemTime,
        cancellation: CancellationToken,
        changed: watch::Sender<()>,
    ) -> Self {
        Self {
            id,
            _urgency: share.mark_urgent(None),
            share,
            layer,
            snapshotter,
            started,
            read: AtomicU64::new(0),
            cancellation,
            result: OnceLock::new(),
            ended: CancellationToken::new(),
            changed,
        }
    }

    /// Returns the current status.
    pub(crate) fn status(&self) -> JobStatus {
        let result = self.result.get();
        let state = match result {
            None if self.cancellation.is_cancelled() => JobState::Cancelling,
            None => JobState::Running,
            Some(Ok(())) => JobState::Done,
            Some(Err(error)) if error.kind() == resnap_core::Kind::Cancelled => JobState::Cancelled,
            Some(Err(_)) => JobState::Failed,
        };
        let (name, snapshotter) = (self.layer.digest.to_string(), self.snapshotter.clone());
        let mut status = JobStatus::new(self.id, name, snapshotter, state, self.started);
        ORIGIN.clone_into(&mut status.origin);
        status.layers = 1;
        status.bytes = self.layer.size;
        status.read_bytes = self.read.load(Ordering::Relaxed);
        if state == JobState::Done {
            status.ready_layers = 1;
            (status.ready_bytes, status.read_bytes) = (status.bytes, status.bytes);
        }
        status.waiters = usize::from(result.is_none());
        status.failure = result
            .and_then(|result| result.clone().err())
            .map(Into::into);
        status
    }

    /// Records that `bytes` of the blob have been read.
    pub(crate) fn record_read(&self, bytes: u64) {
        self.read.store(bytes, Ordering::Relaxed);
        self.changed.send_replace(());
    }

    /// Requests the job to stop.
    pub(crate) fn cancel(&self) {
        self.cancellation.cancel();
        self.changed.send_replace(());
    }

    /// Sets the result, once.
    pub(crate) fn finish(&self, result: Result<(), Error>) {
        let _ = self.result.set(result);
        self.ended.cancel();
    }

    /// Waits for the result.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }
}
