// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The jobs of an engine, as others than their callers see them.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::SystemTime;

use resnap_core::error_chain;
use serde::Serialize;
use tokio::sync::watch;

use crate::backoff::BackOff;
use crate::engine::{Inner, Shared};
use crate::flight::Flight;
use crate::progress::percent;
use crate::{Failure, UnpackError};

/// How many ended jobs are kept for watchers that are slow to look.
const MAX_ENDED: usize = 64;

/// What becomes of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It is at work, or waits for others who make its layers.
    Running,
    /// It was cancelled and cleans up.
    Cancelling,
    /// The image is ready.
    Done,
    /// The image is not ready.
    Failed,
    /// It was cancelled, and left nothing but committed layers.
    Cancelled,
}

/// A job at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JobStatus {
    /// Its number, which no other job of the engine has or had.
    pub id: u64,
    /// The image's name in the store; of one that is known there by a bare ID, what the user wrote
    /// or else what it can be pulled by, with the ID behind in brackets.
    pub image: String,
    /// The snapshotter.
    pub snapshotter: String,
    /// The platform of the manifest.
    pub platform: String,
    /// Who asked for it first, as [`Request::origin`](crate::Request::origin) says.
    pub origin: String,
    /// What becomes of it.
    pub state: JobState,
    /// When it began.
    #[serde(serialize_with = "crate::dead::rfc3339")]
    pub started: SystemTime,
    /// Layers of the image.
    pub layers: usize,
    /// Those that are ready.
    pub ready_layers: usize,
    /// Bytes of the layers' blobs.
    pub bytes: u64,
    /// Those of layers that are ready.
    pub ready_bytes: u64,
    /// Those that have been read, of layers at work too: [`Progress::read_bytes`](crate::Progress::read_bytes).
    pub read_bytes: u64,
    /// How many callers wait for it.
    pub waiters: usize,
    /// For whom it waits, if somebody else makes its layer.
    pub waits_for: Option<String>,
    /// Why it ended without the image being ready, if so.
    pub failure: Option<Failure>,
}

impl JobStatus {
    /// How far it is, 0 to 100: [`Progress::percent`](crate::Progress::percent).
    pub fn percent(&self) -> u8 {
        percent(self.read_bytes, self.bytes)
    }

    /// Whether there is nothing in it that is worth telling after `told`: bytes that are read make
    /// news by the percent.
    fn is_old(&self, told: &Self) -> bool {
        let same = Self {
            read_bytes: told.read_bytes,
            ..self.clone()
        };
        same == *told && self.percent() == told.percent()
    }
}

/// All jobs of an engine.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    pub(crate) running: Vec<Arc<Flight>>,
    last_id: u64,
    pub(crate) backoff: BackOff,
    /// The latest of those that are over, the newest last.
    ended: VecDeque<JobStatus>,
}

impl Jobs {
    /// A number for the next job.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

/// Sees the jobs of an engine come, change and go.
#[derive(Debug)]
pub struct JobWatch {
    engine: Shared,
    changed: watch::Receiver<()>,
    /// What was told of each; `None` before the first look.
    told: Option<HashMap<u64, JobStatus>>,
}

impl JobWatch {
    pub(crate) fn new(engine: Shared) -> Self {
        Self {
            changed: engine.changed.subscribe(),
            engine,
            told: None,
        }
    }

    /// At first, at once, the running jobs, if any; then, whenever there is something new, the jobs
    /// that changed, as they are now: one that has ended a last time. Who asks seldom misses steps
    /// between, and no end unless 64 others came after it. Cancel-safe.
    pub async fn next(&mut self) -> Vec<JobStatus> {
        loop {
            self.changed.mark_unchanged();
            if let Some(news) = self.look() {
                return news;
            }
            // The sender is the engine's.
            let _ = self.changed.changed().await;
        }
    }

    fn look(&mut self) -> Option<Vec<JobStatus>> {
        let (running, ended) = {
            let jobs = self.engine.jobs();
            let running: Vec<JobStatus> = jobs.running.iter().map(|job| job.status()).collect();
            (running, jobs.ended.iter().cloned().collect::<Vec<_>>())
        };
        let Some(told) = &mut self.told else {
            let all = ended.iter().chain(&running);
            self.told = Some(all.map(|job| (job.id, job.clone())).collect());
            return Some(running);
        };
        let now: Vec<JobStatus> = ended.into_iter().chain(running).collect();
        let is_news = |job: &&JobStatus| !told.get(&job.id).is_some_and(|told| job.is_old(told));
        let news: Vec<JobStatus> = now.iter().filter(is_news).cloned().collect();
        // What was not told stays as it was when it was.
        let mut before = std::mem::take(told);
        let latest = now.into_iter().map(|job| match before.remove(&job.id) {
            Some(told) if job.is_old(&told) => told,
            _ => job,
        });
        *told = latest.map(|job| (job.id, job)).collect();
        (!news.is_empty()).then_some(news)
    }
}

impl Inner {
    pub(crate) fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The job ends like this, for all who wait; who asks from now on begins a new one.
    pub(crate) fn land(&self, flight: &Arc<Flight>, result: Result<crate::Report, UnpackError>) {
        let mut jobs = self.jobs();
        jobs.running.retain(|running| !Arc::ptr_eq(running, flight));
        let (plan, snapshotter) = (&flight.plan, &flight.snapshotter);
        match &result {
            Ok(_) => jobs.backoff.forget(plan, snapshotter),
            Err(error) if flight.is_at_limit() => {
                let pause = jobs.backoff.failed(plan, snapshotter, error).as_secs();
                let error = error_chain(error);
                tracing::warn!(error, "tried again after {pause} s at the earliest");
            }
            Err(_) => {}
        }
        told(flight, &result);
        flight.finish(result);
        if jobs.ended.len() == MAX_ENDED {
            jobs.ended.pop_front();
        }
        jobs.ended.push_back(flight.status());
        drop(jobs);
        flight.share.end();
        self.changed.send_replace(());
    }

    /// Cancels a job and waits for its end.
    pub(crate) async fn cancel(
        &self,
        id: u64,
        unless_shared: bool,
    ) -> Result<JobStatus, UnpackError> {
        let flight = {
            let jobs = self.jobs();
            let flight = jobs.running.iter().find(|job| job.id == id);
            let flight = flight.ok_or(UnpackError::NoSuchJob { id })?;
            let waiters = flight.waiters();
            // Nobody can join before the lock is given back.
            if unless_shared && waiters > 1 {
                return Err(UnpackError::SharedJob {
                    id,
                    image: flight.title.clone(),
                    snapshotter: flight.snapshotter.clone(),
                });
            }
            flight.cancel();
            Arc::clone(flight)
        };
        // Why it failed is part of its status.
        let _ = flight.result().await;
        Ok(flight.status())
    }
}

/// Tells how a job ended. Its span says of what.
fn told(flight: &Flight, result: &Result<crate::Report, UnpackError>) {
    let (layers, seconds) = (flight.plan.layers.len(), flight.seconds());
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
            let (bytes, error) = (flight.status().ready_bytes, error_chain(error));
            tracing::info!(outcome, layers, bytes, seconds, error, "unpack ended");
        }
    }
}

#[cfg(test)]
mod tests {
    use resnap_core::testing::{
        Behaviour, Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
    };

    use super::*;
    use crate::{Engine, EngineSettings, Job, Request};

    /// An engine whose second layer never gets written.
    fn stuck() -> Engine {
        let backend = Simulated::new();
        backend.add_snapshotter("erofs", Behaviour::Ordinary);
        let layers = ["a", "b"].map(SimulatedLayer::new).to_vec();
        backend.add_image("k8s.io", "web", &SimulatedImage::new(layers));
        backend.set_faults([Fault {
            operation: Operation::Apply,
            call: 2,
            effect: Effect::Hang,
        }]);
        Engine::new(backend.ports(), "k8s.io", EngineSettings::default()).unwrap()
    }

    fn ask(engine: &Engine, origin: &str) -> Job {
        engine.unpack(Request {
            origin: origin.to_owned(),
            ..Request::new("web", "erofs")
        })
    }

    /// Reads news until they say so.
    async fn until(watch: &mut JobWatch, is_so: impl Fn(&JobStatus) -> bool) -> JobStatus {
        loop {
            let news = watch.next().await;
            if let Some(job) = news.into_iter().find(&is_so) {
                return job;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_seen_from_its_begin_to_its_end() {
        let engine = stuck();
        let mut watch = engine.watch_jobs();
        assert_eq!(watch.next().await, []);
        let first = ask(&engine, "cri");
        let half = until(&mut watch, |job| job.ready_layers == 1).await;
        assert_eq!((half.id, &*half.origin, half.layers), (1, "cri", 2));
        assert_eq!((half.state, half.waiters), (JobState::Running, 1));
        assert_eq!(engine.jobs().as_slice(), std::slice::from_ref(&half));
        // Who comes later sees it at once.
        assert_eq!(engine.watch_jobs().next().await, [half]);

        let second = ask(&engine, "api");
        let begun = second.begun().await.unwrap();
        assert_eq!((begun.id, begun.joined), (1, true));
        assert!(!first.begun().await.unwrap().joined);
        until(&mut watch, |job| job.waiters == 2).await;
        let shared = engine.cancel(1, true).await;
        assert!(matches!(shared, Err(UnpackError::SharedJob { id: 1, .. })));
        drop(first);
        until(&mut watch, |job| job.waiters == 1).await;

        let cancelled = engine.cancel(1, true).await.unwrap();
        assert_eq!(cancelled.state, JobState::Cancelled);
        assert!(second.report().await.unwrap_err().is_cancelled());
        let end = until(&mut watch, |job| job.state == JobState::Cancelled).await;
        assert!(end.failure.unwrap().is_cancelled());
        assert_eq!(engine.jobs(), []);
        let gone = engine.cancel(1, false).await;
        assert!(matches!(gone, Err(UnpackError::NoSuchJob { id: 1 })));

        // The next one, of which only the end is seen.
        let report = ask(&engine, "api").report().await.unwrap();
        assert_eq!(report.layers.len(), 2);
        let news = watch.next().await;
        let (id, state) = (news[0].id, news[0].state);
        assert_eq!((id, state, news.len()), (2, JobState::Done, 1));
        assert_eq!(news[0].percent(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_before_its_job_begins_leaves_no_seat() {
        let engine = stuck();
        drop(ask(&engine, "api"));
        let mut watch = engine.watch_jobs();
        let job = until(&mut watch, |job| job.ready_layers == 1).await;
        assert_eq!((job.waiters, job.state), (0, JobState::Running));
    }
}
