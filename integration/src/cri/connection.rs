// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A blocking connection to the CRI.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hyper_util::rt::TokioIo;
use prost::Message;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// The default limit of one call, which is kubelet's.
const CALL: Duration = Duration::from_secs(120);

/// A connection, made on first use and again after it broke.
#[derive(Debug)]
pub(super) struct Connection {
    runtime: Runtime,
    channel: Channel,
    timeout: Duration,
}

impl Connection {
    pub(super) fn new(socket: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start a tokio runtime for the CRI's client")?;
        let path = socket.to_owned();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = {
            let _entered = runtime.enter();
            Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
        };
        Ok(Self {
            runtime,
            channel,
            timeout: CALL,
        })
    }

    /// Sets the limit of each call, which goes along as its deadline.
    pub(super) fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    pub(super) fn call<Q, A>(&self, service: &str, method: &str, request: Q) -> Result<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/runtime.v1.{service}/{method}"))?;
        let mut grpc =
            tonic::client::Grpc::new(self.channel.clone()).max_decoding_message_size(16 << 20);
        let mut request = Request::new(request);
        request.set_timeout(self.timeout);
        let answer = self.runtime.block_on(async {
            grpc.ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            grpc.unary(request, path, codec).await
        });
        answer
            .map(tonic::Response::into_inner)
            .map_err(|status| anyhow!(status).context(format!("CRI {method}")))
    }
}
