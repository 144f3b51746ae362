// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The client.

use std::io;
use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use resnap_unpacker::{Check, Event, JobRef, Report, Request};
use tokio::net::UnixStream;
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use crate::status::failure;
use crate::v1::resnap_service_client::ResnapServiceClient;
use crate::v1::unpack_response;
use crate::{Failure, Info, JobStatus, Malformed, v1};

/// The limit on the bytes of an answer. A check of the largest image on all snapshotters is a few
/// MiB.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The limit on the bytes of an error.
const MAX_HEADER_BYTES: u32 = 1 << 20;

/// A connection to a daemon, cheap to clone.
#[derive(Debug, Clone)]
pub struct DaemonClient(ResnapServiceClient<Channel>);

impl DaemonClient {
    /// Connects to the daemon whose API is at `socket`.
    ///
    /// # Errors
    /// Errors of the operating system: most likely that the file does not exist, that no process
    /// listens, or that permission is denied.
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        // The channel connects lazily, and would report this at the first call as a "transport
        // error".
        UnixStream::connect(socket).await?;
        let path = PathBuf::from(socket);
        // The URI only sets HTTP/2's `:authority`.
        let channel = Endpoint::from_static("http://localhost")
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }));
        let client = ResnapServiceClient::new(channel);
        Ok(Self(client.max_decoding_message_size(MAX_ANSWER_BYTES)))
    }

    /// Returns the identity of the daemon.
    ///
    /// # Errors
    /// [`Failure`], also if the connection is lost, as for all other calls.
    pub async fn info(&self) -> Result<Info, Failure> {
        let answer = self.0.clone().get_info(v1::GetInfoRequest {}).await;
        let info = answer.map_err(|status| failure(&status))?.into_inner();
        Ok(Info {
            version: info.version,
            containerd_address: info.containerd_address,
            containerd_namespace: info.containerd_namespace,
        })
    }

    /// Unpacks an image, as [`Engine::unpack`](resnap_unpacker::Engine::unpack) does. The origin
    /// and the wrappers of the request are not sent. Dropping the stream stops nothing.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn unpack(&self, request: &Request) -> Result<UnpackStream, Failure> {
        let request = v1::UnpackRequest {
            image: request.image.clone(),
            snapshotter: request.snapshotter.clone().unwrap_or_default(),
            platform: platform(request),
            repair: request.repair,
            user_reference: request.user_reference.clone().unwrap_or_default(),
        };
        let answer = self.0.clone().unpack(request).await;
        let answers = answer.map_err(|status| failure(&status))?.into_inner();
        Ok(UnpackStream(answers))
    }

    /// Checks how ready an image is on the snapshotter of `request`, or on all working snapshotters
    /// if it names none.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn check(&self, request: &Request) -> Result<Check, Failure> {
        let request = v1::CheckRequest {
            image: request.image.clone(),
            platform: platform(request),
            snapshotter: request.snapshotter.clone().unwrap_or_default(),
        };
        let answer = self.0.clone().check(request).await;
        let check = answer.map_err(|status| failure(&status))?.into_inner();
        Ok(check.try_into()?)
    }

    /// Returns the running jobs, the oldest first.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn jobs(&self) -> Result<Vec<JobStatus>, Failure> {
        let answer = self.0.clone().list_jobs(v1::ListJobsRequest {}).await;
        jobs(answer.map_err(|status| failure(&status))?.into_inner().jobs)
    }

    /// Subscribes to jobs as they start, change and end.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn watch_jobs(&self) -> Result<JobStream, Failure> {
        let answer = self.0.clone().watch_jobs(v1::WatchJobsRequest {}).await;
        Ok(JobStream(
            answer.map_err(|status| failure(&status))?.into_inner(),
        ))
    }

    /// Cancels a job, as [`Engine::cancel`](resnap_unpacker::Engine::cancel) does.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn cancel(&self, id: u64, unless_shared: bool) -> Result<JobStatus, Failure> {
        let request = v1::CancelJobRequest { id, unless_shared };
        let answer = self.0.clone().cancel_job(request).await;
        let job = answer.map_err(|status| failure(&status))?.into_inner().job;
        Ok(job.ok_or(Malformed("job"))?.try_into()?)
    }
}

fn platform(request: &Request) -> String {
    let platform = request.platform.as_ref();
    platform.map(ToString::to_string).unwrap_or_default()
}

fn jobs(jobs: Vec<v1::Job>) -> Result<Vec<JobStatus>, Failure> {
    let jobs = jobs.into_iter().map(JobStatus::try_from);
    Ok(jobs.collect::<Result<_, _>>()?)
}

/// A message of an unpack.
#[derive(Debug, Clone, PartialEq)]
pub enum UnpackStep {
    /// The job. Comes first.
    Started(JobRef),
    /// An event of a layer.
    Event(Event),
    /// The image is ready. Comes last.
    Report(Report),
}

/// The messages of an unpack by a daemon.
#[derive(Debug)]
pub struct UnpackStream(Streaming<v1::UnpackResponse>);

impl UnpackStream {
    /// Waits for the next message. Cancel-safe.
    ///
    /// # Errors
    /// [`Failure`]: the reason why the image is not ready, or why the connection was lost.
    pub async fn next(&mut self) -> Result<UnpackStep, Failure> {
        let answer = self.0.message().await.map_err(|status| failure(&status))?;
        let step = answer.and_then(|answer| answer.step);
        Ok(match step.ok_or(Malformed("step or end"))? {
            unpack_response::Step::Started(job) => UnpackStep::Started(job.into()),
            unpack_response::Step::Event(event) => UnpackStep::Event(event.try_into()?),
            unpack_response::Step::Report(report) => UnpackStep::Report(report.try_into()?),
        })
    }
}

/// The jobs of a daemon as they change.
#[derive(Debug)]
pub struct JobStream(Streaming<v1::WatchJobsResponse>);

impl JobStream {
    /// Returns the running jobs, which may be none, on the first call, and then the jobs that
    /// changed. Cancel-safe.
    ///
    /// # Errors
    /// [`Failure`], also when the daemon stops.
    pub async fn next(&mut self) -> Result<Vec<JobStatus>, Failure> {
        let answer = self.0.message().await.map_err(|status| failure(&status))?;
        jobs(answer.ok_or(Malformed("end that is told"))?.jobs)
    }
}
