// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A client's connection and the one to containerd that belongs to it: both end together.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use h2::Reason;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;

use super::forward;
use super::link::Link;
use super::record::Shared;
use super::rule::Side;

/// Room for what is on its way in one stream.
const STREAM_WINDOW: u32 = 1 << 20;

/// A stream that is held must not take the others' room.
const CONNECTION_WINDOW: u32 = 256 << 20;

/// The time that answers have to reach the client after containerd's connection has ended.
const LAST: Duration = Duration::from_millis(200);

/// Serves all clients until it is dropped, or no more can come.
pub(super) async fn accept(listener: UnixListener, backend: PathBuf, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    let serve = serve(client, backend.clone(), shared.clone());
                    connections.spawn(serve);
                }
                Err(error) => return shared.problem(format!("no more clients: {error}")),
            },
            Some(result) = connections.join_next() => {
                if let Err(error) = result {
                    shared.problem(format!("a connection's task: {error}"));
                }
            }
        }
    }
}

async fn serve(client: UnixStream, backend: PathBuf, shared: Arc<Shared>) {
    // A client gets to know by the end of its connection that nobody is there.
    let Ok(backend) = UnixStream::connect(backend).await else {
        return;
    };
    let pid = |stream: &UnixStream| stream.peer_cred().ok().and_then(|peer| peer.pid());
    let (client_pid, backend_pid) = (pid(&client), pid(&backend));

    let handshake = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .enable_push(false)
        .handshake(backend);
    let (send, mut backend) = match handshake.await {
        Ok(connected) => connected,
        Err(error) => return note(&shared, Side::Backend, &error),
    };
    let Some(pings) = backend.ping_pong() else {
        return shared.problem("a new connection has no pings");
    };
    let link = Arc::new(Link {
        shared: shared.clone(),
        backend: send,
        pings: Mutex::new(pings),
        cut: Notify::new(),
        client_pid,
        backend_pid,
    });

    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake(client);
    let mut client = match handshake.await {
        Ok(client) => client,
        Err(error) => return note(&shared, Side::Client, &error),
    };
    let mut calls = JoinSet::new();
    loop {
        tokio::select! {
            // Nothing may be written any more after a cut.
            biased;
            () = link.cut.notified() => return,
            result = &mut backend => {
                result.unwrap_or_else(|error| note(&shared, Side::Backend, &error));
                break;
            }
            next = client.accept() => match next {
                Some(Ok((request, respond))) => {
                    calls.spawn(forward::serve(link.clone(), request, respond));
                }
                Some(Err(error)) => return note(&shared, Side::Client, &error),
                None => return,
            },
            Some(result) = calls.join_next() => {
                if let Err(error) = result {
                    shared.problem(format!("a call's task: {error}"));
                }
            }
        }
    }
    // The last answers may have come with the end.
    let last = async {
        // New calls see the end of the connection, too: dropped, each would be reset.
        let mut late = Vec::new();
        while !calls.is_empty() {
            tokio::select! {
                next = client.accept() => match next {
                    Some(Ok(call)) => late.push(call),
                    // Without a client nobody waits for what is left, which may not end.
                    Some(Err(_)) | None => return,
                },
                _ = calls.join_next() => {}
            }
        }
        client.graceful_shutdown();
        while let Some(Ok(call)) = client.accept().await {
            late.push(call);
        }
    };
    // Calls that have no answer see the end of the connection.
    let _ = tokio::time::timeout(LAST, last).await;
}

/// Peers may leave in whatever way, and processes may die; anything else is against the protocol.
fn note(shared: &Shared, side: Side, error: &h2::Error) {
    let left = error.is_io() || error.reason() == Some(Reason::NO_ERROR);
    if !left {
        shared.problem(format!("the connection of the {side:?}: {error}"));
    }
}
