// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The server.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use resnap_authority::AnyAuthority;
use resnap_core::{Kind, Platform, error_chain};
use resnap_unpacker::{Engine, Event, Job, JobStatus, UnpackError};
use tokio::net::UnixListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::status::status;
use crate::v1::resnap_service_server::{ResnapService, ResnapServiceServer};
use crate::v1::unpack_response::Step;
use crate::{Failure, Info, v1};

/// The limit on the bytes of a request, which holds a few names.
const MAX_REQUEST_BYTES: usize = 64 << 10;

/// The limit on concurrent calls. An unpack takes one for each image.
const MAX_CALLS: u32 = 4096;

/// The time for the last answers to be sent. Idle connections are not waited for.
const FLUSH: Duration = Duration::from_secs(1);

/// The [`resnap_unpacker::Request::origin`] of jobs started by the API.
const ORIGIN: &str = "api";

/// Serves the API and gRPC's health service until `stop` is set. Then it accepts no more calls,
/// ends watches, lets other calls end within `grace`, and returns. Jobs belong to the engine and go
/// on. Dropping the future closes all connections.
///
/// # Errors
/// Errors of the listener, as text.
pub async fn serve(
    listener: UnixListener,
    engine: Engine,
    info: Info,
    stop: CancellationToken,
    grace: Duration,
) -> Result<(), String> {
    let (health, health_server) = tonic_health::server::health_reporter();
    health.set_serving::<ResnapServiceServer<Api>>().await;
    let calls = Arc::new(Semaphore::new(MAX_CALLS as usize));
    let api = Api {
        engine,
        info,
        stop: stop.clone(),
        calls: Arc::clone(&calls),
    };
    let api = ResnapServiceServer::new(api).max_decoding_message_size(MAX_REQUEST_BYTES);
    let serving = Server::builder()
        .max_concurrent_streams(MAX_CALLS)
        .add_service(health_server)
        .add_service(api)
        .serve_with_incoming_shutdown(
            UnixListenerStream::new(listener).map_ok(AnyAuthority::new),
            stop.clone().cancelled_owned(),
        );
    let over = async {
        stop.cancelled().await;
        if timeout(grace, calls.acquire_many(MAX_CALLS)).await.is_err() {
            tracing::warn!("calls of the API were cut off: they took longer than {grace:?}");
            return;
        }
        sleep(FLUSH).await;
    };
    tokio::select! {
        ended = serving => ended.map_err(|error| error_chain(&error)),
        () = over => Ok(()),
    }
}

struct Api {
    engine: Engine,
    info: Info,
    stop: CancellationToken,
    /// Each call that is waited for at the end holds a permit.
    calls: Arc<Semaphore>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Api {
    fn failed(&self, error: &UnpackError) -> Status {
        failed(&self.engine, error)
    }

    /// Returns a permit for a call, held until it ends.
    fn call(&self) -> Result<OwnedSemaphorePermit, Status> {
        if self.stop.is_cancelled() {
            return Err(stopping());
        }
        let call = Arc::clone(&self.calls).try_acquire_owned();
        call.map_err(|_| Status::resource_exhausted("too many calls at once"))
    }
}

fn failed(engine: &Engine, error: &UnpackError) -> Status {
    status(Failure::new(error, engine.namespace()))
}

/// Converts the status of a job of the engine.
fn message(engine: &Engine, job: JobStatus) -> v1::Job {
    let failure = |error| Failure::new(&error, engine.namespace());
    job.map_failure(failure).into()
}

/// Builds a request from its fields; an empty snapshotter or platform is none.
fn request(
    image: String,
    snapshotter: String,
    platform: &str,
) -> Result<resnap_unpacker::Request, Status> {
    let platform = (!platform.is_empty()).then(|| platform.parse::<Platform>());
    let platform = platform.transpose();
    let mut request = resnap_unpacker::Request::new(image);
    request.snapshotter = Some(snapshotter).filter(|name| !name.is_empty());
    request.platform = platform.map_err(|error| Status::invalid_argument(error_chain(&error)))?;
    ORIGIN.clone_into(&mut request.origin);
    Ok(request)
}

#[tonic::async_trait]
impl ResnapService for Api {
    async fn get_info(
        &self,
        _: Request<v1::GetInfoRequest>,
    ) -> Result<Response<v1::GetInfoResponse>, Status> {
        let info = self.info.clone();
        Ok(Response::new(v1::GetInfoResponse {
            version: info.version,
            containerd_address: info.containerd_address,
            containerd_namespace: info.containerd_namespace,
        }))
    }

    type UnpackStream = Answers<v1::UnpackResponse>;

    async fn unpack(
        &self,
        asked: Request<v1::UnpackRequest>,
    ) -> Result<Response<Self::UnpackStream>, Status> {
        let call = self.call()?;
        let asked = asked.into_inner();
        let mut request = request(asked.image, asked.snapshotter, &asked.platform)?;
        request.repair = asked.repair;
        request.user_reference = Some(asked.user_reference).filter(|text| !text.is_empty());
        let job = self.engine.unpack(request);
        let engine = self.engine.clone();
        let steps = stream::unfold((Pending::Start(job), call), move |(pending, call)| {
            let engine = engine.clone();
            async move {
                let (step, next) = pending.next().await?;
                let answer = step.map_err(|error| failed(&engine, &error));
                let answer = answer.map(|step| v1::UnpackResponse { step: Some(step) });
                Some((answer, (next, call)))
            }
        });
        Ok(Response::new(Box::pin(steps)))
    }

    async fn check(
        &self,
        asked: Request<v1::CheckRequest>,
    ) -> Result<Response<v1::CheckResponse>, Status> {
        let _call = self.call()?;
        let asked = asked.into_inner();
        let request = request(asked.image, asked.snapshotter, &asked.platform)?;
        let check = self.engine.check_image(&request).await;
        let check = check.map_err(|error| self.failed(&error))?;
        Ok(Response::new(check.into()))
    }

    async fn list_jobs(
        &self,
        _: Request<v1::ListJobsRequest>,
    ) -> Result<Response<v1::ListJobsResponse>, Status> {
        let jobs = self.engine.jobs().into_iter();
        let jobs = jobs.map(|job| message(&self.engine, job)).collect();
        Ok(Response::new(v1::ListJobsResponse { jobs }))
    }

    type WatchJobsStream = Answers<v1::WatchJobsResponse>;

    async fn watch_jobs(
        &self,
        _: Request<v1::WatchJobsRequest>,
    ) -> Result<Response<Self::WatchJobsStream>, Status> {
        let (engine, stop) = (self.engine.clone(), self.stop.clone());
        let first = Some((engine.watch_jobs(), engine, stop));
        let changes = stream::unfold(first, |watch| async move {
            let (mut watch, engine, stop): (BoxStream<'_, _>, _, _) = watch?;
            let changes = tokio::select! {
                jobs = watch.next() => jobs?,
                () = stop.cancelled() => return Some((Err(stopping()), None)),
            };
            let jobs = changes.into_iter();
            let jobs = jobs.map(|job| message(&engine, job)).collect();
            let next = Some((watch, engine, stop));
            Some((Ok(v1::WatchJobsResponse { jobs }), next))
        });
        Ok(Response::new(Box::pin(changes)))
    }

    async fn cancel_job(
        &self,
        asked: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let _call = self.call()?;
        let v1::CancelJobRequest { id, unless_shared } = asked.into_inner();
        let cancelled = self.engine.cancel(id, unless_shared).await;
        let job = cancelled.map_err(|error| self.failed(&error))?;
        Ok(Response::new(v1::CancelJobResponse {
            job: Some(message(&self.engine, job)),
        }))
    }
}

/// The part of an Unpack call that has not been sent yet.
enum Pending {
    Start(Job),
    Events(Job, BoxStream<'static, Event>),
    Nothing,
}

impl Pending {
    async fn next(self) -> Option<(Result<Step, UnpackError>, Self)> {
        let (step, next) = match self {
            Self::Start(job) => match job.started().await {
                Ok(started) => {
                    let events = job.events();
                    (Ok(Step::Started(started.into())), Self::Events(job, events))
                }
                Err(error) => (Err(error), Self::Nothing),
            },
            Self::Events(job, mut events) => match events.next().await {
                Some(event) => (Ok(Step::Event(event.into())), Self::Events(job, events)),
                None => {
                    let report = job.report().await;
                    (
                        report.map(|report| Step::Report(report.into())),
                        Self::Nothing,
                    )
                }
            },
            Self::Nothing => return None,
        };
        Some((step, next))
    }
}

fn stopping() -> Status {
    status(Failure {
        kind: Kind::Unavailable,
        reason: "STOPPING".to_owned(),
        message: "the daemon stops".to_owned(),
        next_step: Some("ask again when it is back".to_owned()),
    })
}
