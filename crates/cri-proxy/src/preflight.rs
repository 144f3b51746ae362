// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The preparation of requests: before they are forwarded, and after containerd failed to unpack an image.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::try_join_all;
use resnap_core::{EnsureProgress, EnsureRequest, Error, Kind, NotReady, error_chain};

use crate::deadline::Deadline;
use crate::discovery::Discovery;
use crate::failure::unpack_failure;
use crate::failures::Failures;
use crate::grpc::Status;
use crate::held::HeldRequest;
use crate::observe::{ForwardReason, ProxyEvent};
use crate::pull::pull;
use crate::requirements::{
    CriRequest, RequiredImage, Requirements, SnapshotterScope, requirements, sandbox_image,
    sandbox_snapshotter,
};
use crate::settings::Unlabelled;
use crate::state::ClientContext;

/// Whether the images that a request needs are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resolution {
    Known,
    Unknown,
}

/// Whether containerd is made to pull an image that is not on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missing {
    Pull,
    Forward,
}

/// The preparation of one request.
pub(crate) struct Preflight<'a> {
    pub(crate) client: &'a ClientContext,
    pub(crate) request: &'a CriRequest,
    pub(crate) deadline: Option<Deadline>,
    /// The bytes of the request, if a caller waits for its response.
    pub(crate) held: Option<&'a HeldRequest<'a>>,
    pub(crate) failures: &'a Failures,
}

/// Labels the image of a sandbox that containerd has just created, in the background. Before the
/// first sandbox of a node, no source may name that image.
pub(crate) fn ensure_later(client: &ClientContext, request: CriRequest) {
    let (state, runtime) = (Arc::clone(&client.state), client.service_runtime.clone());
    client.service_runtime.spawn(async move {
        let preflight = Preflight {
            client: &ClientContext::detached(&state, &runtime),
            request: &request,
            deadline: None,
            held: None,
            failures: &Failures::default(),
        };
        preflight.after().await;
    });
}

impl Preflight<'_> {
    /// Makes the known images of the request ready.
    ///
    /// # Errors
    /// The response to the caller, if the request must not be forwarded.
    pub(crate) async fn before(&self) -> Result<Resolution, Status> {
        let requirements = match self.requirements(SnapshotterScope::Watched).await {
            Ok(Some(requirements)) => requirements,
            Ok(None) => return Ok(Resolution::Known),
            // It may need layers with a proof.
            Err(error) if self.discovery().needs_proofs() => return Err(error),
            Err(error) => {
                self.forwarded(ForwardReason::Unresolved, None, &error);
                return Ok(Resolution::Known);
            }
        };
        let is_sandbox = matches!(self.request, CriRequest::RunPodSandbox(_));
        if is_sandbox && requirements.images.is_empty() {
            return Ok(Resolution::Unknown);
        }
        // containerd pulls a missing image for a sandbox, but not for a container.
        let missing = if is_sandbox {
            Missing::Pull
        } else {
            Missing::Forward
        };
        let images = requirements.images.iter();
        try_join_all(images.map(|image| self.ensure(image, missing))).await?;
        for volume in &requirements.guest_volumes {
            if self.is_remote(volume).await {
                return Err(self.refused(empty_volume(volume)));
            }
        }
        Ok(Resolution::Known)
    }

    /// Makes the images of the request ready that containerd failed to unpack. Returns whether to
    /// send the request again.
    ///
    /// # Errors
    /// The response to the caller, if its deadline comes first, or if the images cannot be made ready.
    pub(crate) async fn retry(&self, status: &Status) -> Result<bool, Status> {
        let Some(cause) = unpack_failure(status) else {
            return Ok(false);
        };
        let (pod, container) = (self.pod_name(), self.request.container());
        tracing::info!(
            cause,
            pod,
            container,
            "containerd failed to unpack an image"
        );
        let Ok(Some(requirements)) = self.requirements(SnapshotterScope::All).await else {
            return Ok(false);
        };
        for image in &requirements.images {
            let result = match self.failures.get(image) {
                Some(error) => Err(error),
                None => self.wait_until_ready(image, false).await?,
            };
            if let Err(error) = result {
                let status = not_ready(image, &error);
                return match error {
                    // containerd says only that content is missing, not where it was looked for.
                    NotReady::Failed(_) | NotReady::Denied(_) | NotReady::Unproven(_) => {
                        Err(self.refused(status))
                    }
                    NotReady::Unknown | NotReady::Unlabelled(_) => {
                        self.forwarded(ForwardReason::Failed, Some(image), &status);
                        Ok(false)
                    }
                };
            }
        }
        self.client.state.on_event(&ProxyEvent::Retried);
        Ok(true)
    }

    async fn after(&self) {
        let CriRequest::RunPodSandbox(request) = self.request else {
            return;
        };
        let (discovery, backend) = (self.discovery(), &self.client.backend);
        let pod = self.request.pod();
        let ensure = async {
            let handlers = discovery.handlers(backend).await?;
            let scope = SnapshotterScope::Watched;
            let Some(snapshotter) = sandbox_snapshotter(discovery, &handlers, request, scope)
            else {
                return Ok(());
            };
            let image =
                sandbox_image(discovery, backend, &handlers, snapshotter, pod.clone()).await?;
            match image {
                Some(image) => self.ensure(&image, Missing::Forward).await,
                None => Ok(()),
            }
        };
        if let Err(error) = ensure.await {
            let pod = self.pod_name();
            tracing::warn!(%error, pod, "could not make the sandbox image of a pod ready");
        }
    }

    /// Returns the pod as `namespace/name`, for the log.
    fn pod_name(&self) -> Option<String> {
        self.request.pod().map(|pod| pod.name)
    }

    fn discovery(&self) -> &Discovery {
        &self.client.state.discovery
    }

    async fn requirements(&self, scope: SnapshotterScope) -> Result<Option<Requirements>, Status> {
        requirements(self.discovery(), &self.client.backend, self.request, scope).await
    }

    /// Returns whether an image would be empty as a volume. Errors count as no.
    async fn is_remote(&self, volume: &RequiredImage) -> bool {
        let (service, volume) = (Arc::clone(&self.client.state.service), volume.clone());
        let is_remote = async move { service.is_remote(&volume.image, &volume.snapshotter).await };
        matches!(
            self.client.service_runtime.run(is_remote).await,
            Ok(Ok(true))
        )
    }

    /// Makes one image ready. Decides whether the request is forwarded if that fails.
    async fn ensure(&self, image: &RequiredImage, missing: Missing) -> Result<(), Status> {
        let settings = &self.discovery().settings;
        let requirement = self.discovery().label_requirement(&image.snapshotter);
        let needs_proof = self.discovery().needs_proof(&image.snapshotter);
        let repair = match (settings.unlabelled, requirement) {
            (_, None) | (Some(Unlabelled::Forward | Unlabelled::Fail), _) => false,
            (Some(Unlabelled::Repair), _) => true,
            (None, Some(requirement)) => requirement.repair_label.is_some(),
        };
        let mut result = self.wait_until_ready(image, repair).await?;
        if missing == Missing::Pull
            && (requirement.is_some() || needs_proof)
            && matches!(result, Err(NotReady::Unknown))
        {
            match self.pull(image).await? {
                Ok(()) => result = self.wait_until_ready(image, repair).await?,
                Err(error) if needs_proof => return Err(self.refused(error)),
                // containerd will try the same pull, and report its error.
                Err(error) => self.forwarded(ForwardReason::Unresolved, Some(image), &error),
            }
        }
        if let Err(error @ (NotReady::Failed(_) | NotReady::Denied(_))) = &result {
            self.failures.add(image, error);
        }
        let Err(error) = result else {
            return Ok(());
        };
        let status = not_ready(image, &error);
        match error {
            // Nothing that lacks a proof is started, whatever containerd could do.
            _ if needs_proof => Err(self.refused(status)),
            NotReady::Unproven(_) => Err(self.refused(status)),
            NotReady::Unknown => Ok(()),
            NotReady::Unlabelled(_) if settings.unlabelled == Some(Unlabelled::Fail) => {
                Err(self.refused(status))
            }
            NotReady::Unlabelled(_) => {
                self.forwarded(ForwardReason::Unlabelled, Some(image), &status);
                Ok(())
            }
            NotReady::Failed(_) | NotReady::Denied(_) if requirement.is_some() => {
                Err(self.refused(status))
            }
            // Without a requirement, containerd can unpack the image itself.
            NotReady::Failed(_) | NotReady::Denied(_) => {
                self.forwarded(ForwardReason::Failed, Some(image), &status);
                Ok(())
            }
        }
    }

    /// Waits until one image is ready.
    ///
    /// # Errors
    /// The response to the caller, if its deadline comes first or leaves containerd no time.
    async fn wait_until_ready(
        &self,
        image: &RequiredImage,
        repair: bool,
    ) -> Result<Result<(), NotReady>, Status> {
        let latest = Arc::new(Mutex::new(EnsureProgress::default()));
        let (name, snapshotter) = (image.name(), &image.snapshotter);
        let progress = || {
            let EnsureProgress {
                done,
                layers,
                percent,
            } = *latest.lock().unwrap_or_else(PoisonError::into_inner);
            format!(
                "unpacking {name} for {snapshotter}: {done} of {layers} layers, {percent} %, \
                 still running"
            )
        };
        let call = async {
            let RequiredImage {
                image: name, pick, ..
            } = image;
            if self.client.is_still_ready(name, snapshotter, *pick).await {
                return Ok(());
            }
            let latest = Arc::clone(&latest);
            self.call_service(image.clone(), repair, latest).await
        };
        let result = self.in_time(call, progress).await?;
        if result.is_ok() && !self.deadline.is_none_or(Deadline::leaves_time) {
            return Err(Status::new(
                Kind::DeadlineExceeded,
                format!("{name} is ready on {snapshotter} now; there is no time left to start it"),
            ));
        }
        Ok(result)
    }

    /// Calls the unpack service, which writes its progress to `latest`.
    async fn call_service(
        &self,
        image: RequiredImage,
        repair: bool,
        latest: Arc<Mutex<EnsureProgress>>,
    ) -> Result<(), NotReady> {
        let service = Arc::clone(&self.client.state.service);
        let name = image.image.clone();
        let ensured = self.client.service_runtime.run(async move {
            let on_progress =
                |progress| *latest.lock().unwrap_or_else(PoisonError::into_inner) = progress;
            let request = EnsureRequest {
                image: &image.image,
                reference: image.reference.as_deref(),
                snapshotter: &image.snapshotter,
                repair,
                pod: image.pod.as_ref(),
                pick: image.pick,
            };
            service.ensure(request, &on_progress).await
        });
        ensured.await.unwrap_or_else(|error| {
            let failed = Error::new(Kind::Internal, "make ready", name);
            Err(NotReady::Failed(failed.with_source(error)))
        })
    }

    /// Makes containerd pull an image. The pull continues even if all callers leave.
    async fn pull(&self, image: &RequiredImage) -> Result<Result<(), Status>, Status> {
        let ClientContext {
            state,
            service_runtime,
            ..
        } = self.client;
        let (name, snapshotter) = (&image.image, &image.snapshotter);
        let progress = || format!("pulling {name}, to unpack it for {snapshotter}, still running");
        let pulled = pull(&state.pulls, &state.endpoint, service_runtime, name);
        let pulled = self.in_time(pulled, progress).await?;
        if pulled.is_ok() {
            state.on_event(&ProxyEvent::Pulled);
        }
        Ok(pulled)
    }

    /// Waits for `work`.
    ///
    /// # Errors
    /// The response that the work is still running, if the deadline comes first, or if the request
    /// is evicted.
    async fn in_time<T>(
        &self,
        work: impl Future<Output = T>,
        progress: impl Fn() -> String,
    ) -> Result<T, Status> {
        let late = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.answer_at()).await,
                None => std::future::pending().await,
            }
        };
        let evicted = async {
            match self.held {
                Some(held) => held.evicted().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            result = work => return Ok(result),
            () = late => {}
            () = evicted => {}
        }
        self.client.state.on_event(&ProxyEvent::AnsweredEarly);
        let (call, pod) = (self.request.method(), self.pod_name());
        let container = self.request.container();
        let status = Status::new(Kind::DeadlineExceeded, progress());
        tracing::info!(call, pod, container, "answered early: {}", status.message);
        Err(status)
    }

    /// Reports that the request is refused, and returns the response.
    fn refused(&self, status: Status) -> Status {
        self.client.state.on_event(&ProxyEvent::Refused);
        let (call, pod) = (self.request.method(), self.pod_name());
        let (pod, container) = (pod.unwrap_or_default(), self.request.container());
        tracing::warn!(call, pod, container, "refused: {}", status.message);
        status
    }

    /// Reports that the request is forwarded although an image is not ready.
    fn forwarded(&self, reason: ForwardReason, image: Option<&RequiredImage>, error: &Status) {
        self.client.state.on_event(&ProxyEvent::Forwarded(reason));
        let (call, pod) = (self.request.method(), self.pod_name());
        let (pod, container) = (pod.unwrap_or_default(), self.request.container());
        if reason == ForwardReason::Unresolved
            && matches!(error.kind, Kind::NotFound | Kind::Unavailable)
        {
            // containerd will report the mistake of the caller, or is unavailable.
            tracing::debug!(%error, call, pod, container, "no image was made ready");
            return;
        }
        let name = image.map(RequiredImage::name).unwrap_or_default();
        let snapshotter = image.map_or("", |image| &image.snapshotter);
        tracing::warn!(
            call,
            pod,
            container,
            image = name,
            snapshotter,
            %error,
            "an image was not made ready; forwarding the call"
        );
    }
}

/// Returns the response to a request for an image that is not ready.
fn not_ready(image: &RequiredImage, error: &NotReady) -> Status {
    match error {
        NotReady::Unknown => Status::new(
            Kind::NotFound,
            format!("{}: {error} on this node", image.name()),
        ),
        NotReady::Unlabelled(source)
        | NotReady::Unproven(source)
        | NotReady::Denied(source)
        | NotReady::Failed(source) => Status::new(source.kind(), error_chain(error)),
    }
}

/// Returns the response to a request for a volume whose files are visible in guests only.
fn empty_volume(volume: &RequiredImage) -> Status {
    let (image, snapshotter) = (volume.name(), &volume.snapshotter);
    Status::new(
        Kind::FailedPrecondition,
        format!(
            "image volume {image} would be empty or lack files: on {snapshotter}, files of the \
             image, or of a layer that it shares with a container's image, exist in guests only; \
             use a runtime handler with another snapshotter, or an image that shares no layer with \
             a container's image"
        ),
    )
}
