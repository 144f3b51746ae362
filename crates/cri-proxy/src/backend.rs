// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A client's connection to containerd.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::Request;
use prost::Message;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, mpsc};

use crate::grpc::{Status, UNAVAILABLE, decode, encode};
use crate::pass::{
    CONNECTION_WINDOW, MAX_HEADERS, MAX_MESSAGE, ProxyState, SEND_BUFFER, STREAM_WINDOW,
};

/// Has to be driven for calls to get on. Boxed, as a channel makes room for 32 at once.
pub(crate) type ConnectionDriver = Pin<Box<Connection<UnixStream, Bytes>>>;

/// One client's connection to containerd, made when it is needed and again when it broke.
pub(crate) struct Backend {
    proxy: Arc<ProxyState>,
    sender: Mutex<Option<SendRequest<Bytes>>>,
    /// To the task that serves the client: on its way a call then changes no thread.
    drivers: mpsc::UnboundedSender<ConnectionDriver>,
}

impl Backend {
    pub(crate) fn new(
        proxy: Arc<ProxyState>,
        drivers: mpsc::UnboundedSender<ConnectionDriver>,
    ) -> Self {
        Self {
            proxy,
            sender: Mutex::default(),
            drivers,
        }
    }

    /// One that no client has to be there for.
    pub(crate) fn detached(proxy: &Arc<ProxyState>) -> Self {
        let (send, mut drivers) = mpsc::unbounded_channel::<ConnectionDriver>();
        tokio::spawn(async move {
            while let Some(driver) = drivers.recv().await {
                tokio::spawn(async move {
                    if let Err(error) = driver.await {
                        tracing::debug!(%error, "a connection to containerd ended");
                    }
                });
            }
        });
        Self::new(Arc::clone(proxy), send)
    }

    /// Begins a request as it is.
    pub(crate) async fn begin(
        &self,
        request: Request<()>,
        end: bool,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), Status> {
        let sent = self.sender().await?.send_request(request, end);
        sent.map_err(|error| self.broke_off(&error))
    }

    pub(crate) fn broke_off(&self, error: &h2::Error) -> Status {
        let path = self.proxy.backend.display();
        Status::new(
            UNAVAILABLE,
            format!("containerd at {path} broke off: {error}"),
        )
    }

    /// A call of the proxy's own.
    pub(crate) async fn unary<A: Message + Default>(
        &self,
        path: &str,
        message: &impl Message,
    ) -> Result<A, Status> {
        let unreadable = |error: &dyn std::fmt::Display| {
            Status::new(
                UNAVAILABLE,
                format!("containerd's answer to {path}: {error}"),
            )
        };
        let request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(());
        let request = request.map_err(|error| unreadable(&error))?;
        let (reply, mut to) = self.begin(request, false).await?;
        let sent = to.send_data(encode(message)?, true);
        sent.map_err(|error| self.broke_off(&error))?;
        let reply = reply.await.map_err(|error| self.broke_off(&error))?;
        if let Some(status) = Status::in_headers(reply.headers()) {
            return Err(status);
        }
        let mut from = reply.into_body();
        let body = collect(&mut from)
            .await
            .map_err(|error| self.broke_off(&error))?
            .ok_or_else(|| unreadable(&"it is too long"))?;
        let trailers = from.trailers().await;
        let trailers = trailers.map_err(|error| self.broke_off(&error))?;
        if let Some(status) = trailers.as_ref().and_then(Status::in_headers) {
            return Err(status);
        }
        decode(&body).ok_or_else(|| unreadable(&"it is no message of this kind"))
    }

    /// Makes sure that there is a connection; one that is made may be to another containerd than
    /// the last.
    pub(crate) async fn connect(&self) -> Result<(), Status> {
        self.sender().await.map(drop)
    }

    async fn sender(&self) -> Result<SendRequest<Bytes>, Status> {
        let mut kept = self.sender.lock().await;
        if let Some(sender) = kept.as_ref()
            && let Ok(sender) = sender.clone().ready().await
        {
            return Ok(sender);
        }
        let path = self.proxy.backend.display();
        let connected = connect(&self.proxy.backend).await;
        let (sender, driver) = connected.map_err(|error| {
            let text = format!("containerd at {path} does not answer: {error}");
            if let Some(since) = self.proxy.outage.goes_on() {
                tracing::warn!("{text}; it has been away for {} s", since.as_secs());
            }
            Status::new(UNAVAILABLE, text)
        })?;
        if let Some(time) = self.proxy.outage.ends() {
            let seconds = time.as_secs();
            tracing::warn!("containerd at {path} answers again; it was away for {seconds} s");
        }
        // It is not taken any more only when the client has gone.
        let _ = self.drivers.send(Box::pin(driver));
        self.proxy.discovery.forget_handlers();
        Ok(kept.insert(sender).clone())
    }
}

async fn connect(
    path: &Path,
) -> Result<(SendRequest<Bytes>, Connection<UnixStream, Bytes>), String> {
    let stream = UnixStream::connect(path).await;
    let connected = Builder::new()
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .enable_push(false)
        .handshake(stream.map_err(|error| error.to_string())?)
        .await;
    connected.map_err(|error| error.to_string())
}

/// All data of an answer, if it is no more than one may be.
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
