// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! containerd's differ service, served to containerd: a diff plugin (containerd
//! `api/services/diff/v1/diff.proto`, `core/diff/proxy`).
//!
//! | call of Apply | answer |
//! |---|---|
//! | with the mark of this process | Unimplemented: it is a call of this process that came back |
//! | with another mark | that of containerd's own service: another process of resnap left it to containerd |
//! | of a layer that is written here | the descriptor of the uncompressed layer |
//! | of another layer | that of containerd's own service; Unimplemented for a call without a namespace |
//!
//! containerd's diff service asks the next differ after Unimplemented, and its transfer service fails the pull.
//! containerd 1.7 names no namespace, which its own service needs, but asks by its diff service only, unless
//! configured otherwise. Diff is never implemented.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use containerd_client::services::v1::{ApplyRequest, ApplyResponse};
use containerd_client::types::Descriptor as DescriptorMessage;
use futures::TryStreamExt as _;
use futures::future::BoxFuture;
use http::uri::PathAndQuery;
use prost::Message as _;
use resnap_authority::AnyAuthority;
use resnap_core::media_type::{Format, layer};
use resnap_core::{Applied, Descriptor, Error, Mount, error_chain};
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::metadata::MetadataMap;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Code, Request, Response, Status};
use tower::Service;

use crate::connection::{Connection, MAX_MESSAGE_BYTES};
use crate::mark::{is_mark, mark, with_mark};
use crate::mounts::from_message;
use crate::raw::RawCodec;

/// The limit on concurrent calls.
const MAX_CALLS: u32 = 4096;

/// The time for the last answers to be sent.
const FLUSH: Duration = Duration::from_secs(1);

const APPLY: PathAndQuery = PathAndQuery::from_static("/containerd.services.diff.v1.Diff/Apply");

const NAMESPACE: &str = "containerd-namespace";

/// The metadata of a call that containerd's own service gets.
const FORWARDED: [&str; 2] = [NAMESPACE, "containerd-lease"];

/// The media type of what a tar layer is when it is applied.
const APPLIED: &str = "application/vnd.oci.image.layer.v1.tar";

/// A layer that containerd asks for.
#[derive(Debug, Clone)]
pub struct AskedLayer {
    /// The namespace of the client; empty if it is not known.
    pub namespace: String,
    /// The blob.
    pub layer: Descriptor,
    /// The mounts of its active snapshot.
    pub mounts: Vec<Mount>,
    /// Whether it is flushed to disk.
    pub sync_fs: bool,
    /// containerd's process number.
    pub process: u32,
}

/// Writes the layers that containerd asks for.
#[async_trait]
pub trait LayerWriter: Send + Sync {
    /// Writes a layer. Returns `None`, with nothing written, if containerd has to write it. The future is
    /// dropped when the caller is gone: the writing ends soon after.
    async fn write(&self, asked: AskedLayer) -> Result<Option<Applied>, Error>;
}

/// A server of containerd's differ service.
#[derive(Clone)]
pub struct DiffServer(Arc<State>);

struct State {
    containerd: Connection,
    writer: Arc<dyn LayerWriter>,
    /// Each call holds a permit.
    calls: Semaphore,
}

impl std::fmt::Debug for DiffServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DiffServer").finish_non_exhaustive()
    }
}

impl DiffServer {
    pub(crate) fn new(containerd: Connection, writer: Arc<dyn LayerWriter>) -> Self {
        Self(Arc::new(State {
            containerd,
            writer,
            calls: Semaphore::new(MAX_CALLS as usize),
        }))
    }

    /// Serves until `stop` is set. Then it accepts no more calls, and lets others end within `grace`.
    ///
    /// # Errors
    /// Errors of the listener, as text.
    pub async fn serve(
        self,
        listener: UnixListener,
        stop: CancellationToken,
        grace: Duration,
    ) -> Result<(), String> {
        let serving = Server::builder()
            .max_concurrent_streams(MAX_CALLS)
            .add_service(self.clone())
            .serve_with_incoming_shutdown(
                UnixListenerStream::new(listener).map_ok(AnyAuthority::new),
                stop.clone().cancelled_owned(),
            );
        let over = async {
            stop.cancelled().await;
            // Idle connections are not waited for.
            let calls = self.0.calls.acquire_many(MAX_CALLS);
            if timeout(grace, calls).await.is_ok() {
                sleep(FLUSH).await;
            }
        };
        tokio::select! {
            ended = serving => ended.map_err(|error| error_chain(&error)),
            () = over => Ok(()),
        }
    }
}

impl State {
    async fn apply(&self, request: Request<Bytes>) -> Result<Response<Bytes>, Status> {
        let call = self.calls.acquire().await;
        let _call = call.map_err(|_| Status::unavailable("the service has ended"))?;
        let info = request.extensions().get::<UdsConnectInfo>();
        let peer = info.and_then(|info| info.peer_cred?.pid());
        let process = peer.and_then(|pid| u32::try_from(pid).ok());
        let (metadata, _, bytes) = request.into_parts();
        let message = ApplyRequest::decode(bytes.clone())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let diff = message.diff.clone().unwrap_or_default();
        if diff.annotations.contains_key(mark()) {
            return Err(Status::unimplemented(
                "resnap left this layer to containerd",
            ));
        }
        let is_marked = diff.annotations.keys().any(|key| is_mark(key));
        if !is_marked
            && let Some(process) = process
            && let Some(asked) = asked(message, &metadata, process)
        {
            let written = self.writer.write(asked).await;
            if let Some(applied) = written.map_err(|error| status(&error))? {
                return Ok(Response::new(response(&diff, applied)?));
            }
        }
        self.hand_over(&bytes, &metadata).await
    }

    /// Returns the answer of containerd's own service.
    async fn hand_over(
        &self,
        request: &Bytes,
        metadata: &MetadataMap,
    ) -> Result<Response<Bytes>, Status> {
        if !metadata.contains_key(NAMESPACE) {
            return Err(Status::unimplemented("resnap does not write this layer"));
        }
        let mut marked = Request::new(with_mark(request));
        for name in FORWARDED {
            if let Some(value) = metadata.get(name) {
                marked.metadata_mut().insert(name, value.clone());
            }
        }
        let mut grpc = tonic::client::Grpc::new(self.containerd.channel())
            .max_decoding_message_size(MAX_MESSAGE_BYTES);
        let ready = grpc.ready().await;
        ready.map_err(|error| Status::from_error(error.into()))?;
        let answered = grpc.unary(marked, APPLY, RawCodec).await;
        let answer = answered.map_err(|status| {
            // Without its metadata, which is that of another connection.
            Status::with_details(
                status.code(),
                status.message(),
                Bytes::copy_from_slice(status.details()),
            )
        })?;
        Ok(Response::new(answer.into_inner()))
    }
}

/// Returns the layer of a call, unless it makes no sense to resnap.
fn asked(message: ApplyRequest, metadata: &MetadataMap, process: u32) -> Option<AskedLayer> {
    let diff = message.diff?;
    let namespace = metadata.get(NAMESPACE).map(|value| value.to_str());
    Some(AskedLayer {
        namespace: namespace.transpose().ok()?.unwrap_or_default().to_owned(),
        layer: Descriptor {
            media_type: diff.media_type,
            digest: diff.digest.parse().ok()?,
            size: u64::try_from(diff.size).ok()?,
            annotations: diff.annotations.into_iter().collect(),
            platform: None,
        },
        mounts: message.mounts.into_iter().map(from_message).collect(),
        sync_fs: message.sync_fs,
        process,
    })
}

/// Returns the answer for a layer that was written: as that of containerd's differs, of which the one for EROFS
/// answers with the descriptor of a layer that is an image.
fn response(diff: &DescriptorMessage, applied: Applied) -> Result<Bytes, Status> {
    let diff_id = applied.diff_id;
    let diff_id = diff_id.ok_or_else(|| Status::internal("the layer has no diff ID"))?;
    let media_type = match layer(&diff.media_type) {
        Some((Format::Erofs, _)) => &*diff.media_type,
        _ => APPLIED,
    };
    let response = ApplyResponse {
        applied: Some(DescriptorMessage {
            media_type: media_type.to_owned(),
            digest: diff_id.to_string(),
            size: i64::try_from(applied.size).unwrap_or(i64::MAX),
            ..DescriptorMessage::default()
        }),
    };
    Ok(response.encode_to_vec().into())
}

fn status(error: &Error) -> Status {
    let code = Code::from_i32(error.kind().code().into());
    Status::new(code, format!("resnap: {}", error_chain(error)))
}

/// The method Apply.
struct Apply(Arc<State>);

impl UnaryService<Bytes> for Apply {
    type Response = Bytes;
    type Future = BoxFuture<'static, Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        let state = Arc::clone(&self.0);
        Box::pin(async move { state.apply(request).await })
    }
}

impl NamedService for DiffServer {
    const NAME: &'static str = "containerd.services.diff.v1.Diff";
}

impl Service<http::Request<Body>> for DiffServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let apply = Apply(Arc::clone(&self.0));
        Box::pin(async move {
            if request.uri().path() != APPLY.path() {
                return Ok(Status::unimplemented("resnap only applies layers").into_http());
            }
            let grpc = tonic::server::Grpc::new(RawCodec);
            let mut grpc = grpc.max_decoding_message_size(MAX_MESSAGE_BYTES);
            Ok(grpc.unary(apply, request).await)
        })
    }
}

#[cfg(test)]
mod tests {
    use resnap_core::Digest;

    use super::*;

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn diff(media_type: &str) -> DescriptorMessage {
        DescriptorMessage {
            media_type: media_type.to_owned(),
            digest: Digest::sha256(b"blob").to_string(),
            size: 7,
            ..DescriptorMessage::default()
        }
    }

    #[test]
    fn answers_are_those_of_containerds_differs() {
        let erofs = "application/vnd.erofs.layer.v1";
        for (media_type, answer) in [(LAYER, APPLIED), (APPLIED, APPLIED), (erofs, erofs)] {
            let applied = |diff_id| Applied {
                diff_id,
                size: 1 << 40,
                is_own_image: false,
                proof: None,
            };
            let diff_id = Digest::sha256(b"layer");
            let answered = response(&diff(media_type), applied(Some(diff_id.clone()))).unwrap();
            let answered = ApplyResponse::decode(answered).unwrap().applied.unwrap();
            assert_eq!(answered.media_type, answer);
            assert_eq!(answered.digest, diff_id.to_string());
            assert_eq!(answered.size, 1 << 40);
            assert!(response(&diff(media_type), applied(None)).is_err());
        }
    }

    #[test]
    fn calls_are_read_with_and_without_a_namespace() {
        let message = |digest: &str, size| ApplyRequest {
            diff: Some(DescriptorMessage {
                digest: digest.to_owned(),
                size,
                ..diff(LAYER)
            }),
            sync_fs: true,
            ..ApplyRequest::default()
        };
        let digest = Digest::sha256(b"blob").to_string();
        let mut metadata = MetadataMap::new();
        let read = |message, metadata: &MetadataMap| asked(message, metadata, 3);
        let without = read(message(&digest, 7), &metadata).unwrap();
        assert_eq!((&*without.namespace, without.process), ("", 3));
        metadata.insert(NAMESPACE, "k8s.io".parse().unwrap());
        let with = read(message(&digest, 7), &metadata).unwrap();
        assert_eq!(with.namespace, "k8s.io");
        assert!(with.sync_fs);
        for wrong in [
            message("sha256:0", 7),
            message(&digest, -1),
            ApplyRequest::default(),
        ] {
            assert!(read(wrong, &metadata).is_none());
        }
    }
}
