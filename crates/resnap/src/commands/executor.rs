// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The place where the work of `unpack` and `check` is done: the daemon, or this process.

use anyhow::Result;
use resnap_api::{DaemonClient, Failure, UnpackStep};
use resnap_core::Kind;
use resnap_unpacker::{Check, Engine, Event, JobRef, Report, Request};
use tokio_util::sync::CancellationToken;

use super::daemon_client;
use crate::config::Config;
use crate::doctor::config_warning;
use crate::warm::follow;

/// The place where the work is done.
#[derive(Clone)]
pub(crate) enum Executor {
    /// The daemon that serves this containerd and namespace.
    Daemon(DaemonClient),
    /// An engine in this process.
    Local(Engine),
}

impl Executor {
    /// Returns the daemon if there is one, and the engine that `local` connects otherwise.
    pub(crate) async fn find(
        config: &Config,
        local: impl Future<Output = Result<Engine>>,
    ) -> Result<Self> {
        match daemon_client::connect(config).await {
            Ok(client) => {
                if let Some(warning) = config_warning(config).await {
                    tracing::warn!("{warning}");
                }
                Ok(Self::Daemon(client))
            }
            Err(reason) => {
                tracing::debug!(%reason, "no daemon, working in this process");
                Ok(Self::Local(local.await?))
            }
        }
    }

    /// Checks one image.
    pub(crate) async fn check(&self, request: &Request) -> Result<Check> {
        Ok(match self {
            Self::Daemon(client) => client.check(request).await?,
            Self::Local(engine) => engine.check_image(request).await?,
        })
    }

    /// Unpacks one image, and passes each event of the job to `on_event`. Once `stop` is cancelled, the job
    /// is cancelled; a job of the daemon only if it has no other waiters.
    pub(crate) async fn unpack(
        &self,
        request: Request,
        stop: CancellationToken,
        on_event: impl Fn(Event),
    ) -> Result<Report, Failure> {
        match self {
            Self::Daemon(client) => unpack_in_daemon(client, &request, stop, on_event).await,
            Self::Local(engine) => unpack_locally(engine, request, stop, on_event).await,
        }
    }
}

async fn unpack_locally(
    engine: &Engine,
    request: Request,
    stop: CancellationToken,
    on_event: impl Fn(Event),
) -> Result<Report, Failure> {
    let report = follow(engine.unpack(request), &stop, on_event).await;
    report.map_err(|error| Failure::new(&error, engine.namespace()))
}

async fn unpack_in_daemon(
    client: &DaemonClient,
    request: &Request,
    stop: CancellationToken,
    on_event: impl Fn(Event),
) -> Result<Report, Failure> {
    let mut steps = client.unpack(request).await?;
    let mut started = None;
    let mut cancelled = false;
    loop {
        tokio::select! {
            step = steps.next() => match step? {
                UnpackStep::Started(job) => started = Some(job),
                UnpackStep::Event(event) => on_event(event),
                UnpackStep::Report(report) => return Ok(report),
            },
            () = stop.cancelled(), if started.is_some() && !cancelled => {
                cancelled = true;
                if let Some(job) = started {
                    leave(client, job, request).await?;
                }
            }
        }
    }
}

/// Cancels a job that this process started, unless it has other waiters. A job that goes on without this
/// waiter is an error here.
async fn leave(client: &DaemonClient, job: JobRef, request: &Request) -> Result<(), Failure> {
    let id = job.id;
    if !job.joined {
        match client.cancel(id, true).await {
            // The job's stream still delivers how it ended.
            Ok(_) => return Ok(()),
            Err(failure) if failure.kind == Kind::NotFound => return Ok(()),
            Err(failure) if failure.kind == Kind::FailedPrecondition => {}
            Err(failure) => return Err(failure),
        }
    }
    let image = &request.image;
    let snapshotter = request.snapshotter.iter();
    let target: String = snapshotter.map(|name| format!(" for {name}")).collect();
    Err(Failure {
        kind: Kind::Cancelled,
        reason: Failure::CANCELLED.to_owned(),
        message: format!("unpacking image {image}{target} goes on, for others"),
        next_step: Some(format!("`resnap cancel {id}` ends it for all")),
    })
}
