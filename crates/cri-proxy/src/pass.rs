// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The way through: connections of clients, each with one to containerd.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2 as client;
use hyper::server::conn::http2 as server;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use prost::Message;
use resnap_core::UnpackService;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::deadline::Deadline;
use crate::facts::Fact;
use crate::grpc::{Body, RESOURCE_EXHAUSTED, Status, UNAVAILABLE, decode, encode};
use crate::knowledge::Knowledge;
use crate::observe::{Observer, Seen};
use crate::preflight::{Call, Look, Needed};
use crate::pull::Pulls;
use crate::settings::Settings;

/// The largest message that is looked into, four times what containerd takes.
const MAX_MESSAGE: usize = 64 << 20;

/// Headers and trailers: gRPC puts the text of an error into them.
const MAX_HEADERS: u32 = 1 << 20;

/// What one stream may have in flight, as containerd's own clients ask for.
const WINDOW: u32 = 1 << 20;

const CREATE_CONTAINER: &str = "/runtime.v1.RuntimeService/CreateContainer";
const RUN_POD_SANDBOX: &str = "/runtime.v1.RuntimeService/RunPodSandbox";

/// A proxy in front of one containerd.
#[derive(Debug, Clone)]
pub struct Proxy(Arc<Inner>);

pub(crate) struct Inner {
    backend: PathBuf,
    pub(crate) service: Arc<dyn UnpackService>,
    pub(crate) knowledge: Knowledge,
    pulls: Pulls,
    observer: Option<Arc<dyn Observer>>,
}

impl Inner {
    pub(crate) fn saw(&self, seen: &Seen) {
        if let Some(observer) = &self.observer {
            observer.saw(seen);
        }
    }
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

impl Proxy {
    /// A proxy in front of the containerd at `backend`, which need not run yet.
    pub fn new(
        backend: &Path,
        service: Arc<dyn UnpackService>,
        settings: Settings,
        observer: Option<Arc<dyn Observer>>,
    ) -> Self {
        Self(Arc::new(Inner {
            backend: backend.to_owned(),
            service,
            knowledge: Knowledge::new(settings),
            pulls: Pulls::default(),
            observer,
        }))
    }

    /// What is known of this containerd, and who says so.
    ///
    /// # Errors
    /// What containerd says, as text, if it does not answer.
    pub async fn facts(&self) -> Result<Vec<Fact>, String> {
        let backend = Backend::new(Arc::clone(&self.0));
        let knowledge = &self.0.knowledge;
        let ask = async {
            let handlers = knowledge.handlers(&backend).await?;
            Ok(handlers.facts(knowledge.sandbox_image(&backend).await?))
        };
        ask.await.map_err(|status: Status| status.to_string())
    }

    /// Serves clients until `stop` says so; then takes no more, lets calls end for as long as
    /// `grace`, and returns. Dropping the future cuts all connections.
    pub async fn serve(
        &self,
        listener: UnixListener,
        mut stop: watch::Receiver<bool>,
        grace: Duration,
    ) {
        let mut clients = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = clients.join_next() => continue,
                () = asked(&mut stop) => break,
            };
            match accepted {
                Ok((stream, _)) => {
                    clients.spawn(self.clone().client(stream, stop.clone()));
                }
                Err(error) => {
                    // Out of file descriptors, most likely: some may be given back.
                    tracing::warn!(%error, "a client could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        let all = async { while clients.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, all).await.is_err() {
            tracing::warn!("calls were cut off: they took longer than {grace:?}");
        }
    }

    /// Serves one connection to its end.
    async fn client(self, stream: UnixStream, mut stop: watch::Receiver<bool>) {
        let backend = Arc::new(Backend::new(Arc::clone(&self.0)));
        let service = service_fn(|request| {
            let (proxy, backend) = (self.clone(), Arc::clone(&backend));
            async move { Ok::<_, std::convert::Infallible>(proxy.call(&backend, request).await) }
        });
        let mut server = server::Builder::new(TokioExecutor::new());
        server
            .timer(TokioTimer::new())
            .auto_date_header(false)
            .max_header_list_size(MAX_HEADERS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let mut connection = std::pin::pin!(server.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = asked(&mut stop) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            // Clients that break off are none of our business.
            tracing::debug!(%error, "a client's connection ended");
        }
    }

    async fn call(&self, backend: &Arc<Backend>, request: Request<Incoming>) -> Response<Body> {
        let answer = match request.uri().path() {
            CREATE_CONTAINER | RUN_POD_SANDBOX => self.look(backend, request).await,
            _ => backend.forward(request.map(|body| body.boxed())).await,
        };
        answer.unwrap_or_else(Status::into_response)
    }

    /// A call whose image may have to be made ready first.
    async fn look(
        &self,
        backend: &Arc<Backend>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Status> {
        let deadline = Deadline::of(request.headers());
        let (head, body) = request.into_parts();
        let body = Limited::new(body, MAX_MESSAGE).collect().await;
        let body = body
            .map_err(|error| Status::new(RESOURCE_EXHAUSTED, format!("read the request: {error}")))?
            .to_bytes();
        let send = || {
            let body = Full::new(body.clone()).map_err(|never| match never {});
            backend.forward(Request::from_parts(head.clone(), body.boxed()))
        };
        let call = match head.uri.path() {
            CREATE_CONTAINER => decode(&body).map(Call::CreateContainer),
            _ => decode(&body).map(Call::RunPodSandbox),
        };
        let Some(call) = call else {
            return send().await;
        };
        let look = Look {
            proxy: Arc::clone(&self.0),
            backend: Arc::clone(backend),
            call,
            deadline,
        };
        let needed = look.before().await?;
        let answer = send().await?;
        // containerd tells errors without a message of their own, in headers only.
        let failed = Status::in_headers(answer.headers());
        if let Some(status) = failed {
            if look.again(&status).await? {
                return send().await;
            }
        } else if needed == Needed::Unknown {
            tokio::spawn(look.after());
        }
        Ok(answer)
    }
}

/// Waits until it is asked to stop, or nobody is left to ask.
async fn asked(stop: &mut watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}

/// One client's connection to containerd, made when it is needed and again when it broke.
pub(crate) struct Backend {
    proxy: Arc<Inner>,
    sender: Mutex<Option<client::SendRequest<Body>>>,
}

impl Backend {
    fn new(proxy: Arc<Inner>) -> Self {
        Self {
            proxy,
            sender: Mutex::default(),
        }
    }

    /// Sends a request on and gives its answer back, as they are.
    async fn forward(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let mut sender = self.sender().await?;
        let unavailable = |error| {
            Status::new(
                UNAVAILABLE,
                format!(
                    "containerd at {} broke off: {error}",
                    self.proxy.backend.display()
                ),
            )
        };
        let answer = sender.send_request(request).await.map_err(unavailable)?;
        Ok(answer.map(|body| body.boxed()))
    }

    /// A call of the proxy's own.
    pub(crate) async fn ask<A: Message + Default>(
        &self,
        path: &str,
        message: &impl Message,
    ) -> Result<A, Status> {
        let body = Full::new(encode(message)?).map_err(|never| match never {});
        let request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body.boxed());
        let unreadable = |error: &dyn std::fmt::Display| {
            Status::new(
                UNAVAILABLE,
                format!("containerd's answer to {path}: {error}"),
            )
        };
        let answer = self
            .forward(request.map_err(|error| unreadable(&error))?)
            .await?;
        if let Some(status) = Status::in_headers(answer.headers()) {
            return Err(status);
        }
        let body = Limited::new(answer.into_body(), MAX_MESSAGE)
            .collect()
            .await;
        let body = body.map_err(|error| unreadable(&error))?;
        if let Some(status) = body.trailers().and_then(Status::in_headers) {
            return Err(status);
        }
        let bytes: Bytes = body.to_bytes();
        decode(&bytes).ok_or_else(|| unreadable(&"it is no message of this kind"))
    }

    /// The pulls of all connections.
    pub(crate) fn pulls(&self) -> &Pulls {
        &self.proxy.pulls
    }

    /// Makes sure that there is a connection; one that is made may be to another containerd than
    /// the last.
    pub(crate) async fn connect(&self) -> Result<(), Status> {
        self.sender().await.map(drop)
    }

    async fn sender(&self) -> Result<client::SendRequest<Body>, Status> {
        let mut kept = self.sender.lock().await;
        if let Some(sender) = kept.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        let unavailable = |error: &dyn std::fmt::Display| {
            let path = self.proxy.backend.display();
            Status::new(
                UNAVAILABLE,
                format!("containerd at {path} does not answer: {error}"),
            )
        };
        let stream = UnixStream::connect(&self.proxy.backend).await;
        let stream = stream.map_err(|error| unavailable(&error))?;
        let mut builder = client::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(MAX_HEADERS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW);
        let (sender, connection) = builder
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| unavailable(&error))?;
        // It ends with the last sender, or with containerd.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to containerd ended");
            }
        });
        self.proxy.knowledge.forget_handlers();
        Ok(kept.insert(sender).clone())
    }
}
