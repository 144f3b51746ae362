// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The HTTP endpoints `/metrics` and `/healthz`, for any process on this machine.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use resnap_containerd::Client;
use resnap_core::error_chain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use super::metrics::Metrics;

/// The maximum number of concurrent answers of one kind. Any process may connect, and none may starve
/// the others.
const MAX_ANSWERS: usize = 16;
/// The maximum number of connections without a request yet. The oldest is closed if more arrive.
const MAX_WAITING: usize = 64;
/// The maximum duration of a connection.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The time that a client has to send its request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);

/// The time that containerd has to answer a health check.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(2);
/// The lifetime of a result, so that frequent requests do not keep containerd busy.
const HEALTH_LIFETIME: Duration = Duration::from_millis(500);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The data behind the endpoints.
struct Endpoints {
    metrics: Arc<Metrics>,
    /// The slots for answers with metrics.
    metrics_slots: Arc<Semaphore>,
    health: Health,
    health_slots: Arc<Semaphore>,
}

/// Starts serving at `address`. `/healthz` checks the containerd at `backend`.
pub(super) async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    backend: String,
) -> Result<()> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("listen at metrics address {address}"))?;
    let health = Health {
        backend,
        last: Mutex::default(),
    };
    let endpoints = Endpoints {
        metrics,
        metrics_slots: Arc::new(Semaphore::new(MAX_ANSWERS)),
        health,
        health_slots: Arc::new(Semaphore::new(MAX_ANSWERS)),
    };
    tokio::spawn(accept(listener, Arc::new(endpoints)));
    Ok(())
}

async fn accept(listener: TcpListener, endpoints: Arc<Endpoints>) {
    let mut waiting = WaitingConnections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let slot = waiting.admit();
                let endpoints = Arc::clone(&endpoints);
                tokio::spawn(async move {
                    tokio::select! {
                        // A client that is too slow, or sends an invalid request, gets no answer.
                        _ = timeout(CONNECTION_TIMEOUT, connection(stream, endpoints, &slot)) => {}
                        () = slot.evicted.notified() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics could not be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    endpoints: Arc<Endpoints>,
    slot: &Slot,
) -> hyper::Result<()> {
    let service = service_fn(|request| {
        let endpoints = Arc::clone(&endpoints);
        async move {
            slot.set_request();
            Ok::<_, Infallible>(endpoints.answer(&request, slot).await)
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// The connections without a request yet, the oldest first.
#[derive(Default)]
struct WaitingConnections(VecDeque<Weak<Slot>>);

impl WaitingConnections {
    /// Returns a slot for a new connection, and takes that of the oldest if there is none left.
    fn admit(&mut self) -> Arc<Slot> {
        self.0
            .retain(|slot| slot.upgrade().is_some_and(|slot| slot.is_waiting()));
        while self.0.len() >= MAX_WAITING {
            if let Some(first) = self.0.pop_front().and_then(|slot| slot.upgrade()) {
                first.evicted.notify_one();
            }
        }
        let slot = Arc::new(Slot::default());
        self.0.push_back(Arc::downgrade(&slot));
        slot
    }
}

/// The share of a connection in the limits.
#[derive(Default)]
struct Slot {
    has_request: AtomicBool,
    evicted: Notify,
    /// The permit for an answer, held until the client has received it.
    answer: OnceLock<OwnedSemaphorePermit>,
}

impl Slot {
    fn is_waiting(&self) -> bool {
        !self.has_request.load(Ordering::Relaxed)
    }

    fn set_request(&self) {
        self.has_request.store(true, Ordering::Relaxed);
    }

    /// Takes a permit for an answer. Returns whether there was one.
    fn take(&self, slots: &Arc<Semaphore>) -> bool {
        let permit = Arc::clone(slots).try_acquire_owned();
        permit.is_ok_and(|permit| self.answer.set(permit).is_ok())
    }
}

impl Endpoints {
    async fn answer(&self, request: &Request<Incoming>, slot: &Slot) -> Response<String> {
        let path = request.uri().path();
        if !matches!(path, "/metrics" | "/healthz") {
            return text(StatusCode::NOT_FOUND, "the paths are /metrics and /healthz");
        }
        if request.method() != Method::GET {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "the method must be GET");
            let allowed = HeaderValue::from_static("GET");
            answer.headers_mut().insert(ALLOW, allowed);
            return answer;
        }
        let slots = match path {
            "/healthz" => &self.health_slots,
            _ => &self.metrics_slots,
        };
        if !slot.take(slots) {
            return text(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many concurrent requests",
            );
        }
        if path == "/healthz" {
            return match self.health.check().await {
                Ok(()) => text(StatusCode::OK, "ok"),
                Err(reason) => text(StatusCode::SERVICE_UNAVAILABLE, &reason),
            };
        }
        match self.metrics.text() {
            Ok(metrics) => response(StatusCode::OK, OPEN_METRICS, metrics),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }
}

fn text(status: StatusCode, line: &str) -> Response<String> {
    response(status, "text/plain; charset=utf-8", format!("{line}\n"))
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

/// The health of containerd.
struct Health {
    backend: String,
    last: Mutex<Option<(Instant, Result<(), String>)>>,
}

impl Health {
    /// Returns an error if containerd does not answer. Concurrent calls share one check.
    async fn check(&self) -> Result<(), String> {
        let mut last = self.last.lock().await;
        if let Some((at, result)) = &*last
            && at.elapsed() < HEALTH_LIFETIME
        {
            return result.clone();
        }
        let result = timeout(HEALTH_TIMEOUT, call_containerd(&self.backend)).await;
        let result = result.unwrap_or_else(|_| {
            Err(format!(
                "containerd at {} did not answer within {HEALTH_TIMEOUT:?}",
                self.backend
            ))
        });
        *last = Some((Instant::now(), result.clone()));
        result
    }
}

/// Calls containerd over a new connection: an open one does not show whether others can still connect.
async fn call_containerd(backend: &str) -> Result<(), String> {
    let call = async {
        let ports = Client::connect(backend).await?.ports();
        ports.introspection.snapshotters().await
    };
    let answered = call.await;
    answered.map(drop).map_err(|error| error_chain(&error))
}
