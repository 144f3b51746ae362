// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A caller's handle to a job.

use std::future::IntoFuture;
use std::sync::{Arc, OnceLock};

use futures::future::{BoxFuture, Shared};
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, stream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::event_log::Cursor;
use crate::running::{RunningJob, Waiter};
use crate::{Event, Report, UnpackError};

/// A caller's handle to a job. Dropping it stops nothing: the job belongs to the engine, and other
/// callers may wait for it as well. Awaiting it is the same as [`Job::report`].
#[derive(Debug)]
pub struct Job {
    /// The image as the caller wrote it.
    image: String,
    /// The caller's place in the job, once that has been planned.
    waiter: Shared<BoxFuture<'static, Result<Arc<Waiter>, UnpackError>>>,
    canceller: Canceller,
}

/// A reference to a running job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobRef {
    /// The number of the job, as in [`JobStatus::id`](crate::JobStatus::id).
    pub id: u64,
    /// Whether another caller had started the job before.
    pub joined: bool,
}

/// A handle that cancels a job.
#[derive(Debug, Clone, Default)]
pub struct Canceller(Arc<CancelState>);

#[derive(Debug, Default)]
struct CancelState {
    requested: CancellationToken,
    job: OnceLock<Arc<RunningJob>>,
}

impl Canceller {
    /// Cancels the job for all waiters: its active snapshot is removed, its committed layers stay
    /// under its lease. The job then ends with [`UnpackError::Cancelled`].
    pub fn cancel(&self) {
        self.0.requested.cancel();
        if let Some(job) = self.0.job.get() {
            job.cancel();
        }
    }

    /// Sets the job, once it is known.
    pub(crate) fn set_job(&self, job: &Arc<RunningJob>) {
        // Set once: a handle belongs to one job.
        let _ = self.0.job.set(Arc::clone(job));
        if self.0.requested.is_cancelled() {
            job.cancel();
        }
    }

    /// Waits until the job is cancelled.
    pub(crate) async fn requested(&self) {
        self.0.requested.cancelled().await;
    }
}

impl Job {
    pub(crate) fn new(
        image: String,
        start: JoinHandle<Result<Arc<Waiter>, UnpackError>>,
        canceller: Canceller,
    ) -> Self {
        let name = image.clone();
        let waiter = start.map(|started| {
            started.unwrap_or_else(|error| {
                Err(UnpackError::Broken {
                    image: name,
                    reason: error.to_string(),
                })
            })
        });
        Self {
            image,
            waiter: waiter.boxed().shared(),
            canceller,
        }
    }

    /// Waits until the job has started, and returns a reference to it. Cancel-safe.
    ///
    /// # Errors
    /// The reason why the job could not be started.
    pub async fn started(&self) -> Result<JobRef, UnpackError> {
        let waiter = self.waiter.clone().await?;
        Ok(JobRef {
            id: waiter.job.spec.id,
            joined: waiter.joined,
        })
    }

    /// Returns the events of the job from the first one on, until its end. Of the progress of a
    /// layer a slow or late reader gets the latest only.
    pub fn events(&self) -> BoxStream<'static, Event> {
        let start = (self.waiter.clone(), self.image.clone(), Cursor::default());
        let events = stream::unfold(start, |(waiter, image, cursor)| async move {
            let joined = waiter.clone().await.ok()?;
            let (mut event, cursor) = joined.job.next_event(cursor).await?;
            event.image.clone_from(&image);
            Some((event, (waiter, image, cursor)))
        });
        events.boxed()
    }

    /// Waits for the end of the job.
    ///
    /// # Errors
    /// The reason why the image is not ready. No active snapshot is left, unless the error is
    /// [`UnpackError::Unclean`].
    pub async fn report(self) -> Result<Report, UnpackError> {
        let Self { image, waiter, .. } = self;
        let waiter = waiter.await?;
        let mut report = waiter.job.result().await?;
        report.image = image;
        Ok(report)
    }

    /// Returns a handle that cancels the job at any time and from anywhere.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }
}

impl IntoFuture for Job {
    type Output = Result<Report, UnpackError>;
    type IntoFuture = BoxFuture<'static, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        self.report().boxed()
    }
}
