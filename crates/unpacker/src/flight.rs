// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One job and all who wait for it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
use tokio::time::Instant;

use resnap_core::{Stage, StageTiming};

use crate::log::{Log, Place};
use crate::observe::{EngineEvent, EngineObserver};
use crate::slots::{Share, Waiter};
use crate::{Event, Failure, JobState, JobStatus, Phase, Plan, Report, StageTime, UnpackError};

/// A job, from the moment it is begun until nobody looks at it any more.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) id: u64,
    /// Of the slots for writing layers.
    pub(crate) share: Share,
    pub(crate) plan: Arc<Plan>,
    /// What the image is called where people read of it.
    pub(crate) title: String,
    /// Of whoever asked first.
    pub(crate) pod: Option<String>,
    pub(crate) snapshotter: String,
    namespace: String,
    pub(crate) repair: bool,
    origin: String,
    wall_started: SystemTime,
    started: Instant,
    /// How many seats are taken.
    waiters: AtomicUsize,
    /// The engine's.
    changed: watch::Sender<()>,
    events: Mutex<Log>,
    /// Of each layer.
    stages: Mutex<Vec<Vec<StageTime>>>,
    /// Sent at every event and at the end.
    news: watch::Sender<()>,
    result: OnceLock<Result<Report, UnpackError>>,
    cancelled: watch::Sender<bool>,
    /// Whether a layer failed by a limit of the applier's.
    at_limit: AtomicBool,
    observer: Option<Arc<dyn EngineObserver>>,
}

/// What a new job is made of.
pub(crate) struct Boarding {
    pub(crate) id: u64,
    pub(crate) share: Share,
    pub(crate) plan: Arc<Plan>,
    pub(crate) title: String,
    pub(crate) pod: Option<String>,
    pub(crate) snapshotter: String,
    /// For next steps.
    pub(crate) namespace: String,
    pub(crate) repair: bool,
    pub(crate) origin: String,
    pub(crate) started: SystemTime,
    /// Sent when what [`Flight::status`] says changes.
    pub(crate) changed: watch::Sender<()>,
    pub(crate) observer: Option<Arc<dyn EngineObserver>>,
}

/// A caller's place in a job, left when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) flight: Arc<Flight>,
    /// Whether the job was running before.
    pub(crate) joined: bool,
    /// Unless the caller does not mind waiting.
    _urgent: Option<Waiter>,
}

impl Seat {
    pub(crate) fn new(
        flight: &Arc<Flight>,
        joined: bool,
        background: bool,
        pod: Option<&str>,
    ) -> Self {
        flight.waiters.fetch_add(1, Ordering::SeqCst);
        flight.changed.send_replace(());
        Self {
            flight: Arc::clone(flight),
            joined,
            _urgent: (!background).then(|| flight.share.wait(pod)),
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.flight.waiters.fetch_sub(1, Ordering::SeqCst);
        self.flight.changed.send_replace(());
    }
}

impl Flight {
    pub(crate) fn new(boarding: Boarding) -> Arc<Self> {
        let layers = boarding.plan.layers.len();
        let flight = Self {
            id: boarding.id,
            share: boarding.share,
            plan: boarding.plan,
            title: boarding.title,
            pod: boarding.pod,
            snapshotter: boarding.snapshotter,
            namespace: boarding.namespace,
            repair: boarding.repair,
            origin: boarding.origin,
            wall_started: boarding.started,
            started: Instant::now(),
            waiters: AtomicUsize::new(0),
            changed: boarding.changed,
            events: Mutex::default(),
            stages: Mutex::new(vec![Vec::new(); layers]),
            news: watch::Sender::new(()),
            result: OnceLock::new(),
            cancelled: watch::Sender::new(false),
            at_limit: AtomicBool::new(false),
            observer: boarding.observer,
        };
        flight.on_event(&EngineEvent::Began);
        Arc::new(flight)
    }

    fn on_event(&self, seen: &EngineEvent<'_>) {
        if let Some(observer) = &self.observer {
            observer.on_event(seen);
        }
    }

    /// How many callers wait.
    pub(crate) fn waiters(&self) -> usize {
        self.waiters.load(Ordering::SeqCst)
    }

    /// The job as it is now.
    pub(crate) fn status(&self) -> JobStatus {
        let (plan, result) = (&self.plan, self.result.get());
        let error = result.and_then(|result| result.as_ref().err());
        let state = match (result, error) {
            (None, _) if *self.cancelled.borrow() => JobState::Cancelling,
            (None, _) => JobState::Running,
            (Some(_), Some(error)) if error.is_cancelled() => JobState::Cancelled,
            (Some(_), Some(_)) => JobState::Failed,
            (Some(_), None) => JobState::Done,
        };
        let events = self.events();
        let far = events.progress();
        JobStatus {
            id: self.id,
            image: self.title.clone(),
            snapshotter: self.snapshotter.clone(),
            platform: plan.platform.to_string(),
            origin: self.origin.clone(),
            state,
            started: self.wall_started,
            layers: plan.layers.len(),
            ready_layers: far.ready_layers(),
            bytes: far.bytes(),
            ready_bytes: far.ready_bytes(),
            read_bytes: far.read_bytes(),
            waiters: self.waiters(),
            waits_for: events.last().and_then(|event| event.waits_for.clone()),
            failure: error.map(|error| Failure::new(error, &self.namespace)),
        }
    }

    /// Whether who asks for this gets it from this job.
    pub(crate) fn serves(&self, plan: &Plan, snapshotter: &str, repair: bool) -> bool {
        !*self.cancelled.borrow()
            && self.repair == repair
            && self.snapshotter == snapshotter
            && *self.plan == *plan
    }

    /// Since the job began, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Tells `phase` of the layer at `index` to all who wait.
    pub(crate) fn tell(&self, index: usize, phase: Phase) {
        self.on_event(&EngineEvent::Layer(phase));
        self.push(index, phase, None, None);
    }

    /// Tells that the layer waits for somebody else, and for whom.
    pub(crate) fn tell_waiting(&self, index: usize, holder: String) {
        self.on_event(&EngineEvent::Layer(Phase::Waiting));
        self.push(index, Phase::Waiting, Some(holder), None);
    }

    /// Tells how much of the layer's blob has been read.
    pub(crate) fn tell_read(&self, index: usize, bytes: u64) {
        self.push(index, Phase::Progress, None, Some(bytes));
    }

    fn push(&self, index: usize, phase: Phase, waits_for: Option<String>, read: Option<u64>) {
        let layer = &self.plan.layers[index];
        self.events().push(Event {
            image: self.title.clone(),
            snapshotter: self.snapshotter.clone(),
            phase,
            layer: index + 1,
            layers: self.plan.layers.len(),
            digest: layer.descriptor.digest.clone(),
            chain_id: layer.chain_id.clone(),
            bytes: layer.descriptor.size,
            seconds: self.seconds(),
            waits_for,
            read,
        });
        self.news.send_replace(());
        self.changed.send_replace(());
    }

    /// Notes that the layer went through a stage.
    pub(crate) fn record_stage(&self, index: usize, stage: Stage, span: StageTiming) {
        let began = self.started.into_std();
        let since = |at: std::time::Instant| at.saturating_duration_since(began).as_secs_f64();
        let time = StageTime {
            stage,
            start: since(span.start),
            end: since(span.end),
            busy: span.busy.as_secs_f64(),
        };
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stages) = stages.get_mut(index) {
            stages.push(time);
        }
    }

    /// The stages that the layer went through, by their beginnings.
    pub(crate) fn stages(&self, index: usize) -> Vec<StageTime> {
        let stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stages = stages.get(index).cloned().unwrap_or_default();
        stages.sort_by(|left, right| left.start.total_cmp(&right.start));
        stages
    }

    /// The event behind `place`, waiting for it, and the place behind that; `None` if the job is
    /// over without.
    pub(crate) async fn event(&self, place: Place) -> Option<(Event, Place)> {
        let mut news = self.news.subscribe();
        loop {
            // In this order: after its end a job tells nothing.
            let over = self.result.get().is_some();
            if let Some(next) = self.events().next(place) {
                return Some(next);
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
        // Before those who wait know: whoever counts then counts this.
        self.on_event(&EngineEvent::Ended {
            error: result.as_ref().err(),
            seconds: self.seconds(),
        });
        // Only its own task does so, once.
        let _ = self.result.set(result);
        self.news.send_replace(());
    }

    /// Notes that a layer failed by a limit of the applier's.
    pub(crate) fn reach_limit(&self) {
        self.at_limit.store(true, Ordering::Relaxed);
    }

    /// Whether a layer failed so.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.at_limit.load(Ordering::Relaxed)
    }

    /// Makes the job stop where it can.
    pub(crate) fn cancel(&self) {
        self.cancelled.send_replace(true);
        self.changed.send_replace(());
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
            image: self.title.clone(),
            snapshotter: self.snapshotter.clone(),
        }
    }

    fn events(&self) -> MutexGuard<'_, Log> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
