// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What a caller has of a job.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::task::JoinHandle;

use crate::flight::{Flight, Seat};
use crate::log::Place;
use crate::{Event, Report, UnpackError};

/// A caller's handle of a job. Dropping it stops nothing: the job belongs to the engine, and others
/// may wait for it as well.
#[derive(Debug)]
pub struct Job {
    /// As the caller wrote it.
    image: String,
    /// The place in the job, once that is planned.
    seat: Shared<BoxFuture<'static, Result<Arc<Seat>, UnpackError>>>,
    canceller: Canceller,
    place: Place,
}

/// A job that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobRef {
    /// Its number, as in [`JobStatus::id`](crate::JobStatus::id).
    pub id: u64,
    /// Whether it was running before, for somebody else.
    pub joined: bool,
}

/// Cancels a job.
#[derive(Debug, Clone, Default)]
pub struct Canceller(Arc<Cancelling>);

#[derive(Debug, Default)]
struct Cancelling {
    asked: AtomicBool,
    flight: OnceLock<Arc<Flight>>,
}

impl Canceller {
    /// Makes the job stop, for all who wait for it: its active snapshot is removed, its committed
    /// layers stay under its lease. It ends, with [`UnpackError::Cancelled`], once that is done.
    pub fn cancel(&self) {
        self.0.asked.store(true, Ordering::SeqCst);
        if let Some(flight) = self.0.flight.get() {
            flight.cancel();
        }
    }

    /// Names the job, once it is known.
    pub(crate) fn aim(&self, flight: &Arc<Flight>) {
        // A handle is of one job.
        let _ = self.0.flight.set(Arc::clone(flight));
        if self.0.asked.load(Ordering::SeqCst) {
            flight.cancel();
        }
    }
}

impl Job {
    pub(crate) fn new(
        image: String,
        begin: JoinHandle<Result<Arc<Seat>, UnpackError>>,
        canceller: Canceller,
    ) -> Self {
        let name = image.clone();
        let seat = begin.map(|begun| {
            begun.unwrap_or_else(|error| {
                Err(UnpackError::Broken {
                    image: name,
                    reason: error.to_string(),
                })
            })
        });
        Self {
            image,
            seat: seat.boxed().shared(),
            canceller,
            place: Place::default(),
        }
    }

    /// Waits until it is known which job this is. Cancel-safe.
    ///
    /// # Errors
    /// What kept the job from being begun.
    pub async fn begun(&self) -> Result<JobRef, UnpackError> {
        let seat = self.seat.clone().await?;
        Ok(JobRef {
            id: seat.flight.id,
            joined: seat.joined,
        })
    }

    /// The next event, `None` after the last. Who joins a job that runs gets its events from the
    /// first one on, but of a layer's progress the latest only. Cancel-safe.
    pub async fn next_event(&mut self) -> Option<Event> {
        let seat = self.seat.clone().await.ok()?;
        let (mut event, place) = seat.flight.event(self.place).await?;
        self.place = place;
        event.image.clone_from(&self.image);
        Some(event)
    }

    /// The end of the job. Events that were not asked for are dropped.
    ///
    /// # Errors
    /// What kept the image from being ready. No active snapshot is left then, unless the error is
    /// [`UnpackError::Unclean`].
    pub async fn report(self) -> Result<Report, UnpackError> {
        let Self { image, seat, .. } = self;
        let seat = seat.await?;
        let mut report = seat.flight.result().await?;
        report.image = image;
        Ok(report)
    }

    /// What cancels the job, at any time and from anywhere.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }
}
