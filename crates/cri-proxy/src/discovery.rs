// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What the proxy finds out from containerd's CRI: which handler and which pod has which
//! snapshotter, and which image pods have for their sandbox.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resnap_core::LabelRequirement;
use serde_json::Value;

use crate::facts::{FactSource, Handlers, Sourced};
use crate::grpc::Status;
use crate::messages::{
    ImageFsInfoResponse, ListImagesResponse, ListPodSandboxResponse, Nothing,
    PodSandboxStatusRequest, PodSandboxStatusResponse, StatusRequest, StatusResponse,
    VersionResponse,
};
use crate::pass::Backend;
use crate::settings::ProxySettings;

/// Most pods that are remembered; a node has a few hundred.
const MAX_SANDBOXES: usize = 4096;

/// Where containerd's snapshotters are, below its root.
const PLUGIN: &str = "io.containerd.snapshotter.v1.";

/// What was found out. Pods do not change their snapshotter, so it is asked for once each.
#[derive(Debug)]
pub(crate) struct Discovery {
    pub(crate) settings: ProxySettings,
    handlers: Mutex<Option<Arc<Handlers>>>,
    sandboxes: Mutex<HashMap<String, String>>,
}

impl Discovery {
    pub(crate) fn new(settings: ProxySettings) -> Self {
        Self {
            settings,
            handlers: Mutex::default(),
            sandboxes: Mutex::default(),
        }
    }

    /// What a snapshotter needs labels for.
    pub(crate) fn label_requirement(&self, snapshotter: &str) -> Option<&LabelRequirement> {
        self.settings.profiles.need(snapshotter)
    }

    /// Whether images are made ready on a snapshotter.
    pub(crate) fn is_watched(&self, handlers: &Handlers, snapshotter: &str) -> bool {
        self.settings.always || !handlers.is_default(snapshotter)
    }

    /// Forgets what a containerd may have been restarted without.
    pub(crate) fn forget_handlers(&self) {
        *self.known_handlers() = None;
    }

    /// The handlers; they are asked for once as long as no connection to containerd is made.
    pub(crate) async fn handlers(&self, backend: &Backend) -> Result<Arc<Handlers>, Status> {
        backend.connect().await?;
        if let Some(known) = self.known_handlers().clone() {
            return Ok(known);
        }
        let handlers = Arc::new(self.fetch_handlers(backend).await?);
        *self.known_handlers() = Some(Arc::clone(&handlers));
        Ok(handlers)
    }

    async fn fetch_handlers(&self, backend: &Backend) -> Result<Handlers, Status> {
        let status: StatusResponse = backend
            .unary(
                "/runtime.v1.RuntimeService/Status",
                &StatusRequest { verbose: true },
            )
            .await?;
        let config = status.info.get("config").map(String::as_str);
        let config: Value = serde_json::from_str(config.unwrap_or("{}")).unwrap_or_default();
        let mut default = None;
        if config["containerd"]["snapshotter"].as_str().is_none() {
            // containerd 2.x tells it by the place of its images only.
            let answer: ImageFsInfoResponse = backend
                .unary("/runtime.v1.ImageService/ImageFsInfo", &Nothing {})
                .await?;
            let first = answer.image_filesystems.into_iter().next();
            let root = first.and_then(|usage| usage.fs_id).map(|id| id.mountpoint);
            default = root.and_then(|root| Some(root.rsplit_once(PLUGIN)?.1.to_owned()));
        }
        let version: VersionResponse = backend
            .unary("/runtime.v1.RuntimeService/Version", &Nothing {})
            .await?;
        let mut handlers = Handlers::read(&config, default, &version.runtime_version);
        handlers.apply_settings(&self.settings);
        Ok(handlers)
    }

    fn known_handlers(&self) -> MutexGuard<'_, Option<Arc<Handlers>>> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The snapshotter of a pod; `None` if neither containerd nor the configuration says.
    pub(crate) async fn snapshotter_of(
        &self,
        backend: &Backend,
        sandbox: &str,
    ) -> Result<Option<String>, Status> {
        if let Some(known) = self.sandboxes().get(sandbox) {
            return Ok(Some(known.clone()));
        }
        let status = sandbox_status(backend, sandbox).await?;
        let snapshotter = match text(&info(&status)["snapshotter"]) {
            Some(snapshotter) => snapshotter,
            None => {
                // Other sandbox controllers than containerd's first do not tell.
                let handlers = self.handlers(backend).await?;
                let handler = status.status.unwrap_or_default().runtime_handler;
                match handlers.snapshotter(&handler) {
                    Some(snapshotter) => snapshotter.to_owned(),
                    None => return Ok(None),
                }
            }
        };
        let mut sandboxes = self.sandboxes();
        if sandboxes.len() >= MAX_SANDBOXES {
            // Those that run are asked for again; those that are gone are not missed.
            sandboxes.clear();
        }
        sandboxes.insert(sandbox.to_owned(), snapshotter.clone());
        Ok(Some(snapshotter))
    }

    /// The image of sandboxes, and who says so; `None` if nobody does.
    pub(crate) async fn sandbox_image(
        &self,
        backend: &Backend,
    ) -> Result<Option<Sourced<String>>, Status> {
        let handlers = self.handlers(backend).await?;
        if handlers.sandbox_image.is_some() {
            return Ok(handlers.sandbox_image.clone());
        }
        let answer: ListImagesResponse = backend
            .unary("/runtime.v1.ImageService/ListImages", &Nothing {})
            .await?;
        // containerd 2.x pins it, and nothing else unless it is told to.
        let mut pinned = answer.images.into_iter().filter(|image| image.pinned);
        let only = match (pinned.next(), pinned.next()) {
            (Some(image), None) => image.repo_tags.into_iter().next(),
            _ => None,
        };
        if let Some(image) = only {
            return Ok(Some(Sourced::new(image, FactSource::Containerd)));
        }
        let answer: ListPodSandboxResponse = backend
            .unary("/runtime.v1.RuntimeService/ListPodSandbox", &Nothing {})
            .await?;
        let youngest = answer.items.into_iter().max_by_key(|item| item.created_at);
        let Some(youngest) = youngest else {
            return Ok(None);
        };
        Ok(Self::image_of(backend, &youngest.id)
            .await?
            .map(|image| Sourced::new(image, FactSource::PodSandboxStatus)))
    }

    /// The image that a pod has for its sandbox, if containerd says.
    pub(crate) async fn image_of(
        backend: &Backend,
        sandbox: &str,
    ) -> Result<Option<String>, Status> {
        let status = sandbox_status(backend, sandbox).await?;
        Ok(text(&info(&status)["image"]))
    }

    fn sandboxes(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.sandboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

async fn sandbox_status(
    backend: &Backend,
    sandbox: &str,
) -> Result<PodSandboxStatusResponse, Status> {
    let request = PodSandboxStatusRequest {
        pod_sandbox_id: sandbox.to_owned(),
        verbose: true,
    };
    backend
        .unary("/runtime.v1.RuntimeService/PodSandboxStatus", &request)
        .await
}

fn info(status: &PodSandboxStatusResponse) -> Value {
    let info = status.info.get("info").map(String::as_str);
    serde_json::from_str(info.unwrap_or("{}")).unwrap_or_default()
}

fn text(value: &Value) -> Option<String> {
    let text = value.as_str().filter(|text| !text.is_empty());
    text.map(str::to_owned)
}
