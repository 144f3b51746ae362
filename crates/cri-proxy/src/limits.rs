// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Limits on memory and concurrency, and the HTTP/2 settings made of them.

use std::time::Duration;

use h2::{client, server};

use crate::grpc::PREFIX_LEN;

/// The largest response to a call of the proxy's own: containerd sends no larger message.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

/// The largest request that is inspected, twice the size of a pod that etcd stores. A larger one is
/// forwarded uninspected.
pub(crate) const MAX_PEEKED: usize = 4 << 20;

/// The bytes of all requests together that are read for inspection, beyond what every client may
/// send unasked.
pub(crate) const PEEK_BUDGET: usize = MAX_PEEKED + PREFIX_LEN;

/// The bytes of all inspected requests together that wait for their image or for containerd.
pub(crate) const MAX_HELD: usize = 64 << 20;

/// The images that are looked at after pulls, or made ready for ImageStatus, at once, where no call waits
/// for the end.
pub(crate) const MAX_BACKGROUND: usize = 64;

/// The largest headers or trailers: gRPC puts error messages into them.
const MAX_HEADERS: u32 = 1 << 20;

/// The flow-control window of a call, in each direction.
const STREAM_WINDOW: u32 = 256 << 10;

/// The flow-control window of all calls of a client together. As many calls as have their windows in it, less one,
/// may not be read without stopping the others.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// The bytes of a call that h2 buffers after the receiver granted a window for them.
const SEND_BUFFER: usize = 64 << 10;

/// The concurrent calls of a client. Its further calls wait.
const MAX_CALLS: u32 = 1024;

/// The part of the grace period that is kept to answer the calls that have not ended, and to let
/// endless streams end by themselves.
pub(crate) const LAST_RESERVE: Duration = Duration::from_secs(1);

/// The part of the grace period that is kept for clients that connect while calls end.
pub(crate) const LATE_RESERVE: Duration = Duration::from_secs(3);

/// Returns the settings of connections to containerd.
pub(crate) fn client_builder() -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .enable_push(false);
    builder
}

/// Returns the settings of connections of clients.
pub(crate) fn server_builder() -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .max_header_list_size(MAX_HEADERS)
        .max_send_buffer_size(SEND_BUFFER)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(MAX_CALLS);
    builder
}
