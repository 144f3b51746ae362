// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What the proxy finds out from containerd's CRI: which handler and which pod has which
//! snapshotter, and which image pods have for their sandbox.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;

use crate::grpc::Status;
use crate::messages::{
    ImageFsInfoResponse, Info, ListImagesResponse, Nothing, PodSandboxStatusRequest, StatusRequest,
};
use crate::pass::Backend;

/// Most pods that are remembered; a node has a few hundred.
const MAX_SANDBOXES: usize = 4096;

/// Where containerd's snapshotters are, below its root.
const PLUGIN: &str = "io.containerd.snapshotter.v1.";

/// What was found out. Pods do not change their snapshotter, so it is asked for once each.
#[derive(Debug, Default)]
pub(crate) struct Knowledge {
    handlers: Mutex<Option<Arc<Handlers>>>,
    sandboxes: Mutex<HashMap<String, String>>,
}

/// The runtime handlers of a containerd.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Handlers {
    /// Their snapshotters; a handler without one of its own is not there.
    snapshotters: BTreeMap<String, String>,
    default_handler: String,
    /// That of all others.
    default_snapshotter: String,
    /// The image of sandboxes, where containerd says it (1.x).
    sandbox_image: Option<String>,
}

impl Handlers {
    /// The snapshotter of a handler, if it is not the default one.
    pub(crate) fn special(&self, handler: &str) -> Option<&str> {
        let handler = match handler {
            "" => &self.default_handler,
            handler => handler,
        };
        let snapshotter = self.snapshotters.get(handler)?;
        (*snapshotter != self.default_snapshotter).then_some(snapshotter)
    }

    /// Whether this is the snapshotter for which containerd pulls.
    pub(crate) fn is_default(&self, snapshotter: &str) -> bool {
        self.default_snapshotter == snapshotter
    }

    /// What containerd's configuration says, as its CRI tells it.
    fn read(config: &Value, default_snapshotter: Option<String>) -> Self {
        let containerd = &config["containerd"];
        let runtimes = containerd["runtimes"].as_object().into_iter().flatten();
        let snapshotters = runtimes.filter_map(|(name, runtime)| {
            let snapshotter = runtime["snapshotter"].as_str()?;
            (!snapshotter.is_empty()).then(|| (name.clone(), snapshotter.to_owned()))
        });
        let text = |value: &Value| value.as_str().map(str::to_owned);
        Self {
            snapshotters: snapshotters.collect(),
            default_handler: text(&containerd["defaultRuntimeName"]).unwrap_or_default(),
            default_snapshotter: text(&containerd["snapshotter"])
                .or(default_snapshotter)
                .unwrap_or_default(),
            sandbox_image: text(&config["sandboxImage"]),
        }
    }
}

impl Knowledge {
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
        let handlers = Arc::new(Self::ask(backend).await?);
        *self.known_handlers() = Some(Arc::clone(&handlers));
        Ok(handlers)
    }

    async fn ask(backend: &Backend) -> Result<Handlers, Status> {
        let status: Info = backend
            .ask(
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
                .ask("/runtime.v1.ImageService/ImageFsInfo", &Nothing {})
                .await?;
            let first = answer.image_filesystems.into_iter().next();
            let root = first.and_then(|usage| usage.fs_id).map(|id| id.mountpoint);
            default = root.and_then(|root| Some(root.rsplit_once(PLUGIN)?.1.to_owned()));
        }
        Ok(Handlers::read(&config, default))
    }

    fn known_handlers(&self) -> MutexGuard<'_, Option<Arc<Handlers>>> {
        self.handlers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The snapshotter of a pod; `None` if containerd does not say.
    pub(crate) async fn snapshotter_of(
        &self,
        backend: &Backend,
        sandbox: &str,
    ) -> Result<Option<String>, Status> {
        if let Some(known) = self.sandboxes().get(sandbox) {
            return Ok(Some(known.clone()));
        }
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: sandbox.to_owned(),
            verbose: true,
        };
        let status: Info = backend
            .ask("/runtime.v1.RuntimeService/PodSandboxStatus", &request)
            .await?;
        let info = status.info.get("info").map(String::as_str);
        let info: Value = serde_json::from_str(info.unwrap_or("{}")).unwrap_or_default();
        let snapshotter = info["snapshotter"].as_str().unwrap_or_default().to_owned();
        if snapshotter.is_empty() {
            return Ok(None);
        }
        let mut sandboxes = self.sandboxes();
        if sandboxes.len() >= MAX_SANDBOXES {
            // Those that run are asked for again; those that are gone are not missed.
            sandboxes.clear();
        }
        sandboxes.insert(sandbox.to_owned(), snapshotter.clone());
        Ok(Some(snapshotter))
    }

    /// The image of sandboxes, if it can be told.
    pub(crate) async fn sandbox_image(
        &self,
        backend: &Backend,
        handlers: &Handlers,
    ) -> Result<Option<String>, Status> {
        if handlers.sandbox_image.is_some() {
            return Ok(handlers.sandbox_image.clone());
        }
        let answer: ListImagesResponse = backend
            .ask("/runtime.v1.ImageService/ListImages", &Nothing {})
            .await?;
        // containerd 2.x pins it, and nothing else unless it is told to.
        let mut pinned = answer.images.into_iter().filter(|image| image.pinned);
        match (pinned.next(), pinned.next()) {
            (Some(image), None) => Ok(image.repo_tags.into_iter().next()),
            _ => Ok(None),
        }
    }

    fn sandboxes(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.sandboxes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn handlers_of_all_versions_are_read() {
        let runtimes = json!({ "runc": { "snapshotter": "" }, "kata": { "snapshotter": "nydus" } });
        let old = json!({
            "containerd": { "snapshotter": "overlayfs", "defaultRuntimeName": "runc", "runtimes": runtimes },
            "sandboxImage": "pause:3",
        });
        let new = json!({ "containerd": { "defaultRuntimeName": "runc", "runtimes": runtimes } });
        let old = Handlers::read(&old, None);
        let new = Handlers::read(&new, Some("overlayfs".to_owned()));
        for handlers in [&old, &new] {
            assert_eq!(handlers.special("kata"), Some("nydus"));
            assert_eq!(handlers.special("runc"), None);
            assert_eq!(handlers.special(""), None);
            assert_eq!(handlers.special("unknown"), None);
            assert!(handlers.is_default("overlayfs"));
        }
        assert_eq!(old.sandbox_image.as_deref(), Some("pause:3"));
        let odd = Handlers::read(&Value::Null, None);
        assert_eq!(odd.special("kata"), None);
    }
}
