// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Watching the jobs of an engine.

use std::collections::HashMap;
use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;

use crate::JobStatus;
use crate::registry::JobRegistry;

/// See [`Engine::watch_jobs`](crate::Engine::watch_jobs).
pub(crate) fn watch_jobs(registry: Arc<JobRegistry>) -> BoxStream<'static, Vec<JobStatus>> {
    let watch = JobWatch {
        changed: registry.subscribe(),
        registry,
        last_sent: None,
    };
    let changes = stream::unfold(watch, async |mut watch| {
        let changes = watch.next().await;
        Some((changes, watch))
    });
    changes.boxed()
}

struct JobWatch {
    registry: Arc<JobRegistry>,
    changed: watch::Receiver<()>,
    /// The status of each job that was returned last; `None` before the first.
    last_sent: Option<HashMap<u64, JobStatus>>,
}

impl JobWatch {
    async fn next(&mut self) -> Vec<JobStatus> {
        loop {
            self.changed.mark_unchanged();
            if let Some(changes) = self.changes() {
                return changes;
            }
            // Cannot fail: the registry owns the sender.
            let _ = self.changed.changed().await;
        }
    }

    fn changes(&mut self) -> Option<Vec<JobStatus>> {
        let (running, ended) = self.registry.running_and_ended();
        let Some(last_sent) = &mut self.last_sent else {
            let all = ended.iter().chain(&running);
            self.last_sent = Some(all.map(|job| (job.id, job.clone())).collect());
            return Some(running);
        };
        let all: Vec<JobStatus> = ended.into_iter().chain(running).collect();
        let has_changed = |job: &&JobStatus| {
            let sent = last_sent.get(&job.id);
            !sent.is_some_and(|sent| is_equivalent(job, sent))
        };
        let changes: Vec<JobStatus> = all.iter().filter(has_changed).cloned().collect();
        // A status that was not returned must not replace the one that was.
        let mut before = std::mem::take(last_sent);
        let latest = all.into_iter().map(|job| match before.remove(&job.id) {
            Some(sent) if is_equivalent(&job, &sent) => sent,
            _ => job,
        });
        *last_sent = latest.map(|job| (job.id, job)).collect();
        (!changes.is_empty()).then_some(changes)
    }
}

/// Returns whether `job` shows nothing that `sent` does not: bytes count by the percent. The error
/// of a job is set once, together with its state.
fn is_equivalent(job: &JobStatus, sent: &JobStatus) -> bool {
    let comparable = |job: &JobStatus| JobStatus {
        read_bytes: 0,
        ..job.clone().map_failure(drop)
    };
    comparable(job) == comparable(sent) && job.percent() == sent.percent()
}

#[cfg(test)]
mod tests {
    use resnap_core::testing::{
        Behaviour, Effect, Fault, Operation, Simulated, SimulatedImage, SimulatedLayer,
    };

    use super::*;
    use crate::{Engine, EngineSettings, Job, JobState, Request, UnpackError};

    /// Returns an engine whose second layer never gets written.
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
        let mut request = Request::new("web").on("erofs");
        origin.clone_into(&mut request.origin);
        engine.unpack(request)
    }

    /// Jobs as they can be compared.
    fn shown(jobs: impl Into<Vec<JobStatus>>) -> Vec<JobStatus<String>> {
        let jobs = jobs.into().into_iter();
        jobs.map(|job| job.map_failure(|error| error.to_string()))
            .collect()
    }

    /// Waits for a status for which `is_so` holds.
    async fn until(
        watch: &mut BoxStream<'static, Vec<JobStatus>>,
        is_so: impl Fn(&JobStatus) -> bool,
    ) -> JobStatus {
        loop {
            let changes = watch.next().await.unwrap();
            if let Some(job) = changes.into_iter().find(&is_so) {
                return job;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_seen_from_its_begin_to_its_end() {
        let engine = stuck();
        let mut watch = engine.watch_jobs();
        assert_eq!(shown(watch.next().await.unwrap()), []);
        let first = ask(&engine, "cri");
        let half = until(&mut watch, |job| job.ready_layers == 1).await;
        assert_eq!((half.id, &*half.origin, half.layers), (1, "cri", 2));
        assert_eq!((half.state, half.waiters), (JobState::Running, 1));
        let half = shown([half]);
        assert_eq!(shown(engine.jobs()), half);
        // A later watcher gets the current state at once.
        assert_eq!(shown(engine.watch_jobs().next().await.unwrap()), half);

        let second = ask(&engine, "api");
        let started = second.started().await.unwrap();
        assert_eq!((started.id, started.joined), (1, true));
        assert!(!first.started().await.unwrap().joined);
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
        assert_eq!(shown(engine.jobs()), []);
        let gone = engine.cancel(1, false).await;
        assert!(matches!(gone, Err(UnpackError::NoSuchJob { id: 1 })));

        // The next one, of which only the end is seen.
        let report = ask(&engine, "api").report().await.unwrap();
        assert_eq!(report.layers.len(), 2);
        let changes = watch.next().await.unwrap();
        let (id, state) = (changes[0].id, changes[0].state);
        assert_eq!((id, state, changes.len()), (2, JobState::Done, 1));
        assert_eq!(changes[0].percent(), 100);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_goes_before_its_job_begins_leaves_no_waiter() {
        let engine = stuck();
        drop(ask(&engine, "api"));
        let mut watch = engine.watch_jobs();
        let job = until(&mut watch, |job| job.ready_layers == 1).await;
        assert_eq!((job.waiters, job.state), (0, JobState::Running));
    }
}
