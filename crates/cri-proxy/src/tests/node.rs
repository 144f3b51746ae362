// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A proxy with its service, in front of a containerd, and its clients.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use tempfile::TempDir;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::{AbortHandle, JoinHandle};
use tokio_util::sync::CancellationToken;

use super::containerd::Containerd;
use super::service::Service;
use crate::grpc::{Outcome, Status, outcome_in};
use crate::proxy::Proxy;
use crate::settings::ProxySettings;

pub(super) const VERSION: &str = "/runtime.v1.RuntimeService/Version";
pub(super) const CREATE_CONTAINER: &str = "/runtime.v1.RuntimeService/CreateContainer";
pub(super) const PULL_IMAGE: &str = "/runtime.v1.ImageService/PullImage";
pub(super) const IMAGE_STATUS: &str = "/runtime.v1.ImageService/ImageStatus";
pub(super) const RUN_POD_SANDBOX: &str = "/runtime.v1.RuntimeService/RunPodSandbox";

/// The time that anything may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// A proxy that serves.
pub(super) struct Node {
    pub(super) proxy: Proxy,
    pub(super) service: Arc<Service>,
    pub(super) containerd: Arc<Containerd>,
    containerd_task: AbortHandle,
    pub(super) stop: CancellationToken,
    pub(super) served: JoinHandle<io::Result<()>>,
    dir: TempDir,
}

impl Node {
    pub(super) fn start(service: Service) -> Self {
        Self::with_grace(service, DEADLINE)
    }

    pub(super) fn with_grace(service: Service, grace: Duration) -> Self {
        Self::configured(service, grace, ProxySettings::default())
    }

    pub(super) fn with_settings(service: Service, settings: ProxySettings) -> Self {
        Self::configured(service, DEADLINE, settings)
    }

    fn configured(service: Service, grace: Duration, settings: ProxySettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let containerd = Arc::new(Containerd::default());
        let containerd_task = containerd.serve(&dir.path().join("containerd"));
        let service = Arc::new(service);
        let proxy = Proxy::new(
            &dir.path().join("containerd"),
            Arc::clone(&service) as _,
            settings,
            None,
        );
        let listener = UnixListener::bind(dir.path().join("proxy")).unwrap();
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let serving = proxy.clone();
        let serve = async move { serving.serve(listener, stopped, grace).await };
        let served = tokio::spawn(serve);
        Self {
            proxy,
            service,
            containerd,
            containerd_task,
            stop,
            served,
            dir,
        }
    }

    /// Returns the socket of the proxy.
    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("proxy")
    }

    pub(super) async fn client(&self) -> SendRequest<Bytes> {
        let stream = UnixStream::connect(self.socket());
        let window = 64 << 20;
        let handshake = h2::client::Builder::new()
            .initial_window_size(window)
            .initial_connection_window_size(window)
            .handshake(stream.await.unwrap());
        let (client, driver) = handshake.await.unwrap();
        tokio::spawn(driver);
        client
    }

    /// Stops containerd. Its connections break.
    pub(super) async fn stop_containerd(&self) {
        let socket = self.dir.path().join("containerd");
        self.containerd_task.abort();
        std::fs::remove_file(&socket).unwrap();
        while !self.containerd_task.is_finished() {
            tokio::task::yield_now().await;
        }
    }

    /// Starts containerd again.
    pub(super) fn start_containerd(&mut self) {
        let socket = self.dir.path().join("containerd");
        self.containerd_task = self.containerd.serve(&socket);
    }

    /// Waits until the service has got `count` requests.
    pub(super) async fn asked(&self, count: usize) {
        self.service.wait_for(count, DEADLINE).await;
    }
}

/// Sends a request. Without `end` its message does not end.
pub(super) async fn begin(
    client: &SendRequest<Bytes>,
    path: &str,
    body: Bytes,
    end: bool,
) -> (ResponseFuture, SendStream<Bytes>) {
    let request = Request::post(format!("http://localhost{path}"))
        .header("content-type", "application/grpc")
        .header("grpc-timeout", "60S");
    let mut client = client.clone().ready().await.unwrap();
    let (response, mut to) = client
        .send_request(request.body(()).unwrap(), false)
        .unwrap();
    to.send_data(body, end).unwrap();
    (response, to)
}

/// Waits for the end of a call. Returns the outcome and the error message.
pub(super) async fn ended(response: ResponseFuture) -> (Outcome, String) {
    match answered(response).await {
        Ok(_) => (Ok(()), String::new()),
        Err(status) => (Err(status.kind), status.message),
    }
}

/// Waits for the end of a call. Returns the body of the response.
pub(super) async fn answered(response: ResponseFuture) -> Result<Vec<u8>, Status> {
    let all = async {
        let (head, mut from) = response.await.unwrap().into_parts();
        if let Some(status) = Status::in_headers(&head.headers) {
            return Err(status);
        }
        let mut body = Vec::new();
        while let Some(bytes) = from.data().await {
            body.extend_from_slice(&bytes.unwrap());
        }
        let trailers = from.trailers().await.unwrap().unwrap();
        outcome_in(&trailers)
            .unwrap()
            .map(|()| body)
            .map_err(|kind| Status::new(kind, ""))
    };
    tokio::time::timeout(DEADLINE, all).await.unwrap()
}

pub(super) async fn call(
    client: &SendRequest<Bytes>,
    path: &str,
    body: Bytes,
) -> (Outcome, String) {
    ended(begin(client, path, body, true).await.0).await
}
