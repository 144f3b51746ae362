// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A running job and the callers that wait for it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use resnap_core::{PodId, SnapshotKey, Stage, StageTiming};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::event_log::{Cursor, EventLog};
use crate::observe::{EngineEvent, EngineObserver};
use crate::slots::{Share, Urgency};
use crate::{Event, JobState, JobStatus, Phase, Plan, Report, StageTime, UnpackError};

/// The limit on the pods of a job whose credentials are tried.
const MAX_PODS: usize = 64;

/// The properties of a job that are known when it starts.
#[derive(Debug)]
pub(crate) struct JobSpec {
    pub(crate) id: u64,
    /// The job's share of the slots for writing layers.
    pub(crate) share: Share,
    pub(crate) plan: Arc<Plan>,
    /// The image's name in messages.
    pub(crate) title: String,
    /// The pod of the caller that started the job.
    pub(crate) pod: Option<PodId>,
    pub(crate) snapshotter: String,
    pub(crate) repair: bool,
    /// Whether a repair also replaces layers that were copied from another snapshotter.
    pub(crate) replace_copies: bool,
    /// Layers that are wrong, with the times when they were made: they are removed and made again.
    pub(crate) wrong: BTreeMap<SnapshotKey, SystemTime>,
    pub(crate) origin: String,
    /// The time of day when the job started.
    pub(crate) started: SystemTime,
}

/// A job, from its start until the last reference to it is dropped.
#[derive(Debug)]
pub(crate) struct RunningJob {
    pub(crate) spec: JobSpec,
    started: Instant,
    waiters: AtomicUsize,
    /// The pods that have waited for the job.
    pods: Mutex<BTreeSet<PodId>>,
    events: Mutex<EventLog>,
    /// The stages of each layer.
    stages: Mutex<Vec<Vec<StageTime>>>,
    /// Sent at every event and at the end.
    progressed: watch::Sender<()>,
    result: OnceLock<Result<Report, UnpackError>>,
    cancellation: CancellationToken,
    /// Whether a layer failed by a limit of the applier.
    at_limit: AtomicBool,
    /// The engine's; sent when the status changes.
    changed: watch::Sender<()>,
    observer: Option<Arc<dyn EngineObserver>>,
}

/// A caller that waits for a job, until this is dropped.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) job: Arc<RunningJob>,
    /// Whether the job was already running.
    pub(crate) joined: bool,
    /// `None` for a background request.
    _urgency: Option<Urgency>,
}

impl Waiter {
    pub(crate) fn new(
        job: &Arc<RunningJob>,
        joined: bool,
        background: bool,
        pod: Option<&PodId>,
    ) -> Self {
        job.waiters.fetch_add(1, Ordering::SeqCst);
        if let Some(pod) = pod {
            let mut pods = job.pods.lock().unwrap_or_else(PoisonError::into_inner);
            if pods.len() < MAX_PODS {
                pods.insert(pod.clone());
            }
        }
        job.changed.send_replace(());
        Self {
            job: Arc::clone(job),
            joined,
            _urgency: (!background).then(|| {
                let pod = pod.map(|pod| &*pod.name);
                job.spec.share.mark_urgent(pod)
            }),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.job.waiters.fetch_sub(1, Ordering::SeqCst);
        self.job.changed.send_replace(());
    }
}

impl RunningJob {
    pub(crate) fn new(
        spec: JobSpec,
        changed: watch::Sender<()>,
        observer: Option<Arc<dyn EngineObserver>>,
    ) -> Arc<Self> {
        let job = Self {
            stages: Mutex::new(vec![Vec::new(); spec.plan.layers.len()]),
            spec,
            started: Instant::now(),
            waiters: AtomicUsize::new(0),
            pods: Mutex::default(),
            events: Mutex::default(),
            progressed: watch::Sender::new(()),
            result: OnceLock::new(),
            cancellation: CancellationToken::new(),
            at_limit: AtomicBool::new(false),
            changed,
            observer,
        };
        job.notify_observer(&EngineEvent::Began);
        Arc::new(job)
    }

    pub(crate) fn notify_observer(&self, event: &EngineEvent<'_>) {
        if let Some(observer) = &self.observer {
            observer.on_event(event);
        }
    }

    /// Returns the pods that have waited for the job.
    pub(crate) fn pods(&self) -> BTreeSet<PodId> {
        let pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.clone()
    }

    /// Returns the number of waiters.
    pub(crate) fn waiters(&self) -> usize {
        self.waiters.load(Ordering::SeqCst)
    }

    /// Returns the current status.
    pub(crate) fn status(&self) -> JobStatus {
        let (spec, result) = (&self.spec, self.result.get());
        let error = result.and_then(|result| result.as_ref().err());
        let state = match (result, error) {
            (None, _) if self.cancellation.is_cancelled() => JobState::Cancelling,
            (None, _) => JobState::Running,
            (Some(_), Some(error)) if error.is_cancelled() => JobState::Cancelled,
            (Some(_), Some(_)) => JobState::Failed,
            (Some(_), None) => JobState::Done,
        };
        let events = self.events();
        let progress = events.progress();
        JobStatus {
            id: spec.id,
            image: spec.title.clone(),
            snapshotter: spec.snapshotter.clone(),
            platform: spec.plan.platform.to_string(),
            origin: spec.origin.clone(),
            state,
            started: spec.started,
            layers: spec.plan.layers.len(),
            ready_layers: progress.ready_layers(),
            bytes: progress.bytes(),
            ready_bytes: progress.ready_bytes(),
            read_bytes: progress.read_bytes(),
            waiters: self.waiters(),
            waits_for: events.last().and_then(|event| event.waits_for.clone()),
            failure: error.cloned(),
        }
    }

    /// Returns whether the job does what such a request asks for. `repair` is whether it repairs, whether
    /// it replaces copies, and which layers are wrong.
    pub(crate) fn matches(
        &self,
        plan: &Plan,
        snapshotter: &str,
        repair: (bool, bool, &BTreeMap<SnapshotKey, SystemTime>),
    ) -> bool {
        let spec = &self.spec;
        !self.cancellation.is_cancelled()
            && (spec.repair, spec.replace_copies, &spec.wrong) == repair
            && spec.snapshotter == snapshotter
            && *spec.plan == *plan
    }

    /// Returns the seconds since the job started.
    pub(crate) fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Emits the event that the layer at `index` has entered `phase`.
    pub(crate) fn emit(&self, index: usize, phase: Phase) {
        self.notify_layer(index, phase);
        self.push_event(index, phase, None, None);
    }

    /// Emits the event that the layer waits for `holder`.
    pub(crate) fn emit_waiting(&self, index: usize, holder: String) {
        self.notify_layer(index, Phase::Waiting);
        self.push_event(index, Phase::Waiting, Some(holder), None);
    }

    fn notify_layer(&self, index: usize, phase: Phase) {
        let bytes = self.spec.plan.layers[index].descriptor.size;
        self.notify_observer(&EngineEvent::Layer { phase, bytes });
    }

    /// Emits the event that `bytes` of the layer's blob have been read.
    pub(crate) fn emit_progress(&self, index: usize, bytes: u64) {
        self.push_event(index, Phase::Progress, None, Some(bytes));
    }

    /// Emits the event that `bytes` of the layer's blob have been fetched.
    pub(crate) fn emit_fetching(&self, index: usize, bytes: u64) {
        self.push_event(index, Phase::Fetching, None, Some(bytes));
    }

    fn push_event(&self, index: usize, phase: Phase, waits_for: Option<String>, read: Option<u64>) {
        let layer = &self.spec.plan.layers[index];
        self.events().push(Event {
            image: self.spec.title.clone(),
            snapshotter: self.spec.snapshotter.clone(),
            phase,
            layer: index + 1,
            layers: self.spec.plan.layers.len(),
            digest: layer.descriptor.digest.clone(),
            chain_id: layer.chain_id.clone(),
            bytes: layer.descriptor.size,
            seconds: self.seconds(),
            waits_for,
            read,
        });
        self.progressed.send_replace(());
        self.changed.send_replace(());
    }

    /// Records the times of a stage of the layer.
    pub(crate) fn record_stage(&self, index: usize, stage: Stage, timing: StageTiming) {
        let started = self.started.into_std();
        let since = |at: std::time::Instant| at.saturating_duration_since(started).as_secs_f64();
        let time = StageTime {
            stage,
            start: since(timing.start),
            end: since(timing.end),
            busy: timing.busy.as_secs_f64(),
        };
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stages) = stages.get_mut(index) {
            stages.push(time);
        }
    }

    /// Returns the stages of the layer, ordered by their start.
    pub(crate) fn stages(&self, index: usize) -> Vec<StageTime> {
        let stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stages = stages.get(index).cloned().unwrap_or_default();
        stages.sort_by(|left, right| left.start.total_cmp(&right.start));
        stages
    }

    /// Waits for the event after `cursor`, and returns it and the cursor after it; `None` if the
    /// job ends without one.
    pub(crate) async fn next_event(&self, cursor: Cursor) -> Option<(Event, Cursor)> {
        let mut progressed = self.progressed.subscribe();
        loop {
            // In this order: a job that has ended emits nothing.
            let has_ended = self.result.get().is_some();
            if let Some(next) = self.events().next(cursor) {
                return Some(next);
            }
            if has_ended || progressed.changed().await.is_err() {
                return None;
            }
        }
    }

    /// Waits for the result.
    pub(crate) async fn result(&self) -> Result<Report, UnpackError> {
        let mut progressed = self.progressed.subscribe();
        loop {
            if let Some(result) = self.result.get() {
                return result.clone();
            }
            // Cannot fail: `self` owns the sender.
            let _ = progressed.changed().await;
        }
    }

    /// Publishes the result to all waiters.
    pub(crate) fn finish(&self, result: Result<Report, UnpackError>) {
        // The observer comes first, so that metrics are current when a waiter reads them.
        self.notify_observer(&EngineEvent::Ended {
            snapshotter: &self.spec.snapshotter,
            result: result.as_ref(),
            seconds: self.seconds(),
        });
        // Set once, by the job's own task.
        let _ = self.result.set(result);
        self.progressed.send_replace(());
    }

    /// Records that a layer failed by a limit of the applier.
    pub(crate) fn set_at_limit(&self) {
        self.at_limit.store(true, Ordering::Relaxed);
    }

    /// Returns whether a layer failed by a limit of the applier.
    pub(crate) fn is_at_limit(&self) -> bool {
        self.at_limit.load(Ordering::Relaxed)
    }

    /// Requests the job to stop.
    pub(crate) fn cancel(&self) {
        self.cancellation.cancel();
        self.changed.send_replace(());
    }

    /// Waits until the job is cancelled.
    pub(crate) async fn cancelled(&self) {
        self.cancellation.cancelled().await;
    }

    /// Returns an error if the job has been cancelled.
    pub(crate) fn check_cancelled(&self) -> Result<(), UnpackError> {
        if self.cancellation.is_cancelled() {
            return Err(self.cancelled_error());
        }
        Ok(())
    }

    pub(crate) fn cancelled_error(&self) -> UnpackError {
        UnpackError::Cancelled {
            image: self.spec.title.clone(),
            snapshotter: self.spec.snapshotter.clone(),
        }
    }

    fn events(&self) -> MutexGuard<'_, EventLog> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
