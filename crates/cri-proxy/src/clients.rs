// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The thread that all clients are served in.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinError, JoinSet};

use crate::pass::{LAST_RESERVE, ProxyState, ShutdownPhase, client};

/// The clients; all are cut off when it is dropped.
pub(crate) struct Clients {
    new: mpsc::UnboundedSender<UnixStream>,
    phase: watch::Sender<ShutdownPhase>,
    ended: oneshot::Receiver<()>,
    _cut: oneshot::Sender<()>,
}

impl Clients {
    pub(crate) fn start(proxy: Arc<ProxyState>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let service_runtime = Handle::current();
        let thread = proxy.thread.lock();
        *thread.unwrap_or_else(PoisonError::into_inner) = Some(runtime.handle().clone());
        let (new, streams) = mpsc::unbounded_channel();
        let (phase, phases) = watch::channel(ShutdownPhase::Serving);
        let (end, ended) = oneshot::channel();
        let (cut, is_cut) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = all(proxy, service_runtime, streams, phases) => {}
                    _ = is_cut => {}
                }
            });
            // It may be that nobody waits.
            let _ = end.send(());
        };
        let thread = std::thread::Builder::new().name("cri-proxy".to_owned());
        thread.spawn(serve)?;
        Ok(Self {
            new,
            phase,
            ended,
            _cut: cut,
        })
    }

    pub(crate) fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let sent = self.new.send(stream);
        sent.map_err(|_| io::Error::other("the thread of the proxy has ended"))
    }

    /// Waits until the last client has gone, or `grace` is over.
    pub(crate) async fn end(self, grace: Duration) {
        let Self {
            new,
            phase,
            mut ended,
            _cut,
        } = self;
        drop(new);
        for (next, time) in [
            (ShutdownPhase::Draining, LAST_RESERVE),
            (
                ShutdownPhase::NoStreams,
                grace.saturating_sub(2 * LAST_RESERVE),
            ),
            (ShutdownPhase::Ending, LAST_RESERVE),
        ] {
            phase.send_replace(next);
            if tokio::time::timeout(time, &mut ended).await.is_ok() {
                return;
            }
        }
        tracing::warn!("clients were cut off: they did not leave within {grace:?}");
    }
}

/// Serves all that come, until the last has gone and no more can come.
async fn all(
    proxy: Arc<ProxyState>,
    service_runtime: Handle,
    mut streams: mpsc::UnboundedReceiver<UnixStream>,
    phases: watch::Receiver<ShutdownPhase>,
) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            Some(stream) = streams.recv() => match tokio::net::UnixStream::from_std(stream) {
                Ok(stream) => {
                    clients.spawn(client(Arc::clone(&proxy), service_runtime.clone(), stream, phases.clone()));
                }
                Err(error) => tracing::warn!(%error, "a client could not be served"),
            },
            Some(_) = clients.join_next() => {}
            else => return,
        }
    }
}

/// Runs work of the unpack service in the runtime that it comes from: it may keep its thread busy,
/// and no call has to wait for that. Dropping the future takes the work back.
///
/// # Errors
/// If the work panicked, or its runtime has ended.
pub(crate) async fn in_runtime<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, JoinError> {
    struct TakenBack(AbortHandle);
    impl Drop for TakenBack {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
    let task = runtime.spawn(work);
    let _taken_back = TakenBack(task.abort_handle());
    task.await
}
