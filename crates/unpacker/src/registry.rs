// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The jobs of an engine: starting, joining, cancelling and finishing them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resnap_core::{Descriptor, Error, error_chain};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backoff::BackOff;
use crate::clock::Clock;
use crate::observe::{EngineEvent, EngineObserver};
use crate::room::require_room;
use crate::running::{JobSpec, RunningJob, Waiter};
use crate::running_layer::RunningLayer;
use crate::slots::Slots;
use crate::title::title;
use crate::{JobStatus, Plan, Report, Request, UnpackError};

/// The number of ended jobs kept for watchers that read slowly.
const MAX_ENDED: usize = 64;

/// The jobs of an engine.
#[derive(Debug)]
pub(crate) struct JobRegistry {
    jobs: Mutex<Jobs>,
    /// Sent when a job starts, changes or ends.
    changed: watch::Sender<()>,
    slots: Slots,
    clock: Clock,
    observer: Option<Arc<dyn EngineObserver>>,
}

#[derive(Debug, Default)]
struct Jobs {
    running: Vec<Arc<RunningJob>>,
    /// Layers that the backend asked for.
    layers: Vec<Arc<RunningLayer>>,
    last_id: u64,
    backoff: BackOff,
    /// The latest ended jobs, the newest last.
    ended: VecDeque<JobStatus>,
}

impl Jobs {
    /// Returns the status of the running jobs, the oldest first.
    fn statuses(&self) -> Vec<JobStatus> {
        let images = self.running.iter().map(|job| job.status());
        let layers = self.layers.iter().map(|job| job.status());
        let mut all: Vec<_> = images.chain(layers).collect();
        all.sort_by_key(|job| job.id);
        all
    }

    /// Keeps the status of an ended job for watchers.
    fn keep(&mut self, job: JobStatus) {
        if self.ended.len() == MAX_ENDED {
            self.ended.pop_front();
        }
        self.ended.push_back(job);
    }
}

impl JobRegistry {
    pub(crate) fn new(
        slots: Slots,
        clock: Clock,
        observer: Option<Arc<dyn EngineObserver>>,
    ) -> Self {
        Self {
            jobs: Mutex::default(),
            changed: watch::Sender::new(()),
            slots,
            clock,
            observer,
        }
    }

    pub(crate) fn notify_observer(&self, event: &EngineEvent<'_>) {
        if let Some(observer) = &self.observer {
            observer.on_event(event);
        }
    }

    /// Joins the running job for this plan, or registers a new one, which the caller has to run.
    pub(crate) fn join_or_start(
        &self,
        plan: Arc<Plan>,
        request: Request,
        snapshotter: String,
    ) -> Result<Waiter, UnpackError> {
        let background = request.background;
        // A person may want the proof that copies lack; a pod wants to start.
        let is_healing = !request.wrong.is_empty();
        let replace_copies = request.repair && !is_healing && !request.by_itself && !background;
        let repair = (request.repair, replace_copies, &request.wrong);
        let mut jobs = self.jobs();
        let mut running = jobs.running.iter();
        if let Some(job) = running.find(|job| job.matches(&plan, &snapshotter, repair)) {
            self.notify_observer(&EngineEvent::Joined);
            return Ok(Waiter::new(job, true, background, request.pod.as_ref()));
        }
        require_room(jobs.running.iter().map(|job| &*job.spec.plan), &plan)?;
        if background || request.by_itself {
            jobs.backoff.require_elapsed(&plan, &snapshotter)?;
        } else {
            jobs.backoff.forget(&plan, &snapshotter);
        }
        jobs.last_id += 1;
        let id = jobs.last_id;
        let spec = JobSpec {
            id,
            share: self.slots.share(id),
            title: title(&plan.image, request.user_reference.as_deref()),
            pod: request.pod,
            plan,
            snapshotter,
            replace_copies,
            wrong: request.wrong,
            repair: request.repair,
            origin: request.origin,
            started: self.clock.now(),
        };
        let job = RunningJob::new(spec, self.changed.clone(), self.observer.clone());
        let waiter = Waiter::new(&job, false, background, job.spec.pod.as_ref());
        jobs.running.push(job);
        Ok(waiter)
    }

    /// Ends the job for all waiters; the next request starts a new one.
    pub(crate) fn finish_job(&self, job: &Arc<RunningJob>, result: Result<Report, UnpackError>) {
        let mut jobs = self.jobs();
        jobs.running.retain(|running| !Arc::ptr_eq(running, job));
        let (plan, snapshotter) = (&job.spec.plan, &job.spec.snapshotter);
        match &result {
            Ok(_) => jobs.backoff.forget(plan, snapshotter),
            Err(error) if job.is_at_limit() => {
                let pause = jobs.backoff.record_failure(plan, snapshotter, error);
                let (pause, error) = (pause.as_secs(), error_chain(error));
                tracing::warn!(error, "tried again after {pause} s at the earliest");
            }
            Err(_) => {}
        }
        log_result(job, &result);
        job.finish(result);
        jobs.keep(job.status());
        drop(jobs);
        job.spec.share.end();
        self.changed.send_replace(());
    }

    /// Registers a job for a layer that the backend asks for.
    pub(crate) fn start_layer(
        &self,
        layer: &Descriptor,
        snapshotter: &str,
        cancellation: CancellationToken,
    ) -> Arc<RunningLayer> {
        let mut jobs = self.jobs();
        jobs.last_id += 1;
        let job = RunningLayer::new(
            (jobs.last_id, self.slots.share(jobs.last_id)),
            layer.clone(),
            snapshotter.to_owned(),
            self.clock.now(),
            cancellation,
            self.changed.clone(),
        );
        let job = Arc::new(job);
        jobs.layers.push(Arc::clone(&job));
        self.changed.send_replace(());
        job
    }

    /// Ends the job for a layer.
    pub(crate) fn finish_layer(&self, job: &Arc<RunningLayer>, result: Result<(), Error>) {
        let mut jobs = self.jobs();
        jobs.layers.retain(|running| !Arc::ptr_eq(running, job));
        job.finish(result);
        jobs.keep(job.status());
        drop(jobs);
        job.share.end();
        self.changed.send_replace(());
    }

    /// Cancels a job and waits until it has ended.
    pub(crate) async fn cancel(
        &self,
        id: u64,
        unless_shared: bool,
    ) -> Result<JobStatus, UnpackError> {
        let layer = {
            let jobs = self.jobs();
            jobs.layers.iter().find(|job| job.id == id).cloned()
        };
        if let Some(job) = layer {
            job.cancel();
            job.ended().await;
            return Ok(job.status());
        }
        let job = {
            let jobs = self.jobs();
            let job = jobs.running.iter().find(|job| job.spec.id == id);
            let job = job.ok_or(UnpackError::NoSuchJob { id })?;
            // No caller can join while the lock is held.
            if unless_shared && job.waiters() > 1 {
                return Err(UnpackError::SharedJob {
                    id,
                    image: job.spec.title.clone(),
                    snapshotter: job.spec.snapshotter.clone(),
                });
            }
            job.cancel();
            Arc::clone(job)
        };
        // The status has the error.
        let _ = job.result().await;
        Ok(job.status())
    }

    /// Returns the running jobs, the oldest first.
    pub(crate) fn running(&self) -> Vec<JobStatus> {
        self.jobs().statuses()
    }

    /// Returns the running jobs and those that ended last.
    pub(crate) fn running_and_ended(&self) -> (Vec<JobStatus>, Vec<JobStatus>) {
        let jobs = self.jobs();
        (jobs.statuses(), jobs.ended.iter().cloned().collect())
    }

    /// Subscribes to changes of jobs.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs the end of a job. Its span has the image, the pod and the snapshotter.
fn log_result(job: &RunningJob, result: &Result<Report, UnpackError>) {
    let (layers, seconds) = (job.spec.plan.layers.len(), job.seconds());
    match result {
        Ok(report) => {
            let bytes = report.applied_bytes();
            tracing::info!(outcome = "ready", layers, bytes, seconds, "unpack ended");
        }
        Err(error) => {
            let outcome = if error.is_cancelled() {
                "cancelled"
            } else {
                "failed"
            };
            let (bytes, error) = (job.status().ready_bytes, error_chain(error));
            tracing::info!(outcome, layers, bytes, seconds, error, "unpack ended");
        }
    }
}
