// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What happens before a call is forwarded, and after containerd failed at it.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::try_join_all;
use resnap_core::{EnsureProgress, EnsureRequest, Error, Kind, NotReady, Volumes, error_chain};
use tokio::runtime::Handle;

use crate::clients::in_runtime;
use crate::deadline::Deadline;
use crate::discovery::Discovery;
use crate::facts::Handlers;
use crate::failure::unpack_failure;
use crate::grpc::{
    DEADLINE_EXCEEDED, FAILED_PRECONDITION, NOT_FOUND, Status, UNAVAILABLE, UNKNOWN, code,
};
use crate::held::HeldRequest;
use crate::messages::{CreateContainerRequest, ImageSpec};
use crate::observe::{ForwardReason, ProxyEvent};
use crate::pass::{Backend, ProxyState};
use crate::pull::pull;
use crate::requirements::{CriRequest, RequiredImage, Requirements};
use crate::settings::Unlabelled;

/// Whether somebody said what a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    Known,
    Unknown,
}

/// A look at one call.
pub(crate) struct Preflight<'a> {
    pub(crate) proxy: &'a Arc<ProxyState>,
    pub(crate) backend: &'a Backend,
    /// Where the unpack service is at home, and what goes on without a client.
    pub(crate) service_runtime: &'a Handle,
    pub(crate) call: &'a CriRequest,
    pub(crate) deadline: Option<Deadline>,
    /// The request, if a caller waits for its answer.
    pub(crate) kept: Option<&'a HeldRequest<'a>>,
}

/// containerd took a call of which nobody knew what it needed: now that can be found out.
pub(crate) fn ensure_later(proxy: &Arc<ProxyState>, service_runtime: &Handle, call: CriRequest) {
    let (proxy, runtime) = (Arc::clone(proxy), service_runtime.clone());
    service_runtime.spawn(async move {
        let look = Preflight {
            proxy: &proxy,
            backend: &Backend::detached(&proxy),
            service_runtime: &runtime,
            call: &call,
            deadline: None,
            kept: None,
        };
        look.after().await;
    });
}

impl Preflight<'_> {
    /// Makes ready what the call needs, as far as that is known. Ends with an answer for the caller
    /// if the call is not to be forwarded.
    pub(crate) async fn before(&self) -> Result<Resolution, Status> {
        let requirements = match self.requirements(false).await {
            Ok(Some(requirements)) => requirements,
            Ok(None) => return Ok(Resolution::Known),
            Err(error) => {
                self.forwarded(ForwardReason::Unresolved, None, &error);
                return Ok(Resolution::Known);
            }
        };
        let is_sandbox = matches!(self.call, CriRequest::RunPodSandbox(_));
        if is_sandbox && requirements.images.is_empty() {
            return Ok(Resolution::Unknown);
        }
        let images = requirements.images.iter();
        // What a sandbox lacks, containerd would pull.
        try_join_all(images.map(|required| self.ensure(required, is_sandbox))).await?;
        for required in &requirements.guest_volumes {
            let (image, snapshotter) = (required.name(), &required.snapshotter);
            if self.is_remote(required).await {
                return Err(Status::new(
                    FAILED_PRECONDITION,
                    format!(
                        "image volume {image} would be empty or lack files: on {snapshotter} files \
                         of the image, or of a layer that it shares with a container's, come to be \
                         in guests only; take a runtime handler on another snapshotter, or an \
                         image that shares nothing with a container's there"
                    ),
                ));
            }
        }
        Ok(Resolution::Known)
    }

    /// Whether the call is to be sent once more, after containerd answered this.
    pub(crate) async fn again(&self, status: &Status) -> Result<bool, Status> {
        let Some(cause) = unpack_failure(status) else {
            return Ok(false);
        };
        let (pod, container) = (self.call.pod(), self.call.container());
        tracing::info!(
            cause,
            pod,
            container,
            "containerd could not unpack an image"
        );
        let Ok(Some(requirements)) = self.requirements(true).await else {
            return Ok(false);
        };
        for required in &requirements.images {
            match self.wait(required, false).await? {
                Ok(()) => {}
                // The caller gets containerd's answer, which is as good.
                Err(error) => {
                    let status = Status::new(UNKNOWN, error_chain(&error));
                    self.forwarded(ForwardReason::Failed, Some(required), &status);
                    return Ok(false);
                }
            }
        }
        self.proxy.on_event(&ProxyEvent::Retried);
        Ok(true)
    }

    /// A sandbox's image that nobody named before is known now, and gets what it lacks.
    async fn after(&self) {
        let look = async {
            let handlers = self.discovery().handlers(self.backend).await?;
            let Some(snapshotter) = self.snapshotter_of_sandbox(&handlers, false) else {
                return Ok(());
            };
            let image = self.discovery().sandbox_image(self.backend).await?;
            let Some(image) = image else {
                return Ok(());
            };
            let required =
                RequiredImage::of_sandbox(image.value, snapshotter, &handlers, self.call.pod());
            self.ensure(&required, false).await
        };
        if let Err(error) = look.await {
            let pod = self.call.pod();
            tracing::warn!(%error, pod, "the image of a pod's sandbox could not be looked after");
        }
    }

    /// Whether an image would be empty as a volume; what is not known would not.
    async fn is_remote(&self, required: &RequiredImage) -> bool {
        let (service, required) = (Arc::clone(&self.proxy.service), required.clone());
        let is_remote = async move {
            service
                .is_remote(&required.image, &required.snapshotter)
                .await
        };
        matches!(
            in_runtime(self.service_runtime, is_remote).await,
            Ok(Ok(true))
        )
    }

    fn discovery(&self) -> &Discovery {
        &self.proxy.discovery
    }

    /// What the call needs on a snapshotter that is looked at, or on `any`.
    async fn requirements(&self, any: bool) -> Result<Option<Requirements>, Status> {
        match self.call {
            CriRequest::RunPodSandbox(_) => {
                let handlers = self.discovery().handlers(self.backend).await?;
                let Some(snapshotter) = self.snapshotter_of_sandbox(&handlers, any) else {
                    return Ok(None);
                };
                let image = self.discovery().sandbox_image(self.backend).await?;
                let required = image.map(|image| {
                    RequiredImage::of_sandbox(image.value, snapshotter, &handlers, self.call.pod())
                });
                Ok(Some(Requirements {
                    images: required.into_iter().collect(),
                    guest_volumes: Vec::new(),
                }))
            }
            CriRequest::CreateContainer(request) => self.container_requirements(request, any).await,
        }
    }

    fn snapshotter_of_sandbox<'a>(&self, handlers: &'a Handlers, any: bool) -> Option<&'a str> {
        let CriRequest::RunPodSandbox(request) = self.call else {
            return None;
        };
        let handler = &request.runtime_handler;
        let snapshotter = handlers.snapshotter(handler)?;
        let looked_at = any || self.discovery().is_watched(handlers, snapshotter);
        (looked_at && !handlers.has_external_sandboxer(handler)).then_some(snapshotter)
    }

    async fn container_requirements(
        &self,
        request: &CreateContainerRequest,
        any: bool,
    ) -> Result<Option<Requirements>, Status> {
        let Some(config) = &request.config else {
            return Ok(None);
        };
        let (discovery, backend) = (self.discovery(), self.backend);
        let sandbox = &request.pod_sandbox_id;
        let Some(snapshotter) = discovery.snapshotter_of(backend, sandbox).await? else {
            return Ok(None);
        };
        let handlers = discovery.handlers(backend).await?;
        if !any && !discovery.is_watched(&handlers, &snapshotter) {
            return Ok(None);
        }
        let required = |spec| RequiredImage::new(spec, &snapshotter, &handlers, self.call.pod());
        let named = |spec: &ImageSpec| !spec.image.is_empty();
        let mut images: Vec<RequiredImage> =
            config.image.clone().into_iter().map(required).collect();
        let volumes = config.mounts.iter().filter_map(|mount| mount.image.clone());
        let volumes = volumes.filter(named).map(required);
        let mut guest_volumes = Vec::new();
        match discovery.settings.profiles.get(&snapshotter).volumes {
            Volumes::Host => images.extend(volumes),
            Volumes::HostExcept { from, until }
                if !handlers.is_at_least(from) || handlers.is_at_least(until) =>
            {
                images.extend(volumes);
            }
            Volumes::Guest => guest_volumes.extend(volumes),
            // containerd does as well without us, or as badly.
            Volumes::HostExcept { .. } | Volumes::Unknown => {}
        }
        Ok(Some(Requirements {
            images,
            guest_volumes,
        }))
    }

    /// Makes one image ready, and decides what it means if that cannot be.
    async fn ensure(&self, required: &RequiredImage, pulls: bool) -> Result<(), Status> {
        let snapshotter = &required.snapshotter;
        let settings = &self.discovery().settings;
        let label_requirement = self.discovery().label_requirement(snapshotter);
        let repair = match (settings.unlabelled, label_requirement) {
            (_, None) | (Some(Unlabelled::Forward | Unlabelled::Fail), _) => false,
            (Some(Unlabelled::Repair), _) => true,
            (None, Some(label_requirement)) => label_requirement.repair_label.is_some(),
        };
        let mut ended = self.wait(required, repair).await?;
        if pulls && label_requirement.is_some() && matches!(ended, Err(NotReady::Unknown)) {
            match self.pull(&required.image, snapshotter).await? {
                Ok(()) => ended = self.wait(required, repair).await?,
                // Pulling is containerd's business, and so is what it says about it.
                Err(error) => self.forwarded(ForwardReason::Unresolved, Some(required), &error),
            }
        }
        let status =
            |error: &resnap_core::Error| Status::new(code(error.kind()), error_chain(error));
        match ended {
            Ok(()) | Err(NotReady::Unknown) => Ok(()),
            Err(NotReady::Unlabelled(error)) => {
                if settings.unlabelled == Some(Unlabelled::Fail) {
                    return Err(status(&error));
                }
                self.forwarded(ForwardReason::Unlabelled, Some(required), &status(&error));
                Ok(())
            }
            Err(NotReady::Failed(error)) if label_requirement.is_some() => Err(status(&error)),
            // A snapshotter that can do without us gets the call all the same.
            Err(NotReady::Failed(error)) => {
                self.forwarded(ForwardReason::Failed, Some(required), &status(&error));
                Ok(())
            }
        }
    }

    /// Waits until one image is ready, or answers before the caller gives up.
    async fn wait(
        &self,
        required: &RequiredImage,
        repair: bool,
    ) -> Result<Result<(), NotReady>, Status> {
        let latest = Arc::new(Mutex::new(EnsureProgress::default()));
        let snapshotter = &required.snapshotter;
        let still = || {
            let EnsureProgress {
                done,
                layers,
                percent,
            } = *latest.lock().unwrap_or_else(PoisonError::into_inner);
            let image = required.name();
            format!(
                "unpacking {image} for {snapshotter}: {done} of {layers} layers, {percent} %, \
                 still running"
            )
        };
        let made_ready = self.make_ready(required.clone(), repair, Arc::clone(&latest));
        let ended = self.in_time(made_ready, still);
        let ended = ended.await?;
        if ended.is_ok() && !self.deadline.is_none_or(Deadline::leaves_time) {
            let image = required.name();
            return Err(Status::new(
                DEADLINE_EXCEEDED,
                format!(
                    "{image} is ready on {snapshotter} now; there is no time left to start it in"
                ),
            ));
        }
        Ok(ended)
    }

    /// Has the service make one image ready, and note how far it is.
    async fn make_ready(
        &self,
        required: RequiredImage,
        repair: bool,
        latest: Arc<Mutex<EnsureProgress>>,
    ) -> Result<(), NotReady> {
        let (service, image) = (Arc::clone(&self.proxy.service), required.image.clone());
        let made_ready = in_runtime(self.service_runtime, async move {
            let tell = |progress| *latest.lock().unwrap_or_else(PoisonError::into_inner) = progress;
            let want = EnsureRequest {
                image: &required.image,
                reference: required.reference.as_deref(),
                snapshotter: &required.snapshotter,
                repair,
                pod: required.pod.as_deref(),
                pick: required.pick,
            };
            service.ensure(want, &tell).await
        });
        made_ready.await.unwrap_or_else(|error| {
            let failed = Error::new(Kind::Internal, "make ready", image);
            Err(NotReady::Failed(failed.with_source(error)))
        })
    }

    /// Has containerd pull an image. Once begun that goes on, whoever waits for it.
    async fn pull(&self, image: &str, snapshotter: &str) -> Result<Result<(), Status>, Status> {
        let still = || format!("pulling {image}, to unpack it for {snapshotter}, still running");
        let pulled = self
            .in_time(pull(self.proxy, self.service_runtime, image), still)
            .await?;
        if pulled.is_ok() {
            self.proxy.on_event(&ProxyEvent::Pulled);
        }
        Ok(pulled)
    }

    /// What `work` ends with; if the caller's deadline is nearer, or the request has no more room to
    /// wait in, the answer that it goes on.
    async fn in_time<T>(
        &self,
        work: impl Future<Output = T>,
        still: impl Fn() -> String,
    ) -> Result<T, Status> {
        let too_late = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.answer_at()).await,
                None => std::future::pending().await,
            }
        };
        let crowded = async {
            match self.kept {
                Some(kept) => kept.given_up().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = work => Ok(ended),
            () = async { tokio::select! { () = too_late => {}, () = crowded => {} } } => {
                self.proxy.on_event(&ProxyEvent::AnsweredEarly);
                let (call, pod, container) =
                    (self.call.method(), self.call.pod(), self.call.container());
                let status = Status::new(DEADLINE_EXCEEDED, still());
                tracing::info!(call, pod, container, "answered early: {}", status.message);
                Err(status)
            }
        }
    }

    fn forwarded(&self, why: ForwardReason, required: Option<&RequiredImage>, reason: &Status) {
        self.proxy.on_event(&ProxyEvent::Forwarded(why));
        let (call, pod) = (self.call.method(), self.call.pod());
        let (pod, container) = (pod.unwrap_or_default(), self.call.container());
        if why == ForwardReason::Unresolved && matches!(reason.code, NOT_FOUND | UNAVAILABLE) {
            // The caller's mistake, which containerd tells it, or containerd is away.
            tracing::debug!(%reason, call, pod, container, "nothing was made ready");
            return;
        }
        let image = required.map(RequiredImage::name).unwrap_or_default();
        let snapshotter = required.map_or("", |required| &required.snapshotter);
        tracing::warn!(
            call,
            pod,
            container,
            image,
            snapshotter,
            %reason,
            "an image was not made ready; containerd gets the call as it is"
        );
    }
}
