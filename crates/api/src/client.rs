// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The caller's side.

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

/// The largest answer that is read. A check of the largest image on all snapshotters is a few MiB.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// The largest error that is read.
const MAX_HEADER_BYTES: u32 = 1 << 20;

/// A connection to a daemon, cheap to clone.
#[derive(Debug, Clone)]
pub struct DaemonClient(ResnapServiceClient<Channel>);

impl DaemonClient {
    /// Connects to the daemon whose API is at `socket`.
    ///
    /// # Errors
    /// What the operating system says: most likely that there is no such file, that nobody listens
    /// there any more, or that we may not.
    pub async fn connect(socket: &Path) -> io::Result<Self> {
        // The channel connects lazily and would tell of this at the first call, as a "transport
        // error".
        UnixStream::connect(socket).await?;
        let path = PathBuf::from(socket);
        // The URI only fills HTTP/2's :authority.
        let channel = Endpoint::from_static("http://localhost")
            .http2_max_header_list_size(MAX_HEADER_BYTES)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            }));
        let client = ResnapServiceClient::new(channel);
        Ok(Self(client.max_decoding_message_size(MAX_ANSWER_BYTES)))
    }

    /// What the daemon says of itself.
    ///
    /// # Errors
    /// [`Failure`], also if the connection breaks off, as for all other calls.
    pub async fn info(&self) -> Result<Info, Failure> {
        let answer = self.0.clone().get_info(v1::GetInfoRequest {}).await;
        let info = answer.map_err(|status| failure(&status))?.into_inner();
        Ok(Info {
            version: info.version,
            containerd_address: info.containerd_address,
            containerd_namespace: info.containerd_namespace,
        })
    }

    /// As [`Engine::unpack`](resnap_unpacker::Engine::unpack). What else is to be done to
    /// descriptors ([`Request::wrappers`]) and the origin do not go along. Dropping what is answered
    /// stops nothing.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn unpack(&self, request: &Request) -> Result<UnpackStream, Failure> {
        let request = v1::UnpackRequest {
            image: request.image.clone(),
            snapshotter: request.snapshotter.clone(),
            platform: platform(request),
            repair: request.repair,
            user_reference: request.user_reference.clone().unwrap_or_default(),
        };
        let answer = self.0.clone().unpack(request).await;
        let answers = answer.map_err(|status| failure(&status))?.into_inner();
        Ok(UnpackStream(answers))
    }

    /// What there is of each layer of `request`'s image, on its snapshotter, or on all that work if
    /// that is empty.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn check(&self, request: &Request) -> Result<Check, Failure> {
        let request = v1::CheckRequest {
            image: request.image.clone(),
            platform: platform(request),
            snapshotter: request.snapshotter.clone(),
        };
        let answer = self.0.clone().check(request).await;
        let check = answer.map_err(|status| failure(&status))?.into_inner();
        Ok(check.try_into()?)
    }

    /// The jobs that run, the oldest first.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn jobs(&self) -> Result<Vec<JobStatus>, Failure> {
        let answer = self.0.clone().list_jobs(v1::ListJobsRequest {}).await;
        jobs(answer.map_err(|status| failure(&status))?.into_inner().jobs)
    }

    /// Sees jobs come, change and go.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn watch_jobs(&self) -> Result<JobStream, Failure> {
        let answer = self.0.clone().watch_jobs(v1::WatchJobsRequest {}).await;
        Ok(JobStream(
            answer.map_err(|status| failure(&status))?.into_inner(),
        ))
    }

    /// As [`Engine::cancel`](resnap_unpacker::Engine::cancel).
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

/// What an unpack tells.
#[derive(Debug, Clone, PartialEq)]
pub enum UnpackStep {
    /// Which job does it. Comes first.
    Started(JobRef),
    /// Something happened to a layer.
    Event(Event),
    /// The image is ready. Comes last.
    Report(Report),
}

/// An unpack that a daemon does.
#[derive(Debug)]
pub struct UnpackStream(Streaming<v1::UnpackResponse>);

impl UnpackStream {
    /// What is told next. Cancel-safe.
    ///
    /// # Errors
    /// [`Failure`]: what kept the image from being ready, or from being told of.
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

/// The jobs of a daemon, as they change.
#[derive(Debug)]
pub struct JobStream(Streaming<v1::WatchJobsResponse>);

impl JobStream {
    /// At first the running jobs, if any; then those that changed. Cancel-safe.
    ///
    /// # Errors
    /// [`Failure`], also when the daemon stops.
    pub async fn next(&mut self) -> Result<Vec<JobStatus>, Failure> {
        let answer = self.0.message().await.map_err(|status| failure(&status))?;
        jobs(answer.ok_or(Malformed("end that is told"))?.jobs)
    }
}
