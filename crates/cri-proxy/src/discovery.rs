// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Discovery through containerd's CRI: the snapshotters of runtime handlers and of pods, and the sandbox
//! image.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use resnap_core::LabelRequirement;
use serde_json::Value;

use crate::backend::Backend;
use crate::facts::{FactSource, Handlers, Sourced};
use crate::grpc::Status;
use crate::messages::{
    Empty, ImageFsInfoResponse, ListImagesResponse, ListPodSandboxResponse,
    PodSandboxStatusRequest, PodSandboxStatusResponse, StatusRequest, StatusResponse,
    VersionResponse,
};
use crate::settings::ProxySettings;

/// The most pods that are remembered. A node runs a few hundred.
const MAX_SANDBOXES: usize = 4096;

/// The directory of a snapshotter below containerd's root, without its name.
const SNAPSHOTTER_DIR: &str = "io.containerd.snapshotter.v1.";

/// The settings, and a cache of what containerd said.
#[derive(Debug)]
pub(crate) struct Discovery {
    pub(crate) settings: ProxySettings,
    handlers: Mutex<Option<KnownHandlers>>,
    /// The snapshotter of each pod. A pod never changes its snapshotter.
    sandboxes: Mutex<HashMap<String, String>>,
}

/// The handlers, and the generation of the connection in which they were read.
#[derive(Debug)]
struct KnownHandlers {
    generation: u64,
    handlers: Arc<Handlers>,
}

impl Discovery {
    pub(crate) fn new(settings: ProxySettings) -> Self {
        Self {
            settings,
            handlers: Mutex::default(),
            sandboxes: Mutex::default(),
        }
    }

    /// Returns which labels a snapshotter needs, if any.
    pub(crate) fn label_requirement(&self, snapshotter: &str) -> Option<&LabelRequirement> {
        self.settings.profiles.need(snapshotter)
    }

    /// Returns whether images are made ready on a snapshotter.
    pub(crate) fn is_watched(&self, handlers: &Handlers, snapshotter: &str) -> bool {
        self.settings.always || self.needs_proof(snapshotter) || !handlers.is_default(snapshotter)
    }

    /// Returns whether layers on a snapshotter need a proof.
    pub(crate) fn needs_proof(&self, snapshotter: &str) -> bool {
        self.settings.profiles.get(snapshotter).integrity.is_on()
    }

    /// Returns whether layers on any snapshotter need a proof.
    pub(crate) fn needs_proofs(&self) -> bool {
        let mut profiles = self.settings.profiles.iter();
        profiles.any(|(_, profile)| profile.integrity.is_on())
    }

    /// Returns whether images are made ready on any snapshotter.
    pub(crate) fn watches_any(&self, handlers: &Handlers) -> bool {
        let mut snapshotters = handlers.snapshotters();
        snapshotters.any(|snapshotter| self.is_watched(handlers, snapshotter))
    }

    /// Returns the handlers. They are read again after any new connection to containerd, which may
    /// have been restarted with another configuration.
    pub(crate) async fn handlers(&self, backend: &Backend) -> Result<Arc<Handlers>, Status> {
        let generation = backend.generation().await?;
        if let Some(known) = self.known_handlers().as_ref()
            && known.generation == generation
        {
            return Ok(Arc::clone(&known.handlers));
        }
        let handlers = Arc::new(self.fetch_handlers(backend).await?);
        *self.known_handlers() = Some(KnownHandlers {
            generation,
            handlers: Arc::clone(&handlers),
        });
        Ok(handlers)
    }

    async fn fetch_handlers(&self, backend: &Backend) -> Result<Handlers, Status> {
        let path = "/runtime.v1.RuntimeService/Status";
        let request = StatusRequest { verbose: true };
        let status: StatusResponse = backend.unary(path, &request).await?;
        let config = status.info.get("config").map(String::as_str);
        let config: Value = serde_json::from_str(config.unwrap_or("{}")).unwrap_or_default();
        let mut default = None;
        if config["containerd"]["snapshotter"].as_str().is_none() {
            // containerd 2.x shows the default snapshotter only in the path of its images.
            let path = "/runtime.v1.ImageService/ImageFsInfo";
            let response: ImageFsInfoResponse = backend.unary(path, &Empty {}).await?;
            let first = response.image_filesystems.into_iter().next();
            let root = first.and_then(|usage| usage.fs_id).map(|id| id.mountpoint);
            default = root.and_then(|root| Some(root.rsplit_once(SNAPSHOTTER_DIR)?.1.to_owned()));
        }
        let path = "/runtime.v1.RuntimeService/Version";
        let version: VersionResponse = backend.unary(path, &Empty {}).await?;
        let mut handlers = Handlers::from_config(&config, default, &version.runtime_version);
        handlers.apply_settings(&self.settings);
        Ok(handlers)
    }

    fn known_handlers(&self) -> MutexGuard<'_, Option<KnownHandlers>> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the snapshotter of a pod; `None` if neither containerd nor the settings say.
    pub(crate) async fn snapshotter_of(
        &self,
        backend: &Backend,
        sandbox: &str,
    ) -> Result<Option<String>, Status> {
        if let Some(known) = self.sandboxes().get(sandbox) {
            return Ok(Some(known.clone()));
        }
        let status = sandbox_status(backend, sandbox).await?;
        let snapshotter = match non_empty(&verbose_info(&status)["snapshotter"]) {
            Some(snapshotter) => snapshotter,
            None => {
                // Only the sandbox controller `podsandbox` reports it.
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
            // Running pods are looked up again; removed ones are not needed.
            sandboxes.clear();
        }
        sandboxes.insert(sandbox.to_owned(), snapshotter.clone());
        Ok(Some(snapshotter))
    }

    /// Returns the sandbox image and the source that names it; `None` if no source does.
    pub(crate) async fn sandbox_image(
        &self,
        backend: &Backend,
    ) -> Result<Option<Sourced<String>>, Status> {
        let handlers = self.handlers(backend).await?;
        if handlers.sandbox_image.is_some() {
            return Ok(handlers.sandbox_image.clone());
        }
        let path = "/runtime.v1.ImageService/ListImages";
        let response: ListImagesResponse = backend.unary(path, &Empty {}).await?;
        // containerd 2.x pins the sandbox image, and by default no other.
        let mut pinned = response.images.into_iter().filter(|image| image.pinned);
        let only = match (pinned.next(), pinned.next()) {
            (Some(image), None) => image.repo_tags.into_iter().next(),
            _ => None,
        };
        if let Some(image) = only {
            return Ok(Some(Sourced::new(image, FactSource::Containerd)));
        }
        let path = "/runtime.v1.RuntimeService/ListPodSandbox";
        let response: ListPodSandboxResponse = backend.unary(path, &Empty {}).await?;
        let sandboxes = response.items.into_iter();
        let Some(newest) = sandboxes.max_by_key(|sandbox| sandbox.created_at) else {
            return Ok(None);
        };
        let status = sandbox_status(backend, &newest.id).await?;
        let image = non_empty(&verbose_info(&status)["image"]);
        Ok(image.map(|image| Sourced::new(image, FactSource::PodSandboxStatus)))
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
    let path = "/runtime.v1.RuntimeService/PodSandboxStatus";
    backend.unary(path, &request).await
}

/// Returns the undocumented part of a status, which `verbose` asks for.
fn verbose_info(status: &PodSandboxStatusResponse) -> Value {
    let info = status.info.get("info").map(String::as_str);
    serde_json::from_str(info.unwrap_or("{}")).unwrap_or_default()
}

fn non_empty(value: &Value) -> Option<String> {
    let text = value.as_str().filter(|text| !text.is_empty());
    text.map(str::to_owned)
}
