// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The inspected CRI requests, and the images that they need.

use resnap_core::{Kind, ManifestPreference, PodId, Volumes};

use crate::backend::Backend;
use crate::discovery::Discovery;
use crate::facts::Handlers;
use crate::grpc::Status;
use crate::messages::{
    ContainerConfig, CreateContainerRequest, ImageSpec, PodSandboxMetadata, RunPodSandboxRequest,
};

/// A CRI request that may need an image.
#[derive(Debug, Clone)]
pub(crate) enum CriRequest {
    RunPodSandbox(RunPodSandboxRequest),
    CreateContainer(CreateContainerRequest),
}

impl CriRequest {
    /// Returns the name of the method in the CRI.
    pub(crate) fn method(&self) -> &'static str {
        match self {
            Self::RunPodSandbox(_) => "RunPodSandbox",
            Self::CreateContainer(_) => "CreateContainer",
        }
    }

    /// Returns the pod.
    pub(crate) fn pod(&self) -> Option<PodId> {
        let metadata = match self {
            Self::RunPodSandbox(request) => request.config.as_ref()?.metadata.as_ref(),
            Self::CreateContainer(request) => request.sandbox_config.as_ref()?.metadata.as_ref(),
        };
        metadata.map(PodSandboxMetadata::pod)
    }

    /// Returns the name of the container; empty for a sandbox.
    pub(crate) fn container(&self) -> &str {
        let Self::CreateContainer(request) = self else {
            return "";
        };
        let config = request.config.as_ref();
        let metadata = config.and_then(|config| config.metadata.as_ref());
        metadata.map_or("", |metadata| &metadata.name)
    }
}

/// The images that a request needs.
#[derive(Debug, Default)]
pub(crate) struct Requirements {
    /// The images to make ready.
    pub(crate) images: Vec<RequiredImage>,
    /// Image volumes on a snapshotter whose images may have no files on the host.
    pub(crate) guest_volumes: Vec<RequiredImage>,
}

/// An image as the CRI names it, and the snapshotter that needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequiredImage {
    pub(crate) image: String,
    /// The reference in the pod's specification. Old kubelets do not send it.
    pub(crate) reference: Option<String>,
    pub(crate) snapshotter: String,
    pub(crate) pod: Option<PodId>,
    /// The manifest that containerd chooses.
    pub(crate) pick: ManifestPreference,
}

impl RequiredImage {
    pub(crate) fn new(
        spec: ImageSpec,
        snapshotter: &str,
        handlers: &Handlers,
        pod: Option<PodId>,
    ) -> Self {
        Self {
            image: spec.image,
            reference: Some(spec.user_specified_image).filter(|text| !text.is_empty()),
            snapshotter: snapshotter.to_owned(),
            pod,
            pick: handlers.pick,
        }
    }

    /// Returns the name for messages: the reference of the pod, and the image ID where it differs.
    pub(crate) fn name(&self) -> String {
        match &self.reference {
            Some(reference) if *reference != self.image => format!("{reference} ({})", self.image),
            _ => self.image.clone(),
        }
    }
}

/// The snapshotters for which requirements are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SnapshotterScope {
    /// Those on which images are made ready before containerd needs them.
    Watched,
    All,
}

/// Returns what a request needs; `None` if its snapshotter is unknown or not in `scope`.
///
/// # Errors
/// The error of containerd, if it does not answer; or the reason why it is not known whether the request
/// needs layers with a proof.
pub(crate) async fn requirements(
    discovery: &Discovery,
    backend: &Backend,
    request: &CriRequest,
    scope: SnapshotterScope,
) -> Result<Option<Requirements>, Status> {
    let pod = request.pod();
    match request {
        CriRequest::RunPodSandbox(request) => {
            let handlers = discovery.handlers(backend).await?;
            let snapshotter = sandbox_snapshotter(discovery, &handlers, request, scope);
            let Some(snapshotter) = snapshotter else {
                let is_known = handlers.snapshotter(&request.runtime_handler).is_some();
                return none(discovery, is_known);
            };
            let image = sandbox_image(discovery, backend, &handlers, snapshotter, pod).await?;
            if image.is_none() && discovery.needs_proof(snapshotter) {
                return Err(unproven(format!(
                    "no source names the sandbox image, whose layers need a proof on {snapshotter}: set `sandbox_image` in [cri]"
                )));
            }
            Ok(Some(Requirements {
                images: image.into_iter().collect(),
                guest_volumes: Vec::new(),
            }))
        }
        CriRequest::CreateContainer(request) => {
            let Some(config) = &request.config else {
                return Ok(None);
            };
            let sandbox = &request.pod_sandbox_id;
            let Some(snapshotter) = discovery.snapshotter_of(backend, sandbox).await? else {
                return none(discovery, false);
            };
            let handlers = discovery.handlers(backend).await?;
            let in_scope =
                scope == SnapshotterScope::All || discovery.is_watched(&handlers, &snapshotter);
            Ok(in_scope.then(|| {
                let volumes = discovery.settings.profiles.get(&snapshotter).volumes;
                container_images(
                    config,
                    volumes,
                    |spec| RequiredImage::new(spec, &snapshotter, &handlers, pod.clone()),
                    &handlers,
                )
            }))
        }
    }
}

/// Returns that a request needs nothing, unless its snapshotter is not known and layers may need a proof there.
fn none(discovery: &Discovery, is_known: bool) -> Result<Option<Requirements>, Status> {
    match is_known || !discovery.needs_proofs() {
        true => Ok(None),
        false => Err(unproven(
            "the snapshotter of the pod is not known, and its layers may need a proof: set `handlers` in [cri]",
        )),
    }
}

fn unproven(why: impl Into<String>) -> Status {
    Status::new(Kind::FailedPrecondition, why)
}

/// Returns the snapshotter of a sandbox whose image containerd takes from there; `None` if it is
/// unknown or not in `scope`.
pub(crate) fn sandbox_snapshotter<'a>(
    discovery: &Discovery,
    handlers: &'a Handlers,
    request: &RunPodSandboxRequest,
    scope: SnapshotterScope,
) -> Option<&'a str> {
    let handler = &request.runtime_handler;
    let snapshotter = handlers.snapshotter(handler)?;
    let in_scope = scope == SnapshotterScope::All || discovery.is_watched(handlers, snapshotter);
    (in_scope && !handlers.has_external_sandboxer(handler)).then_some(snapshotter)
}

/// Returns the sandbox image. CRI requests do not name it.
pub(crate) async fn sandbox_image(
    discovery: &Discovery,
    backend: &Backend,
    handlers: &Handlers,
    snapshotter: &str,
    pod: Option<PodId>,
) -> Result<Option<RequiredImage>, Status> {
    let image = discovery.sandbox_image(backend).await?;
    Ok(image.map(|image| {
        let spec = ImageSpec {
            image: image.value,
            ..ImageSpec::default()
        };
        RequiredImage::new(spec, snapshotter, handlers, pod)
    }))
}

fn container_images(
    config: &ContainerConfig,
    visible: Volumes,
    required: impl Fn(ImageSpec) -> RequiredImage,
    handlers: &Handlers,
) -> Requirements {
    let named = |spec: &ImageSpec| !spec.image.is_empty();
    let mut images: Vec<_> = config.image.clone().into_iter().map(&required).collect();
    let volumes = config.mounts.iter().filter_map(|mount| mount.image.clone());
    let volumes = volumes.filter(named).map(&required);
    let mut guest_volumes = Vec::new();
    match visible {
        Volumes::Host => images.extend(volumes),
        Volumes::HostExcept { from, until }
            if !handlers.is_at_least(from) || handlers.is_at_least(until) =>
        {
            images.extend(volumes);
        }
        Volumes::Guest => guest_volumes.extend(volumes),
        // Unpacking them here would change nothing about what containerd mounts.
        Volumes::HostExcept { .. } | Volumes::Unknown => {}
    }
    Requirements {
        images,
        guest_volumes,
    }
}
