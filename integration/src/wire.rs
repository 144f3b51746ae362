// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! gRPC as bytes: a client on one HTTP/2 connection that knows no message and adds no header.

use std::path::Path;

use anyhow::{Context as _, Result};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{Error, SendStream};
use tokio::net::UnixStream;
use tonic::codegen::http::{HeaderMap, Request, request};

/// Large messages need not wait for each other.
const WINDOW: u32 = 32 << 20;

/// A connection; it does not come back once it has ended.
#[derive(Debug, Clone)]
pub struct Wire(SendRequest<Bytes>);

/// An answer that came to its end.
#[derive(Debug)]
pub struct Reply {
    /// Its headers.
    pub headers: HeaderMap,
    /// Messages with their prefixes.
    pub body: Bytes,
    /// Empty where there are none.
    pub trailers: HeaderMap,
}

impl Reply {
    /// gRPC's status, which a whole answer has.
    pub fn status(&self) -> Option<u16> {
        let all = self.trailers.get("grpc-status");
        let status = all.or_else(|| self.headers.get("grpc-status"))?;
        status.to_str().ok()?.parse().ok()
    }
}

impl Wire {
    /// Connects; the connection is driven by the runtime that this is called in.
    ///
    /// # Errors
    /// If nobody listens there, or speaks no HTTP/2.
    pub async fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket).await;
        let stream = stream.with_context(|| format!("connect to {socket:?}"))?;
        let (connection, driver) = h2::client::Builder::new()
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .enable_push(false)
            .handshake(stream)
            .await?;
        // Its errors come to the calls as well.
        tokio::spawn(driver);
        Ok(Self(connection))
    }

    /// Returns the beginning of a request to a method with its full path; headers can be added.
    pub fn to(path: &str) -> request::Builder {
        Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
    }

    /// Sends the headers of a request. Dropping what this gives takes the call back.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn open(
        &self,
        request: Request<()>,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), Error> {
        self.0.clone().ready().await?.send_request(request, false)
    }

    /// A call with this body, to the end of its answer.
    ///
    /// # Errors
    /// If the call or the connection was broken off.
    pub async fn call(&self, request: Request<()>, body: Bytes) -> Result<Reply, Error> {
        let (reply, mut to) = self.open(request).await?;
        to.send_data(body, true)?;
        let (head, mut from) = reply.await?.into_parts();
        let mut body = BytesMut::new();
        while let Some(bytes) = from.data().await {
            let bytes = bytes?;
            from.flow_control().release_capacity(bytes.len())?;
            body.extend_from_slice(&bytes);
        }
        Ok(Reply {
            headers: head.headers,
            body: body.freeze(),
            trailers: from.trailers().await?.unwrap_or_default(),
        })
    }
}

/// Returns a message with its prefix.
pub fn frame(message: &[u8]) -> Bytes {
    let mut framed = BytesMut::with_capacity(5 + message.len());
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.put_slice(message);
    framed.freeze()
}
