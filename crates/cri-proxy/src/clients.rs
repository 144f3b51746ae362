// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The thread that all clients are served in.

use std::future::poll_fn;
use std::io;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use resnap_core::{Progress, UnpackService, Unready, Want};
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;

use crate::pass::{Inner, LAST, Phase, client};

/// The clients; all are cut off when it is dropped.
pub(crate) struct Clients {
    new: mpsc::UnboundedSender<UnixStream>,
    phase: watch::Sender<Phase>,
    ended: oneshot::Receiver<()>,
    _cut: oneshot::Sender<()>,
}

impl Clients {
    pub(crate) fn start(proxy: Arc<Inner>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let outer = Handle::current();
        let (new, streams) = mpsc::unbounded_channel();
        let (phase, phases) = watch::channel(Phase::Serving);
        let (end, ended) = oneshot::channel();
        let (cut, is_cut) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = all(proxy, outer, streams, phases) => {}
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
            (Phase::Draining, LAST),
            (Phase::NoStreams, grace.saturating_sub(2 * LAST)),
            (Phase::Ending, LAST),
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
    proxy: Arc<Inner>,
    outer: Handle,
    mut streams: mpsc::UnboundedReceiver<UnixStream>,
    phases: watch::Receiver<Phase>,
) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            Some(stream) = streams.recv() => match tokio::net::UnixStream::from_std(stream) {
                Ok(stream) => {
                    clients.spawn(client(Arc::clone(&proxy), outer.clone(), stream, phases.clone()));
                }
                Err(error) => tracing::warn!(%error, "a client could not be served"),
            },
            Some(_) = clients.join_next() => {}
            else => return,
        }
    }
}

/// The unpack service in the runtime that it comes from: what it spawns is spawned there.
pub(crate) struct AtHome<'a> {
    pub(crate) runtime: &'a Handle,
    pub(crate) service: &'a dyn UnpackService,
}

impl AtHome<'_> {
    async fn run<T>(&self, mut work: Pin<Box<dyn Future<Output = T> + Send + '_>>) -> T {
        poll_fn(|cx| {
            let _entered = self.runtime.enter();
            work.as_mut().poll(cx)
        })
        .await
    }
}

#[async_trait]
impl UnpackService for AtHome<'_> {
    async fn ensure(
        &self,
        want: Want<'_>,
        tell: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), Unready> {
        self.run(self.service.ensure(want, tell)).await
    }

    async fn is_remote(&self, image: &str, snapshotter: &str) -> Result<bool, Unready> {
        self.run(self.service.is_remote(image, snapshotter)).await
    }
}
