// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Connections of clients. Each has one connection to containerd.
//!
//! All calls of a client and both connections are one task, and all clients share one thread: a
//! message that passes wakes no other thread. With several threads, a third of the time goes into
//! waking them.

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};
use h2::server::Connection;
use resnap_authority::AnyAuthority;
use resnap_core::Kind;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::backend::{Backend, log_end};
use crate::call::ProxiedCall;
use crate::call_record::CallRecord;
use crate::limits::{LAST_RESERVE, server_builder};
use crate::runtime::ServiceRuntime;
use crate::shutdown::{Shutdown, ShutdownPhase};
use crate::state::{ClientContext, ProxyState};

/// Serves a connection until it ends.
pub(crate) async fn serve_connection(
    state: Arc<ProxyState>,
    service_runtime: ServiceRuntime,
    stream: UnixStream,
    shutdown: Shutdown,
) {
    let connect = async {
        // Defers the handshake, and its buffers, until the client sends something. Errors surface
        // on read.
        let _ = stream.readable().await;
        let stream = AnyAuthority::new(stream);
        server_builder().handshake(stream).await
    };
    let connected = tokio::select! {
        connected = connect => connected,
        () = shutdown.reached(ShutdownPhase::Draining) => return,
    };
    let ended = match connected {
        Ok(connection) => serve_calls(&state, service_runtime, connection, &shutdown).await,
        Err(error) => Err(error),
    };
    match ended {
        Err(error) if error.is_library() => {
            CallRecord::start(state.observer.as_ref(), "").set_outcome(Err(Kind::Internal));
            tracing::warn!(%error, "refused a client that violates the HTTP/2 protocol");
        }
        Err(error) => tracing::debug!(%error, "the connection of a client ended"),
        Ok(()) => {}
    }
}

async fn serve_calls(
    state: &Arc<ProxyState>,
    service_runtime: ServiceRuntime,
    mut connection: Connection<AnyAuthority<UnixStream>, Bytes>,
    shutdown: &Shutdown,
) -> Result<(), h2::Error> {
    let (send, mut drivers) = mpsc::unbounded_channel();
    let client = ClientContext {
        state: Arc::clone(state),
        service_runtime,
        backend: Backend::new(Arc::clone(&state.endpoint), send),
    };
    let mut backends = FuturesUnordered::new();
    let mut calls = FuturesUnordered::new();
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            Some(ended) = backends.next() => log_end(ended),
            Some(driver) = drivers.recv() => backends.push(driver),
            call = connection.accept() => match call {
                Some(call) => {
                    let (request, respond) = call?;
                    let call = ProxiedCall { client: &client, shutdown };
                    // Boxed, since the set reserves space for one future, and most clients make no
                    // call at a time.
                    calls.push(Box::pin(call.serve(request, respond)));
                }
                None => return Ok(()),
            },
            Some(()) = calls.next() => {}
            () = shutdown.reached(ShutdownPhase::Draining), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            // The client has not closed the connection after GOAWAY, and has no open call.
            () = tokio::time::sleep(LAST_RESERVE), if draining && calls.is_empty() => return Ok(()),
        }
    }
}
