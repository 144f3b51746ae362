// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The connection.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use resnap_core::{Error, Kind, Result, Scope};
use tokio::net::UnixStream;
use tokio::runtime::{self, Handle};
use tokio::time::timeout;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::status::error;

/// The size limit of a message, that of containerd itself.
pub(crate) const MAX_MESSAGE_BYTES: usize = 16 << 20;

/// The default time limit of a call, longer than a snapshotter that contacts a registry takes to prepare
/// a layer.
const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// The bytes of a blob that containerd sends before they are read: one of its messages, which have up to
/// 1 MiB.
const STREAM_WINDOW: u32 = 1 << 20;

/// The maximum of HTTP/2. Streams that are not read for a while, such as that of a layer that waits for
/// memory, would use up a smaller window and block all other answers.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

/// A connection to containerd, cheap to clone. It implements the ports, each in a file of its own.
#[derive(Debug, Clone)]
pub(crate) struct Connection {
    path: PathBuf,
    /// A task of the runtime in which a channel was made moves its bytes: each runtime has its own, so that
    /// no call waits for threads to wake each other. tokio 1.54 counts IDs up and uses none again, which it does not
    /// promise.
    channels: Arc<Mutex<HashMap<runtime::Id, Channel>>>,
    call_timeout: Duration,
}

impl Connection {
    /// See [`Client::connect`](crate::Client::connect).
    ///
    /// # Errors
    /// Those of [`Client::connect`](crate::Client::connect).
    pub(crate) async fn connect(address: &str) -> Result<Self> {
        let path = PathBuf::from(address.strip_prefix("unix://").unwrap_or(address));
        if !path.is_absolute() {
            return Err(
                Error::new(Kind::InvalidArgument, "connect to containerd at", address)
                    .with_source("the address must be an absolute path"),
            );
        }
        // The channel connects lazily and would report a wrong path only at the first call, as
        // "transport error".
        dial(&path).await.map_err(|error| {
            let kind = match error.kind() {
                io::ErrorKind::PermissionDenied => Kind::PermissionDenied,
                io::ErrorKind::InvalidInput => Kind::InvalidArgument,
                _ => Kind::Unavailable,
            };
            Error::new(kind, "connect to containerd at", address).with_source(error)
        })?;
        Ok(Self {
            path,
            channels: Arc::default(),
            call_timeout: CALL_TIMEOUT,
        })
    }

    /// Returns the channel of the runtime within which this is called.
    pub(crate) fn channel(&self) -> Channel {
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = channels.entry(Handle::current().id());
        channel.or_insert_with(|| new_channel(&self.path)).clone()
    }

    /// See [`Client::with_call_timeout`](crate::Client::with_call_timeout).
    pub(crate) fn with_call_timeout(self, call_timeout: Duration) -> Self {
        Self {
            call_timeout,
            ..self
        }
    }

    /// Returns the answer to a call, within the time limit.
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

    /// Applies the time limit to `work`.
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

/// Returns a channel that connects with the first call, and again after containerd was restarted.
fn new_channel(path: &Path) -> Channel {
    let path = path.to_owned();
    // The URI is only used for :authority of HTTP/2.
    Endpoint::from_static("http://localhost")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .connect_with_connector_lazy(tower::service_fn(move |_| {
            let path = path.clone();
            async move { dial(&path).await.map(TokioIo::new) }
        }))
}

async fn dial(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path).await
}

/// Returns a request with the namespace and lease of `scope` (containerd `pkg/namespaces/grpc.go`,
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
