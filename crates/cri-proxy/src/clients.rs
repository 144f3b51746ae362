// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The thread that serves all clients.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::connection::serve_connection;
use crate::limits::LAST_RESERVE;
use crate::runtime::ServiceRuntime;
use crate::shutdown::{Shutdown, ShutdownPhase};
use crate::state::ProxyState;

/// The clients of a thread. Dropping it cuts their connections.
pub(crate) struct Clients {
    streams: mpsc::UnboundedSender<UnixStream>,
    phase: watch::Sender<ShutdownPhase>,
    /// Cancelled when the thread has ended.
    ended: CancellationToken,
    _cut: DropGuard,
}

impl Clients {
    pub(crate) fn start(state: Arc<ProxyState>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let service_runtime = ServiceRuntime::current();
        state.client_thread.set(runtime.handle().clone());
        let (streams, receiver) = mpsc::unbounded_channel();
        let (phase, shutdown) = Shutdown::channel();
        let (ended, cut) = (CancellationToken::new(), CancellationToken::new());
        let ended_guard = ended.clone().drop_guard();
        let cut_guard = cut.clone().drop_guard();
        let serve = move || {
            let _ended = ended_guard;
            let serve = serve_all(state, service_runtime, receiver, shutdown);
            runtime.block_on(cut.run_until_cancelled(serve));
        };
        let thread = std::thread::Builder::new().name("cri-proxy".to_owned());
        thread.spawn(serve)?;
        Ok(Self {
            streams,
            phase,
            ended,
            _cut: cut_guard,
        })
    }

    pub(crate) fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let sent = self.streams.send(stream);
        sent.map_err(|_| io::Error::other("the thread of the proxy has ended"))
    }

    /// Waits until the last client has gone, at most for `grace`.
    pub(crate) async fn end(self, grace: Duration) {
        let Self {
            streams,
            phase,
            ended,
            _cut,
        } = self;
        drop(streams);
        for (next, time) in [
            (ShutdownPhase::Draining, LAST_RESERVE),
            (
                ShutdownPhase::EndingStreams,
                grace.saturating_sub(2 * LAST_RESERVE),
            ),
            (ShutdownPhase::Ending, LAST_RESERVE),
        ] {
            phase.send_replace(next);
            if tokio::time::timeout(time, ended.cancelled()).await.is_ok() {
                return;
            }
        }
        tracing::warn!("cut off clients that did not leave within {grace:?}");
    }
}

/// Serves clients until the last has gone and no more can come.
async fn serve_all(
    state: Arc<ProxyState>,
    service_runtime: ServiceRuntime,
    mut streams: mpsc::UnboundedReceiver<UnixStream>,
    shutdown: Shutdown,
) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            Some(stream) = streams.recv() => match tokio::net::UnixStream::from_std(stream) {
                Ok(stream) => {
                    let state = Arc::clone(&state);
                    let runtime = service_runtime.clone();
                    clients.spawn(serve_connection(state, runtime, stream, shutdown.clone()));
                }
                Err(error) => tracing::warn!(%error, "could not serve a client"),
            },
            Some(_) = clients.join_next() => {}
            else => return,
        }
    }
}
