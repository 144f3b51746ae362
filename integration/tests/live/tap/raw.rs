// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A gRPC client on one HTTP/2 connection that does what it is told and no more.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use prost::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::Status;
use tonic::codegen::http::Request;

/// The limit of a call.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

/// A connection; it does not come back once it has ended.
pub(super) struct Raw {
    runtime: Runtime,
    connection: SendRequest<Bytes>,
}

/// A call whose request can go on; dropping it takes the call back by a reset.
pub(super) struct Asked {
    request: SendStream<Bytes>,
    reply: ResponseFuture,
}

/// A call with one answer that can go on.
pub(super) struct Stream {
    _request: SendStream<Bytes>,
    _reply: RecvStream,
}

impl Raw {
    pub(super) fn connect(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let connection = runtime.block_on(async {
            let stream = UnixStream::connect(socket).await?;
            let (connection, driver) = h2::client::handshake(stream).await?;
            // Its errors come to the calls as well.
            tokio::spawn(driver);
            anyhow::Ok(connection)
        })?;
        Ok(Self {
            runtime,
            connection,
        })
    }

    /// A unary call of which only the status counts.
    pub(super) fn call(&self, path: &str, message: &impl Message) -> Result<(), Status> {
        self.within(async {
            let asked = self.send(path, "default", message, true).await?;
            let (_, mut reply) = asked.answer().await?;
            while let Some(bytes) = reply.data().await {
                let bytes = bytes.map_err(broken)?;
                let room = reply.flow_control().release_capacity(bytes.len());
                room.map_err(broken)?;
            }
            let trailers = reply.trailers().await.map_err(broken)?;
            match trailers.as_ref().and_then(Status::from_header_map) {
                Some(status) if status.code() == tonic::Code::Ok => Ok(()),
                Some(status) => Err(status),
                None => Err(Status::internal("no status in the trailers")),
            }
        })
    }

    /// Sends the first message of a stream.
    pub(super) fn ask(
        &self,
        path: &str,
        namespace: &str,
        message: &impl Message,
    ) -> Result<Asked, Status> {
        self.within(self.send(path, namespace, message, false))
    }

    /// Sends the first message of a stream and waits for the first of the reply.
    pub(super) fn begin(
        &self,
        path: &str,
        namespace: &str,
        message: &impl Message,
    ) -> Result<Stream, Status> {
        self.within(async {
            let asked = self.send(path, namespace, message, false).await?;
            let (request, mut reply) = asked.answer().await?;
            if let Some(bytes) = reply.data().await {
                bytes.map_err(broken)?;
                return Ok(Stream {
                    _request: request,
                    _reply: reply,
                });
            }
            let trailers = reply.trailers().await.map_err(broken)?.unwrap_or_default();
            Err(Status::from_header_map(&trailers).unwrap_or_else(|| Status::internal("nothing")))
        })
    }

    async fn send(
        &self,
        path: &str,
        namespace: &str,
        message: &impl Message,
        end: bool,
    ) -> Result<Asked, Status> {
        let request = Request::post(format!("http://localhost{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("containerd-namespace", namespace)
            .body(())
            .map_err(|error| Status::internal(error.to_string()))?;
        let length = message.encoded_len();
        let mut bytes = BytesMut::with_capacity(length + 5);
        bytes.put_u8(0);
        bytes.put_u32(length.try_into().unwrap_or(u32::MAX));
        bytes.extend_from_slice(&message.encode_to_vec());

        let mut connection = self.connection.clone().ready().await.map_err(broken)?;
        let (reply, mut request) = connection.send_request(request, false).map_err(broken)?;
        request.send_data(bytes.freeze(), end).map_err(broken)?;
        Ok(Asked { request, reply })
    }

    fn within<T>(&self, work: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        self.runtime.block_on(async {
            let done = tokio::time::timeout(DEADLINE, work).await;
            done.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")))
        })
    }
}

impl Asked {
    async fn answer(self) -> Result<(SendStream<Bytes>, RecvStream), Status> {
        let (head, reply) = self.reply.await.map_err(broken)?.into_parts();
        // An error without a reply comes in the headers.
        Status::from_header_map(&head.headers).map_or(Ok((self.request, reply)), Err)
    }
}

fn broken(error: h2::Error) -> Status {
    Status::unavailable(error.to_string())
}
