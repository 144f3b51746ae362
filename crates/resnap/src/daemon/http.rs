// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! `/metrics` and `/healthz`, for whoever is on this machine.

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

/// Any process of the machine may come, and none may keep the others away: this many answers of a
/// kind at once,
const ANSWERS: usize = 16;
/// this many who have not asked yet, of whom the one that came first goes if more come,
const SILENT: usize = 64;
/// nobody for longer than this,
const CONNECTION_TIME: Duration = Duration::from_secs(10);
/// and nobody who does not ask.
const HEADER_TIME: Duration = Duration::from_secs(3);

/// How long containerd may take to say that it is there.
const HEALTH_TIME: Duration = Duration::from_secs(2);
/// How long its word is taken for: who asks often must not keep it busy.
const HEALTH_LIFETIME: Duration = Duration::from_millis(500);

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is told of this daemon.
struct Told {
    metrics: Arc<Metrics>,
    /// Those who are told of them.
    metrics_slots: Arc<Semaphore>,
    health: Health,
    health_slots: Arc<Semaphore>,
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
    let told = Told {
        metrics,
        metrics_slots: Arc::new(Semaphore::new(ANSWERS)),
        health,
        health_slots: Arc::new(Semaphore::new(ANSWERS)),
    };
    tokio::spawn(accept(listener, Arc::new(told)));
    Ok(())
}

async fn accept(listener: TcpListener, told: Arc<Told>) {
    let mut silent = Silent::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let slot = silent.admit();
                let told = Arc::clone(&told);
                tokio::spawn(async move {
                    tokio::select! {
                        // Who is too slow, or talks nonsense, gets no answer.
                        _ = timeout(CONNECTION_TIME, connection(stream, told, &slot)) => {}
                        () = slot.lost.notified() => {}
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "who asks for metrics could not be accepted");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, told: Arc<Told>, slot: &Slot) -> hyper::Result<()> {
    let service = service_fn(|request| {
        let told = Arc::clone(&told);
        async move {
            slot.asked();
            Ok::<_, Infallible>(told.answer(&request, slot).await)
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

/// The clients that have not asked yet, in the order they came.
#[derive(Default)]
struct Silent(VecDeque<Weak<Slot>>);

impl Silent {
    /// Room for one more; where there is none the first of them loses its own.
    fn admit(&mut self) -> Arc<Slot> {
        self.0
            .retain(|slot| slot.upgrade().is_some_and(|slot| slot.is_silent()));
        while self.0.len() >= SILENT {
            if let Some(first) = self.0.pop_front().and_then(|slot| slot.upgrade()) {
                first.lost.notify_one();
            }
        }
        let slot = Arc::new(Slot::default());
        self.0.push_back(Arc::downgrade(&slot));
        slot
    }
}

/// What a connection takes of what there is for all.
#[derive(Default)]
struct Slot {
    has_asked: AtomicBool,
    lost: Notify,
    /// Of the answers of its kind; kept until the client has taken it.
    answer: OnceLock<OwnedSemaphorePermit>,
}

impl Slot {
    fn is_silent(&self) -> bool {
        !self.has_asked.load(Ordering::Relaxed)
    }

    fn asked(&self) {
        self.has_asked.store(true, Ordering::Relaxed);
    }

    /// Whether there is room for one more answer of a kind.
    fn take(&self, of: &Arc<Semaphore>) -> bool {
        let permit = Arc::clone(of).try_acquire_owned();
        permit.is_ok_and(|permit| self.answer.set(permit).is_ok())
    }
}

impl Told {
    async fn answer(&self, request: &Request<Incoming>, slot: &Slot) -> Response<String> {
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
        let slots = match path {
            "/healthz" => &self.health_slots,
            _ => &self.metrics_slots,
        };
        if !slot.take(slots) {
            return text(StatusCode::SERVICE_UNAVAILABLE, "too many ask at once");
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
    answered.map(drop).map_err(|error| error_chain(&error))
}
