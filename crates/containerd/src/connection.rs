// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The connection.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use resnap_core::{Error, Kind, Result, Scope};
use tokio::net::UnixStream;
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::status::error;

/// containerd's own limit for a message.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// How long containerd may take to answer, unless told otherwise: longer than a snapshotter that
/// asks a registry takes to prepare a layer.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a blob that containerd sends before they are read: one of its messages, which have up to
/// 1 MiB.
const STREAM_WINDOW: u32 = 1 << 20;

/// The most that HTTP/2 allows. Streams that nobody reads for a while, as a layer's that waits for
/// memory, would use up a smaller one and stop all other answers.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// A connection to containerd, cheap to clone. The ports are implemented for it, each in a file of its own.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    call_timeout: Duration,
}

impl Connection {
    /// Connects to the socket at `address` (an absolute path; a `unix://` in front is taken off).
    ///
    /// # Errors
    /// [`Kind::Unavailable`] if nobody listens there, [`Kind::PermissionDenied`] if we may not
    /// connect, [`Kind::InvalidArgument`] for a path that cannot be a socket's.
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        if !path.is_absolute() {
            return Err(
                Error::new(Kind::InvalidArgument, "connect to containerd at", address)
                    .with_source("the address must be an absolute path"),
            );
        }
        // The channel connects lazily and would report a wrong path at the first call, as
        // "transport error".
        dial(&path).await.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
                io::ErrorKind::InvalidInput => Kind::InvalidArgument,
                _ => Kind::Unavailable,
            };
            Error::new(kind, "connect to containerd at", address).with_source(error)
        })?;
        // The URI only fills HTTP/2's :authority.
        let channel = Endpoint::from_static("http://localhost")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .connect_with_connector_lazy(tower::service_fn(move |_| {
                let path = path.clone();
                async move { dial(&path).await.map(TokioIo::new) }
            }));
        Ok(Self {
            channel,
            call_timeout: CALL_TIMEOUT,
        })
    }

    /// The same connection with another limit to each call but those whose length depends on the
    /// image: applying a layer and reading a blob. The limit of [`Client::connect`] is 60 s.
    pub(crate) fn with_call_timeout(self, call_timeout: Duration) -> Self {
        Self {
            call_timeout,
            ..self
        }
    }

    /// What containerd answers to a call, or its error.
    pub(crate) async fn call<T>(
        &self,
        operation: &'static str,
        subject: impl Into<String>,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T> {
        let subject = subject.into();
        let answered = async {
            let answer = call.await;
            answer.map_err(|status| error(operation, subject.as_str(), status))
        };
        let answer = self.in_time(operation, subject.as_str(), answered).await?;
        Ok(answer.into_inner())
    }

    /// Gives up what takes too long, as a call to a daemon that hangs does.
    pub(crate) async fn in_time<T>(
        &self,
        operation: &'static str,
        subject: impl Into<String>,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let limit = self.call_timeout;
        timeout(limit, work).await.unwrap_or_else(|_| {
            Err(Error::new(Kind::DeadlineExceeded, operation, subject)
                .with_source(format!("containerd did not answer within {limit:?}")))
        })
    }
}

async fn dial(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path).await
}

/// `message` with the namespace and lease of `scope` (containerd `pkg/namespaces/grpc.go`,
/// `core/leases/grpc.go`).
pub(crate) fn request<T>(scope: &Scope, message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    let lease = scope
        .lease
        .as_ref()
        .map(|lease| ("containerd-lease", &*lease.0));
    for (key, value) in [Some(("containerd-namespace", &*scope.namespace)), lease]
        .into_iter()
        .flatten()
    {
        let value = MetadataValue::try_from(value).map_err(|error| {
            Error::new(Kind::InvalidArgument, "send", format!("{key} {value:?}")).with_source(error)
        })?;
        request.metadata_mut().insert(key, value);
    }
    Ok(request)
}
