// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A server that answers the CRI as containerd does.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderName, Request, Response};
use tokio::net::UnixListener;
use tokio::task::{AbortHandle, JoinSet};

use crate::grpc::{Status, decode, encode};
use crate::messages::{
    Empty, Image, ImageStatusResponse, ListPodSandboxResponse, PodSandbox, PodSandboxStatusRequest,
    PodSandboxStatusResponse, RunPodSandboxRequest, RunPodSandboxResponse, StatusResponse,
    VersionResponse,
};

/// The state that survives a restart of the server.
#[derive(Debug)]
pub(super) struct Containerd {
    /// The methods of the calls received to their ends.
    calls: Mutex<Vec<String>>,
    /// The errors that the next calls of a method get.
    errors: Mutex<HashMap<&'static str, VecDeque<Status>>>,
    /// The methods that never answer.
    pub(super) hanging: Mutex<Vec<&'static str>>,
    /// The snapshotters of the handlers of the same names.
    pub(super) handlers: Mutex<Vec<&'static str>>,
    /// The sandbox image in the configuration.
    pub(super) sandbox_image: Mutex<&'static str>,
    /// The sandboxes that are ready.
    pub(super) sandboxes: Mutex<Vec<PodSandbox>>,
    pub(super) version: Mutex<&'static str>,
    /// The bodies of the requests to pull images.
    pub(super) pulls: Mutex<Vec<Vec<u8>>>,
}

/// The ID of every image.
pub(super) const IMAGE_ID: &str =
    "sha256:4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44de311d1";

impl Default for Containerd {
    fn default() -> Self {
        Self {
            calls: Mutex::default(),
            errors: Mutex::default(),
            hanging: Mutex::default(),
            handlers: Mutex::new(vec!["nydus", "erofs", "stargz"]),
            sandbox_image: Mutex::new("pause:3"),
            sandboxes: Mutex::default(),
            version: Mutex::default(),
            pulls: Mutex::default(),
        }
    }
}

impl Containerd {
    /// Starts a server at `socket`. Aborting it closes its connections.
    pub(super) fn serve(self: &Arc<Self>, socket: &Path) -> AbortHandle {
        let listener = UnixListener::bind(socket).unwrap();
        let this = Arc::clone(self);
        let serve = async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let this = Arc::clone(&this);
                connections.spawn(async move {
                    let mut connection = h2::server::handshake(stream).await.unwrap();
                    let mut calls = JoinSet::new();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        calls.spawn(Arc::clone(&this).answer(request, respond));
                    }
                });
            }
        };
        tokio::spawn(serve).abort_handle()
    }

    /// Makes the next call of a method fail.
    pub(super) fn fail(&self, method: &'static str, status: Status) {
        let mut errors = self.errors.lock().unwrap();
        errors.entry(method).or_default().push_back(status);
    }

    /// Records a call as if it had been received.
    pub(super) fn received(&self, method: &str) {
        self.calls.lock().unwrap().push(method.to_owned());
    }

    pub(super) fn count(&self, method: &str) -> usize {
        let calls = self.calls.lock().unwrap();
        calls.iter().filter(|call| *call == method).count()
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) -> Option<()> {
        let (head, mut from) = request.into_parts();
        let mut body = Vec::new();
        while let Some(bytes) = from.data().await {
            let bytes = bytes.ok()?;
            from.flow_control().release_capacity(bytes.len()).ok()?;
            body.extend_from_slice(&bytes);
        }
        let (_, method) = head.uri.path().rsplit_once('/')?;
        self.received(method);
        if self.hanging.lock().unwrap().contains(&method) {
            std::future::pending::<()>().await;
        }
        let error = {
            let mut errors = self.errors.lock().unwrap();
            errors.get_mut(method).and_then(VecDeque::pop_front)
        };
        if let Some(error) = error {
            respond.send_response(error.into_response(), true).ok()?;
            return Some(());
        }
        let response = self.response(method, &body)?;
        let mut to = respond.send_response(Response::new(()), false).ok()?;
        to.send_data(response, false).ok()?;
        if method == "GetContainerEvents" {
            // A stream has no end.
            std::future::pending::<()>().await;
        }
        let ok = HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), 0.into())]);
        to.send_trailers(ok).ok()
    }

    fn response(&self, method: &str, body: &[u8]) -> Option<Bytes> {
        let response = match method {
            "Status" => encode(&StatusResponse {
                info: HashMap::from([("config".to_owned(), self.config())]),
            }),
            // A pod has the name of its snapshotter.
            "PodSandboxStatus" => {
                let name = decode::<PodSandboxStatusRequest>(body)?.pod_sandbox_id;
                let info = format!(r#"{{ "snapshotter": "{name}", "image": "pause:of-pod" }}"#);
                encode(&PodSandboxStatusResponse {
                    status: None,
                    info: HashMap::from([("info".to_owned(), info)]),
                })
            }
            // There is a sandbox once one was created.
            "ListPodSandbox" => {
                let mut items = self.sandboxes.lock().unwrap().clone();
                items.extend((0..self.count("RunPodSandbox").min(1)).map(|_| PodSandbox {
                    id: "nydus".to_owned(),
                    created_at: 1,
                    ..PodSandbox::default()
                }));
                encode(&ListPodSandboxResponse { items })
            }
            "RunPodSandbox" => encode(&RunPodSandboxResponse {
                id: decode::<RunPodSandboxRequest>(body)?.runtime_handler,
            }),
            "ImageStatus" => encode(&ImageStatusResponse {
                image: Some(Image {
                    id: IMAGE_ID.to_owned(),
                    ..Image::default()
                }),
            }),
            "Version" => encode(&VersionResponse {
                runtime_version: self.version.lock().unwrap().to_string(),
            }),
            "PullImage" => {
                self.pulls.lock().unwrap().push(body.to_vec());
                encode(&Empty {})
            }
            _ => encode(&Empty {}),
        };
        response.ok()
    }

    fn config(&self) -> String {
        let handlers = self.handlers.lock().unwrap();
        let handlers = handlers
            .iter()
            .map(|name| format!(r#""{name}": {{ "snapshotter": "{name}" }}"#));
        let handlers = handlers.collect::<Vec<_>>().join(", ");
        let image = self.sandbox_image.lock().unwrap();
        format!(
            r#"{{
                "sandboxImage": "{image}",
                "containerd": {{ "snapshotter": "overlayfs", "runtimes": {{ {handlers} }} }}
            }}"#
        )
    }
}
