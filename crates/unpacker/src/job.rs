// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What a caller has of a job.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use tokio::task::JoinHandle;

use crate::flight::Flight;
use crate::{Event, Report, UnpackError};

/// A caller's handle of a job. Dropping it stops nothing: the job belongs to the engine, and others
/// may wait for it as well.
#[derive(Debug)]
pub struct Job {
    /// As the caller wrote it.
    image: String,
    /// The job itself, once it is planned.
    flight: Shared<BoxFuture<'static, Result<Arc<Flight>, UnpackError>>>,
    canceller: Canceller,
    told: usize,
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
        begin: JoinHandle<Result<Arc<Flight>, UnpackError>>,
        canceller: Canceller,
    ) -> Self {
        let name = image.clone();
        let flight = begin.map(|begun| {
            begun.unwrap_or_else(|error| {
                Err(UnpackError::Broken {
                    image: name,
                    reason: error.to_string(),
                })
            })
        });
        Self {
            image,
            flight: flight.boxed().shared(),
            canceller,
            told: 0,
        }
    }

    /// The next event, `None` after the last. Who joins a job that runs gets its events from the
    /// first one on. Cancel-safe.
    pub async fn next_event(&mut self) -> Option<Event> {
        let flight = self.flight.clone().await.ok()?;
        let mut event = flight.event(self.told).await?;
        self.told += 1;
        event.image.clone_from(&self.image);
        Some(event)
    }

    /// The end of the job. Events that were not asked for are dropped.
    ///
    /// # Errors
    /// What kept the image from being ready. No active snapshot is left then, unless the error is
    /// [`UnpackError::Unclean`].
    pub async fn report(self) -> Result<Report, UnpackError> {
        let Self { image, flight, .. } = self;
        let mut report = flight.await?.result().await?;
        report.image = image;
        Ok(report)
    }

    /// What cancels the job, at any time and from anywhere.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }
}
