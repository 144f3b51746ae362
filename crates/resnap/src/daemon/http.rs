// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `/metrics` and `/healthz`, for whoever is on this machine.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use resnap_containerd::Client;
use resnap_core::in_full;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};
use tokio::time::{Instant, sleep, timeout};

use super::metrics::Metrics;

/// Any process of the machine may come: no more of them at once,
const CONNECTIONS: usize = 16;
/// none for longer than this,
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// and none that does not ask.
const HEADER_TIME: Duration = Duration::from_secs(3);

/// How long containerd may take to say that it is there.
const HEALTH_TIME: Duration = Duration::from_secs(2);
/// How long its word is taken for: who asks often must not keep it busy.
const HEALTH_LIFETIME: Duration = Duration::from_millis(500);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told of this daemon.
struct Told {
    metrics: Arc<Metrics>,
    health: Health,
}

/// Answers at `address` from now on, and looks after the containerd at `backend` when it is asked.
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
    tokio::spawn(accept(listener, Arc::new(Told { metrics, health })));
    Ok(())
}

async fn accept(listener: TcpListener, told: Arc<Told>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    // It is never closed.
    while let Ok(permit) = Arc::clone(&connections).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let told = Arc::clone(&told);
                tokio::spawn(async move {
                    // Who is too slow, or talks nonsense, gets no answer.
                    let _ = timeout(CONNECTION_TIME, connection(stream, told)).await;
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "who asks for metrics could not be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, told: Arc<Told>) -> hyper::Result<()> {
    let service = service_fn(|request| {
        let told = Arc::clone(&told);
        async move { Ok::<_, Infallible>(told.answer(&request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

impl Told {
    async fn answer(&self, request: &Request<Incoming>) -> Response<String> {
        let path = request.uri().path();
        if !matches!(path, "/metrics" | "/healthz") {
            return text(StatusCode::NOT_FOUND, "here are /metrics and /healthz");
        }
        if request.method() != Method::GET {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET");
            let allowed = HeaderValue::from_static("GET");
            answer.headers_mut().insert(ALLOW, allowed);
            return answer;
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

/// Whether containerd answers.
struct Health {
    backend: String,
    last: Mutex<Option<(Instant, Result<(), String>)>>,
}

impl Health {
    /// Why it does not, if so. Those who ask at the same time wait for one answer.
    async fn check(&self) -> Result<(), String> {
        let mut last = self.last.lock().await;
        if let Some((at, said)) = &*last
            && at.elapsed() < HEALTH_LIFETIME
        {
            return said.clone();
        }
        let said = timeout(HEALTH_TIME, ask(&self.backend)).await;
        let said = said.unwrap_or_else(|_| {
            Err(format!(
                "containerd at {} did not answer within {HEALTH_TIME:?}",
                self.backend
            ))
        });
        *last = Some((Instant::now(), said.clone()));
        said
    }
}

/// Asks containerd over a connection of its own: one that is there already tells nothing of a
/// containerd that hangs, nor of one that others could not reach.
async fn ask(backend: &str) -> Result<(), String> {
    let ask = async {
        let ports = Client::connect(backend).await?.ports();
        ports.introspection.snapshotters().await
    };
    let answered = ask.await;
    answered.map(drop).map_err(|error| in_full(&error))
}
