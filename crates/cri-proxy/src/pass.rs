// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The way through: connections of clients, each with one to containerd.
//!
//! All of a client's calls and both of its connections are one task, and all clients are in one
//! thread: a message on its way wakes no other. Several threads spend a third of their time on that.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use h2::server::{self, Connection};
use resnap_authority::AnyAuthority;
use resnap_core::UnpackService;
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

pub(crate) use crate::backend::Backend;
use crate::call::ProxiedCall;
use crate::call_record::CallRecord;
use crate::clients::Clients;
use crate::discovery::Discovery;
use crate::facts::Fact;
use crate::grpc::{INTERNAL, PREFIX_LEN, Status};
use crate::held::HeldRequests;
use crate::observe::{ProxyEvent, ProxyObserver};
use crate::outage::Outage;
use crate::pull::Pulls;
use crate::settings::ProxySettings;

/// The largest answer that is read: containerd gives no larger one.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

/// The largest request that is looked into, twice what a pod may be for etcd; a larger one passes
/// unseen.
pub(crate) const MAX_PEEKED: usize = 4 << 20;

/// What requests that are looked into may take together while they arrive, beyond what a client may
/// send in any case.
const PEEK_BUDGET: usize = MAX_PEEKED + PREFIX_LEN;

/// What requests that are looked into may take together while they wait.
const MAX_HELD: usize = 64 << 20;

/// Headers and trailers: gRPC puts the text of an error into them.
pub(crate) const MAX_HEADERS: u32 = 1 << 20;

/// Of one call, what may have come of it and not gone on yet, each way.
pub(crate) const STREAM_WINDOW: u32 = 64 << 10;

/// The same of all calls of a client.
pub(crate) const CONNECTION_WINDOW: u32 = 1 << 20;

/// Of one call, what a receiver may leave unread although it said that it takes it.
pub(crate) const SEND_BUFFER: usize = 16 << 10;

/// A client's calls at a time; it waits with more.
const MAX_CALLS: u32 = 1024;

/// What is kept of the grace to tell those whose calls have not ended, and for streams that have
/// no end to end by themselves.
pub(crate) const LAST_RESERVE: Duration = Duration::from_secs(1);

/// What is kept of the grace for those who come while calls end.
const LATE: Duration = Duration::from_secs(3);

/// A proxy in front of one containerd.
#[derive(Debug, Clone)]
pub struct Proxy(Arc<ProxyState>);

pub(crate) struct ProxyState {
    pub(crate) backend: PathBuf,
    pub(crate) service: Arc<dyn UnpackService>,
    pub(crate) discovery: Discovery,
    /// Bytes left of [`PEEK_BUDGET`].
    pub(crate) peek_budget: Semaphore,
    pub(crate) waiting: HeldRequests,
    pub(crate) pulls: Pulls,
    pub(crate) outage: Outage,
    pub(crate) observer: Option<Arc<dyn ProxyObserver>>,
    /// Where clients are served; of two such threads the later one.
    pub(crate) thread: Mutex<Option<Handle>>,
}

impl ProxyState {
    fn thread(&self) -> Option<Handle> {
        let thread = self.thread.lock();
        thread.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn on_event(&self, seen: &ProxyEvent) {
        if let Some(observer) = &self.observer {
            observer.on_event(seen);
        }
    }
}

impl std::fmt::Debug for ProxyState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ProxyState")
            .field("backend", &self.backend)
            .finish_non_exhaustive()
    }
}

/// How far the end is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ShutdownPhase {
    Serving,
    /// Clients are asked to make no more calls here.
    Draining,
    /// Answers that have begun and not ended are ended: they may have no end.
    NoStreams,
    /// All others are told that they get none.
    Ending,
}

impl Proxy {
    /// A proxy in front of the containerd at `backend`, which need not run yet.
    pub fn new(
        backend: &Path,
        service: Arc<dyn UnpackService>,
        settings: ProxySettings,
        observer: Option<Arc<dyn ProxyObserver>>,
    ) -> Self {
        Self(Arc::new(ProxyState {
            backend: backend.to_owned(),
            service,
            discovery: Discovery::new(settings),
            peek_budget: Semaphore::new(PEEK_BUDGET),
            waiting: HeldRequests::new(MAX_HELD),
            pulls: Pulls::default(),
            outage: Outage::default(),
            observer,
            thread: Mutex::default(),
        }))
    }

    /// What is known of this containerd, and who says so.
    ///
    /// # Errors
    /// What containerd says, as text, if it does not answer.
    pub async fn facts(&self) -> Result<Vec<Fact>, String> {
        let backend = Backend::detached(&self.0);
        let discovery = &self.0.discovery;
        let ask = async {
            let handlers = discovery.handlers(&backend).await?;
            Ok(handlers.facts(discovery.sandbox_image(&backend).await?))
        };
        ask.await.map_err(|status: Status| status.to_string())
    }

    /// Returns once the thread in which clients are served has done something for this call, which it
    /// never does while it hangs; at once where there is no such thread.
    pub async fn alive(&self) {
        if let Some(thread) = self.0.thread() {
            // An error is that of a thread that has ended: nobody is served any more.
            let _ = thread.spawn(async {}).await;
        }
    }

    /// Serves clients until `stop` says so; then lets their calls end for as long as `grace`, tells
    /// the others that they will not, and returns. Clients that come meanwhile are served as well,
    /// until the last of those calls has ended. Dropping the future cuts all connections.
    ///
    /// The unpack service is called in the runtime that this is called in; calls pass in a thread
    /// of their own.
    ///
    /// # Errors
    /// If that thread cannot be had.
    pub async fn serve(
        &self,
        listener: UnixListener,
        mut stop: watch::Receiver<bool>,
        grace: Duration,
    ) -> io::Result<()> {
        let clients = Clients::start(Arc::clone(&self.0))?;
        tokio::select! {
            never = accept(&listener, &clients) => match never {},
            _ = stop.wait_for(|stop| *stop) => {}
        }
        let asked = Instant::now();
        // Who comes now is served until the last moment, or finds the next proxy here.
        let late = Clients::start(Arc::clone(&self.0))?;
        tokio::select! {
            never = accept(&listener, &late) => match never {},
            () = clients.end(grace.saturating_sub(LATE)) => {}
        }
        drop(listener);
        late.end(grace.saturating_sub(asked.elapsed())).await;
        Ok(())
    }
}

/// Has all that come served.
async fn accept(listener: &UnixListener, clients: &Clients) -> Infallible {
    loop {
        let accepted = listener.accept().await;
        let served = accepted.and_then(|(stream, _)| clients.serve(stream.into_std()?));
        if let Err(error) = served {
            // Out of file descriptors, most likely: some may be given back.
            tracing::warn!(%error, "a client could not be accepted");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// Serves one connection to its end.
pub(crate) async fn client(
    proxy: Arc<ProxyState>,
    service_runtime: Handle,
    stream: UnixStream,
    mut phase: watch::Receiver<ShutdownPhase>,
) {
    let connect = async {
        // Who says nothing takes no room; what is wrong shows when it is read.
        let _ = stream.readable().await;
        server::Builder::new()
            .max_header_list_size(MAX_HEADERS)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(MAX_CALLS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .handshake(AnyAuthority::new(stream))
            .await
    };
    let connected = tokio::select! {
        connected = connect => connected,
        _ = phase.wait_for(|phase| *phase > ShutdownPhase::Serving) => return,
    };
    let ended = match connected {
        Ok(connection) => serve(&proxy, &service_runtime, connection, phase).await,
        Err(error) => Err(error),
    };
    match ended {
        Err(error) if error.is_library() => {
            CallRecord::begin(proxy.observer.as_ref(), "").ends_with(INTERNAL);
            tracing::warn!(%error, "a client was refused: it does not speak HTTP/2 as it must");
        }
        // Clients that break off are none of our business.
        Err(error) => tracing::debug!(%error, "a client's connection ended"),
        Ok(()) => {}
    }
}

async fn serve(
    proxy: &Arc<ProxyState>,
    service_runtime: &Handle,
    mut client: Connection<AnyAuthority<UnixStream>, Bytes>,
    mut phase: watch::Receiver<ShutdownPhase>,
) -> Result<(), h2::Error> {
    let (send, mut drivers) = mpsc::unbounded_channel();
    let backend = Backend::new(Arc::clone(proxy), send);
    let mut backends = FuturesUnordered::new();
    let phases = phase.clone();
    let mut calls = FuturesUnordered::new();
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            Some(ended) = backends.next() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, "a connection to containerd ended");
                }
            }
            Some(driver) = drivers.recv() => backends.push(driver),
            call = client.accept() => match call {
                Some(call) => {
                    let (request, respond) = call?;
                    let call = ProxiedCall { proxy, service_runtime, backend: &backend, phase: &phases };
                    // Boxed, as the set has room for one in any case, and most clients make none.
                    calls.push(Box::pin(call.serve(request, respond)));
                }
                None => return Ok(()),
            },
            Some(()) = calls.next() => {}
            _ = phase.wait_for(|phase| *phase > ShutdownPhase::Serving), if !draining => {
                draining = true;
                client.graceful_shutdown();
            }
            // It does not say that it has understood, and waits for nothing.
            () = tokio::time::sleep(LAST_RESERVE), if draining && calls.is_empty() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
