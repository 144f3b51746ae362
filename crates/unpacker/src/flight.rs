// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One job and all who wait for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

use crate::{Event, Phase, Plan, Report, UnpackError};

/// A job, from the moment it is begun until nobody looks at it any more.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) plan: Arc<Plan>,
    pub(crate) snapshotter: String,
    pub(crate) repair: bool,
    started: Instant,
    events: Mutex<Vec<Event>>,
    /// Sent at every event and at the end.
    news: watch::Sender<()>,
    result: OnceLock<Result<Report, UnpackError>>,
    cancelled: watch::Sender<bool>,
    urgent: AtomicBool,
}

impl Flight {
    pub(crate) fn new(plan: Arc<Plan>, snapshotter: String, repair: bool) -> Arc<Self> {
        Arc::new(Self {
            plan,
            snapshotter,
            repair,
            started: Instant::now(),
            events: Mutex::default(),
            news: watch::Sender::new(()),
            result: OnceLock::new(),
            cancelled: watch::Sender::new(false),
            urgent: AtomicBool::new(false),
        })
    }

    /// Whether who asks for this gets it from this job.
    pub(crate) fn serves(&self, plan: &Plan, snapshotter: &str, repair: bool) -> bool {
        !*self.cancelled.borrow()
            && self.repair == repair
            && self.snapshotter == snapshotter
            && *self.plan == *plan
    }

    /// Notes that somebody waits for the job; answers whether that is news.
    pub(crate) fn hurry(&self) -> bool {
        !self.urgent.swap(true, Ordering::SeqCst)
    }

    /// Whether somebody waits for the job.
    pub(crate) fn is_urgent(&self) -> bool {
        self.urgent.load(Ordering::SeqCst)
    }

    /// Since the job began, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Tells `phase` of the layer at `index` to all who wait.
    pub(crate) fn tell(&self, index: usize, phase: Phase) {
        self.tell_waiting(index, phase, None);
    }

    /// The same, with for whom the layer waits.
    pub(crate) fn tell_waiting(&self, index: usize, phase: Phase, waits_for: Option<String>) {
        let layer = &self.plan.layers[index];
        self.events().push(Event {
            image: self.plan.image.name.clone(),
            snapshotter: self.snapshotter.clone(),
            phase,
            layer: index + 1,
            layers: self.plan.layers.len(),
            digest: layer.descriptor.digest.clone(),
            chain_id: layer.chain_id.clone(),
            bytes: layer.descriptor.size,
            seconds: self.seconds(),
            waits_for,
        });
        self.news.send_replace(());
    }

    /// The event with this number, waiting for it; `None` if the job is over without.
    pub(crate) async fn event(&self, number: usize) -> Option<Event> {
        let mut news = self.news.subscribe();
        loop {
            // In this order: after its end a job tells nothing.
            let over = self.result.get().is_some();
            if let Some(event) = self.events().get(number) {
                return Some(event.clone());
            }
            if over || news.changed().await.is_err() {
                return None;
            }
        }
    }

    /// The job's end.
    pub(crate) async fn result(&self) -> Result<Report, UnpackError> {
        let mut news = self.news.subscribe();
        loop {
            if let Some(result) = self.result.get() {
                return result.clone();
            }
            // The sender is ours.
            let _ = news.changed().await;
        }
    }

    /// Ends the job, for all who wait.
    pub(crate) fn finish(&self, result: Result<Report, UnpackError>) {
        // Only its own task does so, once.
        let _ = self.result.set(result);
        self.news.send_replace(());
    }

    /// Makes the job stop where it can.
    pub(crate) fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    /// Waits until the job is cancelled.
    pub(crate) async fn cancelled(&self) {
        let mut cancelled = self.cancelled.subscribe();
        // The sender is ours.
        let _ = cancelled.wait_for(|cancelled| *cancelled).await;
    }

    /// That the job is not cancelled.
    pub(crate) fn go_on(&self) -> Result<(), UnpackError> {
        if *self.cancelled.borrow() {
            return Err(self.cancellation());
        }
        Ok(())
    }

    pub(crate) fn cancellation(&self) -> UnpackError {
        UnpackError::Cancelled {
            image: self.plan.image.name.clone(),
            snapshotter: self.snapshotter.clone(),
        }
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
