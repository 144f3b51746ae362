// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Running a job from its lease to its end.

use std::sync::Arc;

use tokio::task::JoinError;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::Instrument as _;

use crate::backend::Backend;
use crate::chain::Chain;
use crate::chain_lock::ChainLocks;
use crate::lease::{CleanupError, JobLease, LeaseKeeper};
use crate::observe::EngineEvent;
use crate::orphans::retry_cleanup;
use crate::registry::JobRegistry;
use crate::running::RunningJob;
use crate::unpack::unpack;
use crate::{LayerReport, Phase, Report, UnpackError};

/// Runs the jobs of an engine.
#[derive(Debug)]
pub(crate) struct Runner {
    backend: Arc<Backend>,
    keeper: Arc<LeaseKeeper>,
    locks: Arc<ChainLocks>,
    registry: Arc<JobRegistry>,
}

impl Runner {
    pub(crate) fn new(
        backend: Arc<Backend>,
        keeper: Arc<LeaseKeeper>,
        registry: Arc<JobRegistry>,
    ) -> Self {
        let locks = ChainLocks::new(keeper.locks.clone(), Arc::clone(&backend));
        Self {
            backend,
            keeper,
            locks: Arc::new(locks),
            registry,
        }
    }

    /// Runs a job to completion, renewing its lease meanwhile, and cleans up.
    pub(crate) async fn run_job(self: Arc<Self>, job: Arc<RunningJob>) {
        let (plan, title, snapshotter) = (&job.spec.plan, &job.spec.title, &job.spec.snapshotter);
        let (keeper, target) = (Arc::clone(&self.keeper), &plan.image.target.digest);
        let lease = JobLease::new(keeper, target, plan.top(), title, snapshotter);
        let lease = Arc::new(lease);
        (0..plan.layers.len()).for_each(|index| job.emit(index, Phase::Planned));
        let status = job.status();
        tracing::info!(layers = status.layers, bytes = status.bytes, "unpack begun");
        let result = self.unpack(&job, &lease).await;
        let result = result.unwrap_or_else(|error| {
            Err(UnpackError::Broken {
                image: title.clone(),
                reason: error.to_string(),
            })
        });
        let cleaned = lease.end(result.is_err()).await;
        let is_clean = cleaned.is_ok();
        let result = with_cleanup(result, cleaned);
        let made = plan.top().filter(|_| result.is_ok());
        let result = match result {
            Ok(layers) => Ok(report(&job, layers)),
            Err(error) => Err(self.backend.explain(snapshotter, error).await),
        };
        if !is_clean {
            self.registry.notify_observer(&EngineEvent::CleanupFailed);
        }
        self.registry.finish_job(&job, result);
        if !is_clean {
            let made = made.map(|top| (snapshotter.as_str(), top));
            retry_cleanup(&self.keeper, made).await;
        }
    }

    /// Unpacks the image in a task of its own, so that a panic ends only that task.
    async fn unpack(
        &self,
        job: &Arc<RunningJob>,
        lease: &Arc<JobLease>,
    ) -> Result<Result<Vec<LayerReport>, UnpackError>, JoinError> {
        let (backend, locks) = (Arc::clone(&self.backend), Arc::clone(&self.locks));
        let chain = Chain::new(backend, locks, Arc::clone(job), Arc::clone(lease));
        let keeper = Arc::clone(&self.keeper);
        let work = async move { unpack(&chain, &keeper).await };
        let mut work = tokio::spawn(work.in_current_span());
        let mut renewals = self.renewals();
        loop {
            tokio::select! {
                ended = &mut work => return ended,
                _ = renewals.tick() => {
                    if let Err(error) = lease.renew().await {
                        let error: &dyn std::error::Error = &error;
                        tracing::warn!(error, "the lease of the job was not renewed this time");
                    }
                }
            }
        }
    }

    /// Returns the times at which a lease is renewed: at a third of its lifetime, which leaves time
    /// for another try before half of it has passed.
    fn renewals(&self) -> Interval {
        let pause = self.keeper.lifetime / 3;
        let mut renewals = interval_at(Instant::now() + pause, pause);
        renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
        renewals
    }
}

/// Adds a snapshot that could not be removed to the error of the job.
fn with_cleanup<T>(
    result: Result<T, UnpackError>,
    cleaned: Result<(), CleanupError>,
) -> Result<T, UnpackError> {
    match (result, cleaned) {
        (result, Ok(())) => result,
        (Err(cause), Err(CleanupError::Snapshot(left, cleanup))) => Err(UnpackError::Unclean {
            cause: Box::new(cause),
            left,
            cleanup,
        }),
        (result, Err(error)) => {
            let error = error.into_source();
            let error: &dyn std::error::Error = &error;
            tracing::warn!(error, "the job has ended, but its lease has not");
            result
        }
    }
}

fn report(job: &RunningJob, layers: Vec<LayerReport>) -> Report {
    let plan = &job.spec.plan;
    Report {
        image: plan.image.name.clone(),
        reference: plan.image.reference.clone(),
        snapshotter: job.spec.snapshotter.clone(),
        platform: plan.platform.to_string(),
        manifest: plan.manifest.digest.clone(),
        config: plan.config.digest.clone(),
        chain_id: plan.top().cloned(),
        layers,
        seconds: job.seconds(),
    }
}
