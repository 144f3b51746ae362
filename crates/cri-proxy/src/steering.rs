// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Steering pulls: a pull that passes names the runtime handler of its pod, so that containerd unpacks
//! the image for that handler, with the credentials of the pull, and fetches what it had discarded.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use resnap_core::{PodId, Volumes};
use tokio::time::timeout;

use crate::facts::{HandlerField, Handlers};
use crate::grpc::Status;
use crate::messages::{
    ClientImageSpec, ClientPullRequest, ClientSandboxConfig, PodSandboxMetadata,
};
use crate::pods::{self, Pod};
use crate::pull_memory::MAX_NAME;
use crate::settings::When;
use crate::state::ClientContext;

/// The annotation by which a sandbox names the handler of a pull (containerd
/// `internal/cri/annotations`, `RuntimeHandler`).
const HANDLER_ANNOTATION: &str = "io.containerd.cri.runtime-handler";

/// The time in which it is decided whether to steer a pull.
const DECISION_TIMEOUT: Duration = Duration::from_secs(5);

/// A pull of a client.
#[derive(Debug)]
pub(crate) struct ClientPull {
    pub(crate) image: String,
    /// The pod that the request names.
    pub(crate) pod: Option<PodId>,
    /// `None` if the image is not made ready for a handler after the pull.
    pub(crate) target: Option<PullTarget>,
}

/// The pod of a pull, and where the pod needs the image.
#[derive(Debug, Clone)]
pub(crate) struct PullTarget {
    pub(crate) pod: Pod,
    pub(crate) snapshotter: String,
    pub(crate) handlers: Arc<Handlers>,
    /// The handler that the pull names; `None` if it is not steered.
    pub(crate) steered_to: Option<String>,
}

impl PullTarget {
    /// Returns the encoded field that steers the pull when it is appended to the request.
    pub(crate) fn field(&self) -> Option<Vec<u8>> {
        let handler = self.steered_to.as_ref()?;
        Some(encoded(self.handlers.handler_field()?, handler))
    }
}

/// Finds the target of a pull, and decides whether to steer it there. Whatever cannot be found out in
/// time leaves the pull as it is.
pub(crate) async fn plan(client: &ClientContext, request: &ClientPullRequest) -> ClientPull {
    let image = request.image.as_ref().map(|spec| spec.image.clone());
    let image = image.unwrap_or_default();
    let config = request.sandbox_config.as_ref();
    let metadata = config.and_then(|config| config.metadata.as_ref());
    let pod = metadata.map(PodSandboxMetadata::pod);
    let target = async {
        let mut target = target(client, request).await?;
        if let Some(target) = &mut target {
            target.steered_to = steered_to(client, request, target).await;
        }
        Ok::<_, Status>(target)
    };
    let target = match timeout(DECISION_TIMEOUT, target).await {
        Ok(Ok(target)) => target,
        Ok(Err(error)) => {
            tracing::debug!(%error, image, "the pod of a pull was not found");
            None
        }
        Err(_) => {
            tracing::info!(image, "no decision on a pull within {DECISION_TIMEOUT:?}");
            None
        }
    };
    ClientPull { image, pod, target }
}

async fn target(
    client: &ClientContext,
    request: &ClientPullRequest,
) -> Result<Option<PullTarget>, Status> {
    let config = request.sandbox_config.as_ref();
    let metadata = config.and_then(|config| config.metadata.as_ref());
    let is_named = |spec: &ClientImageSpec| (1..=MAX_NAME).contains(&spec.image.len());
    let (Some(metadata), true) = (metadata, request.image.as_ref().is_some_and(is_named)) else {
        return Ok(None);
    };
    let handlers = client.state.discovery.handlers(&client.backend).await?;
    if !client.state.discovery.watches_any(&handlers) {
        return Ok(None);
    }
    let Some(pod) = pods::with_metadata(&client.backend, metadata).await? else {
        return Ok(None);
    };
    Ok(
        snapshotter(client, &handlers, &pod.handler).map(|snapshotter| PullTarget {
            pod,
            snapshotter,
            handlers: Arc::clone(&handlers),
            steered_to: None,
        }),
    )
}

/// Returns the snapshotter of a handler if images may be made ready there before it is known whether
/// they are for a container or a volume: with labels, a volume would be empty where only guests see files.
pub(crate) fn snapshotter(
    client: &ClientContext,
    handlers: &Handlers,
    handler: &str,
) -> Option<String> {
    let discovery = &client.state.discovery;
    let snapshotter = handlers.snapshotter(handler)?;
    let is_guest = discovery.settings.profiles.get(snapshotter).volumes == Volumes::Guest;
    let is_wanted = discovery.is_watched(handlers, snapshotter) && !is_guest;
    is_wanted.then(|| snapshotter.to_owned())
}

/// Returns the handler to which to steer a pull, if it is to be steered.
async fn steered_to(
    client: &ClientContext,
    request: &ClientPullRequest,
    target: &PullTarget,
) -> Option<String> {
    let discovery = &client.state.discovery;
    let policy = discovery.settings.steer_pulls;
    let PullTarget {
        pod,
        snapshotter,
        handlers,
        ..
    } = target;
    let image = &request.image.as_ref()?.image;
    let handler = handlers.pull_handler(&pod.handler)?;
    // containerd would unpack layers without the proof that they need there.
    if policy == When::Never
        || discovery.needs_proof(snapshotter)
        || handlers.handler_field().is_none()
        || names_handler(request)
        || handlers.is_default(snapshotter)
        || !client.state.pull_memory.is_steerable(image, handler)
    {
        return None;
    }
    // A steered pull of an image that is nowhere would leave it without layers on the default snapshotter.
    // Where the blobs are then discarded, containerd can never start it there.
    if policy == When::Safe {
        let default = handlers.default_snapshotter()?;
        if !client.is_ready(image, default, handlers.pick).await
            || client.is_ready(image, snapshotter, handlers.pick).await
        {
            return None;
        }
    }
    Some(handler.to_owned())
}

/// Returns whether the client itself names a handler.
fn names_handler(request: &ClientPullRequest) -> bool {
    let spec = request.image.as_ref();
    let config = request.sandbox_config.as_ref();
    spec.is_some_and(|spec| !spec.runtime_handler.is_empty())
        || config.is_some_and(|config| config.annotations.contains_key(HANDLER_ANNOTATION))
}

/// Encodes a PullImageRequest with nothing but the handler. A parser of protobuf merges it with the
/// request that it is appended to.
fn encoded(field: HandlerField, handler: &str) -> Vec<u8> {
    let mut request = ClientPullRequest::default();
    match field {
        HandlerField::ImageSpec => {
            request.image = Some(ClientImageSpec {
                runtime_handler: handler.to_owned(),
                ..ClientImageSpec::default()
            });
        }
        HandlerField::Annotation => {
            let annotation = (HANDLER_ANNOTATION.to_owned(), handler.to_owned());
            request.sandbox_config = Some(ClientSandboxConfig {
                annotations: HashMap::from([annotation]),
                ..ClientSandboxConfig::default()
            });
        }
    }
    request.encode_to_vec()
}
