// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Calls that are looked at, and the images they need.

use resnap_core::ManifestPreference;

use crate::facts::Handlers;
use crate::messages::{CreateContainerRequest, ImageSpec, RunPodSandboxRequest};

/// A call that is looked at.
#[derive(Debug, Clone)]
pub(crate) enum CriRequest {
    RunPodSandbox(RunPodSandboxRequest),
    CreateContainer(CreateContainerRequest),
}

impl CriRequest {
    /// The method's name in the CRI.
    pub(crate) fn method(&self) -> &'static str {
        match self {
            Self::RunPodSandbox(_) => "RunPodSandbox",
            Self::CreateContainer(_) => "CreateContainer",
        }
    }

    /// The pod it is for, as `namespace/name`.
    pub(crate) fn pod(&self) -> Option<String> {
        let config = match self {
            Self::RunPodSandbox(request) => request.config.as_ref(),
            Self::CreateContainer(request) => request.sandbox_config.as_ref(),
        };
        let metadata = config?.metadata.as_ref()?;
        Some(format!("{}/{}", metadata.namespace, metadata.name))
    }

    /// The container it is for; empty for a sandbox.
    pub(crate) fn container(&self) -> &str {
        let Self::CreateContainer(request) = self else {
            return "";
        };
        let config = request.config.as_ref();
        let metadata = config.and_then(|config| config.metadata.as_ref());
        metadata.map_or("", |metadata| &metadata.name)
    }
}

/// What a call needs.
#[derive(Debug, Default)]
pub(crate) struct Requirements {
    /// To be ready there.
    pub(crate) images: Vec<RequiredImage>,
    /// To be mounted on the host, of a snapshotter that may show nothing there.
    pub(crate) guest_volumes: Vec<RequiredImage>,
}

/// An image, as the CRI names it, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequiredImage {
    pub(crate) image: String,
    /// What the user wrote; not known from old kubelets.
    pub(crate) reference: Option<String>,
    pub(crate) snapshotter: String,
    /// The pod it is for, as `namespace/name`.
    pub(crate) pod: Option<String>,
    /// Which manifest containerd takes.
    pub(crate) pick: ManifestPreference,
}

impl RequiredImage {
    pub(crate) fn new(
        spec: ImageSpec,
        snapshotter: &str,
        handlers: &Handlers,
        pod: Option<String>,
    ) -> Self {
        Self {
            image: spec.image,
            reference: Some(spec.user_specified_image).filter(|text| !text.is_empty()),
            snapshotter: snapshotter.to_owned(),
            pod,
            pick: handlers.pick,
        }
    }

    /// The image of a sandbox, that the CRI names nowhere.
    pub(crate) fn of_sandbox(
        image: String,
        snapshotter: &str,
        handlers: &Handlers,
        pod: Option<String>,
    ) -> Self {
        let spec = ImageSpec {
            image,
            ..ImageSpec::default()
        };
        Self::new(spec, snapshotter, handlers, pod)
    }

    /// Its name for people: as the user wrote it, with its ID where that is another.
    pub(crate) fn name(&self) -> String {
        match &self.reference {
            Some(reference) if *reference != self.image => format!("{reference} ({})", self.image),
            _ => self.image.clone(),
        }
    }
}
