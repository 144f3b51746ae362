// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The connection of a client to containerd.

use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt as _};
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;
use prost::Message;
use resnap_core::Kind;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, mpsc};

use crate::grpc::{Status, decode, encode};
use crate::limits::{MAX_MESSAGE, client_builder};
use crate::outage::Outage;

/// The future that moves the bytes of a connection: no call makes progress unless it is polled. It ends if
/// containerd ends the connection; to close the connection, drop it.
pub(crate) type ConnectionDriver = BoxFuture<'static, Result<(), h2::Error>>;

/// The containerd that all clients are connected to.
#[derive(Debug)]
pub(crate) struct Endpoint {
    path: PathBuf,
    connections: std::sync::Mutex<Connections>,
    outage: Outage,
}

/// The connections of all clients.
#[derive(Debug, Default)]
struct Connections {
    open: usize,
    /// Changes whenever containerd may have been restarted, with another configuration. While a connection
    /// is open, it has not been.
    generation: u64,
}

/// An open connection, until it is dropped.
struct OpenConnection(Arc<Endpoint>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.connections().open -= 1;
    }
}

impl Endpoint {
    pub(crate) fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            connections: std::sync::Mutex::default(),
            outage: Outage::default(),
        }
    }

    /// Returns the generation: what was asked in an older one may have changed.
    pub(crate) fn generation(&self) -> u64 {
        self.connections().generation
    }

    fn lost_connection(&self) {
        self.connections().generation += 1;
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        let connections = self.connections.lock();
        connections.unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(self: &Arc<Self>) -> Result<(SendRequest<Bytes>, ConnectionDriver), Status> {
        let path = self.path.display();
        let connected = connect(&self.path).await;
        let (sender, driver) = connected.map_err(|error| {
            let text = format!("containerd at {path} does not answer: {error}");
            if let Some(duration) = self.outage.record_failure() {
                tracing::warn!("{text}; unavailable for {} s", duration.as_secs());
            }
            Status::new(Kind::Unavailable, text)
        })?;
        if let Some(duration) = self.outage.record_success() {
            let seconds = duration.as_secs();
            tracing::warn!("containerd at {path} answers again, after {seconds} s");
        }
        let mut connections = self.connections();
        if connections.open == 0 {
            connections.generation += 1;
        }
        connections.open += 1;
        let open = OpenConnection(Arc::clone(self));
        let driver = async move {
            let ended = driver.await;
            open.0.lost_connection();
            ended
        };
        Ok((sender, Box::pin(driver)))
    }
}

/// A connection of one client, made on first use and again after it broke.
pub(crate) struct Backend {
    endpoint: Arc<Endpoint>,
    sender: Mutex<Option<SendRequest<Bytes>>>,
    /// Leads to the task that serves the client, so that a call stays in one thread.
    drivers: mpsc::UnboundedSender<ConnectionDriver>,
}

impl Backend {
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        drivers: mpsc::UnboundedSender<ConnectionDriver>,
    ) -> Self {
        Self {
            endpoint,
            sender: Mutex::default(),
            drivers,
        }
    }

    /// Creates a connection that needs no client: a task drives it.
    pub(crate) fn detached(endpoint: &Arc<Endpoint>) -> Self {
        let (send, mut drivers) = mpsc::unbounded_channel::<ConnectionDriver>();
        tokio::spawn(async move {
            let mut backends = FuturesUnordered::new();
            loop {
                tokio::select! {
                    driver = drivers.recv() => match driver {
                        Some(driver) => backends.push(driver),
                        None => return,
                    },
                    Some(ended) = backends.next() => log_end(ended),
                }
            }
        });
        Self::new(Arc::clone(endpoint), send)
    }

    /// Sends the head of a request, unchanged.
    pub(crate) async fn send_request(
        &self,
        request: Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), Status> {
        let sent = self.sender().await?.send_request(request, end);
        sent.map_err(|error| self.connection_error(&error))
    }

    /// Returns the error for a call whose connection broke.
    pub(crate) fn connection_error(&self, error: &h2::Error) -> Status {
        let path = self.endpoint.path.display();
        let text = format!("containerd at {path} closed the connection: {error}");
        Status::new(Kind::Unavailable, text)
    }

    /// Makes a call of the proxy's own.
    pub(crate) async fn unary<A: Message + Default>(
        &self,
        path: &str,
        message: &impl Message,
    ) -> Result<A, Status> {
        let invalid = |error: &dyn std::fmt::Display| {
            let text = format!("invalid response of containerd to {path}: {error}");
            Status::new(Kind::Unavailable, text)
        };
        let request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(());
        let request = request.map_err(|error| invalid(&error))?;
        let (response, mut to) = self.send_request(request, false).await?;
        let sent = to.send_data(encode(message)?, true);
        sent.map_err(|error| self.connection_error(&error))?;
        let response = response.await;
        let response = response.map_err(|error| self.connection_error(&error))?;
        if let Some(status) = Status::in_headers(response.headers()) {
            return Err(status);
        }
        let mut from = response.into_body();
        let body = collect(&mut from)
            .await
            .map_err(|error| self.connection_error(&error))?
            .ok_or_else(|| invalid(&"it is too long"))?;
        let trailers = from.trailers().await;
        let trailers = trailers.map_err(|error| self.connection_error(&error))?;
        if let Some(status) = trailers.as_ref().and_then(Status::in_headers) {
            return Err(status);
        }
        decode(&body).ok_or_else(|| invalid(&"it is not a message of the expected type"))
    }

    /// Ensures that there is a connection, and returns its generation ([`Endpoint::generation`]).
    pub(crate) async fn generation(&self) -> Result<u64, Status> {
        self.sender().await?;
        Ok(self.endpoint.generation())
    }

    async fn sender(&self) -> Result<SendRequest<Bytes>, Status> {
        let mut current = self.sender.lock().await;
        if let Some(sender) = current.as_ref()
            && let Ok(sender) = sender.clone().ready().await
        {
            return Ok(sender);
        }
        if current.take().is_some() {
            self.endpoint.lost_connection();
        }
        let (sender, driver) = self.endpoint.connect().await?;
        // Sending fails only if the client has gone.
        let _ = self.drivers.send(driver);
        Ok(current.insert(sender).clone())
    }
}

/// Logs the end of a connection that containerd ended.
pub(crate) fn log_end(ended: Result<(), h2::Error>) {
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to containerd ended");
    }
}

async fn connect(
    path: &Path,
) -> Result<(SendRequest<Bytes>, Connection<UnixStream, Bytes>), String> {
    let stream = UnixStream::connect(path).await;
    let stream = stream.map_err(|error| error.to_string())?;
    let connected = client_builder().handshake(stream).await;
    connected.map_err(|error| error.to_string())
}

/// Reads all data of a response. Returns `None` if it is larger than [`MAX_MESSAGE`].
async fn collect(from: &mut RecvStream) -> Result<Option<Bytes>, h2::Error> {
    let mut all = Vec::new();
    while let Some(bytes) = from.data().await {
        let bytes = bytes?;
        from.flow_control().release_capacity(bytes.len())?;
        all.extend_from_slice(&bytes);
        if all.len() > MAX_MESSAGE {
            return Ok(None);
        }
    }
    Ok(Some(all.into()))
}
