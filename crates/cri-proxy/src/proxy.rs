// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The proxy as a whole.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use resnap_core::UnpackService;
use tokio::net::UnixListener;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::clients::Clients;
use crate::facts::Fact;
use crate::grpc::Status;
use crate::limits::LATE_RESERVE;
use crate::observe::ProxyObserver;
use crate::settings::ProxySettings;
use crate::state::ProxyState;

/// A proxy in front of one containerd.
#[derive(Debug, Clone)]
pub struct Proxy(Arc<ProxyState>);

impl Proxy {
    /// Creates a proxy in front of the containerd at `backend`, which need not run yet.
    pub fn new(
        backend: &Path,
        service: Arc<dyn UnpackService>,
        settings: ProxySettings,
        observer: Option<Arc<dyn ProxyObserver>>,
    ) -> Self {
        let state = ProxyState::new(backend, service, settings, observer);
        Self(Arc::new(state))
    }

    /// Returns what is known about this containerd, and the source of each fact.
    ///
    /// # Errors
    /// The error of containerd as text, if it does not answer.
    pub async fn facts(&self) -> Result<Vec<Fact>, String> {
        let backend = Backend::detached(&self.0.endpoint);
        let discovery = &self.0.discovery;
        let facts = async {
            let handlers = discovery.handlers(&backend).await?;
            Ok(handlers.facts(discovery.sandbox_image(&backend).await?))
        };
        facts.await.map_err(|status: Status| status.to_string())
    }

    /// Returns the sandbox image and the snapshotters of handlers where it is without the proof that layers
    /// need there, if there are any: their pods do not start before it has one. An image that is not unpacked
    /// there yet gets the proof with the first pod.
    ///
    /// # Errors
    /// The error of containerd as text, if it does not answer.
    pub async fn unproven_sandbox_image(&self) -> Result<Option<(String, Vec<String>)>, String> {
        let backend = Backend::detached(&self.0.endpoint);
        let discovery = &self.0.discovery;
        let found = async {
            let handlers = discovery.handlers(&backend).await?;
            let needs_proof = |name: &&str| discovery.needs_proof(name);
            let names: BTreeSet<&str> = handlers.snapshotters().filter(needs_proof).collect();
            let image = match names.is_empty() {
                true => None,
                false => discovery.sandbox_image(&backend).await?,
            };
            let Some(image) = image else {
                return Ok(None);
            };
            let mut unproven = Vec::new();
            for name in names {
                let is_ready = self.0.service.is_ready(&image.value, name, handlers.pick);
                if matches!(is_ready.await, Ok(false)) {
                    unproven.push(name.to_owned());
                }
            }
            Ok(Some((image.value, unproven)).filter(|(_, unproven)| !unproven.is_empty()))
        };
        found.await.map_err(|status: Status| status.to_string())
    }

    /// Waits until the thread that serves clients has responded, which it does not while it hangs.
    /// Returns at once if there is no such thread.
    pub async fn alive(&self) {
        self.0.client_thread.responds().await;
    }

    /// Serves clients until `stop` is cancelled. Then waits up to `grace` for their calls to end, answers
    /// the others with an error, and returns. Clients that connect meanwhile are served as well,
    /// until the last of those calls has ended. Dropping the future cuts all connections.
    ///
    /// The unpack service is called in the runtime of the caller. Calls are forwarded in a thread of
    /// their own.
    ///
    /// # Errors
    /// If that thread cannot be started.
    pub async fn serve(
        &self,
        listener: UnixListener,
        stop: CancellationToken,
        grace: Duration,
    ) -> io::Result<()> {
        let clients = Clients::start(Arc::clone(&self.0))?;
        tokio::select! {
            never = accept(&listener, &clients) => match never {},
            () = stop.cancelled() => {}
        }
        let stopped = Instant::now();
        // A client that connects now is served until the end, or by the next proxy at this socket.
        let late = Clients::start(Arc::clone(&self.0))?;
        tokio::select! {
            never = accept(&listener, &late) => match never {},
            () = clients.end(grace.saturating_sub(LATE_RESERVE)) => {}
        }
        drop(listener);
        late.end(grace.saturating_sub(stopped.elapsed())).await;
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn state(&self) -> &Arc<ProxyState> {
        &self.0
    }
}

/// Accepts clients for ever.
async fn accept(listener: &UnixListener, clients: &Clients) -> Infallible {
    loop {
        let accepted = listener.accept().await;
        let served = accepted.and_then(|(stream, _)| clients.serve(stream.into_std()?));
        if let Err(error) = served {
            // Most likely there are no file descriptors left: wait until some are closed.
            tracing::warn!(%error, "could not accept a client");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
