// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What happens before a call is forwarded, and after containerd failed at it.

use std::sync::{Arc, Mutex, PoisonError};

use futures::future::try_join_all;
use resnap_core::{Need, Pick, Progress, UnpackService, Unready, Volumes, Want, in_full};
use tokio::runtime::Handle;

use crate::deadline::Deadline;
use crate::facts::Handlers;
use crate::failure::failed_unpack;
use crate::grpc::{DEADLINE_EXCEEDED, FAILED_PRECONDITION, Status, code};
use crate::knowledge::Knowledge;
use crate::messages::{CreateContainerRequest, ImageSpec, RunPodSandboxRequest};
use crate::observe::{Seen, Why};
use crate::pass::{Backend, Inner};
use crate::pull::pull;
use crate::settings::Unlabelled;

/// A call that is looked at.
#[derive(Debug)]
pub(crate) enum Call {
    RunPodSandbox(RunPodSandboxRequest),
    CreateContainer(CreateContainerRequest),
}

/// Whether somebody said what a call needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needed {
    Known,
    Unknown,
}

/// A look at one call.
pub(crate) struct Look<'a> {
    pub(crate) proxy: &'a Arc<Inner>,
    pub(crate) service: &'a dyn UnpackService,
    pub(crate) backend: &'a Backend,
    /// Where what goes on without a client is at home.
    pub(crate) outer: &'a Handle,
    pub(crate) call: &'a Call,
    pub(crate) deadline: Option<Deadline>,
}

/// What a call needs.
#[derive(Debug, Default)]
struct Needs {
    /// To be ready there.
    images: Vec<Wanted>,
    /// To be mounted on the host, of a snapshotter that may show nothing there.
    guest_volumes: Vec<Wanted>,
}

/// An image, as the CRI names it, and where.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    image: String,
    /// What the user wrote; not known from old kubelets.
    reference: Option<String>,
    snapshotter: String,
    /// Which manifest containerd takes.
    pick: Pick,
}

impl Wanted {
    fn new(spec: ImageSpec, snapshotter: &str, handlers: &Handlers) -> Self {
        Self {
            image: spec.image,
            reference: Some(spec.user_specified_image).filter(|text| !text.is_empty()),
            snapshotter: snapshotter.to_owned(),
            pick: handlers.pick,
        }
    }

    /// The image of a sandbox, that the CRI names nowhere.
    fn of_sandbox(image: String, snapshotter: &str, handlers: &Handlers) -> Self {
        let spec = ImageSpec {
            image,
            ..ImageSpec::default()
        };
        Self::new(spec, snapshotter, handlers)
    }
}

/// containerd took a call of which nobody knew what it needed: now that can be found out.
pub(crate) fn look_after(proxy: &Arc<Inner>, outer: &Handle, call: Call) {
    let (proxy, runtime) = (Arc::clone(proxy), outer.clone());
    outer.spawn(async move {
        let look = Look {
            proxy: &proxy,
            service: &*proxy.service,
            backend: &Backend::apart(&proxy),
            outer: &runtime,
            call: &call,
            deadline: None,
        };
        look.after().await;
    });
}

impl Look<'_> {
    /// Makes ready what the call needs, as far as that is known. Ends with an answer for the caller
    /// if the call is not to be forwarded.
    pub(crate) async fn before(&self) -> Result<Needed, Status> {
        let needs = match self.needs(false).await {
            Ok(Some(needs)) => needs,
            Ok(None) => return Ok(Needed::Known),
            Err(error) => {
                self.forwarded(Why::Unresolved, "what a call needs", &error);
                return Ok(Needed::Known);
            }
        };
        let is_sandbox = matches!(self.call, Call::RunPodSandbox(_));
        if is_sandbox && needs.images.is_empty() {
            return Ok(Needed::Unknown);
        }
        let images = needs.images.iter();
        // What a sandbox lacks, containerd would pull.
        try_join_all(images.map(|wanted| self.ensure(wanted, is_sandbox))).await?;
        for wanted in &needs.guest_volumes {
            let (image, snapshotter) = (&wanted.image, &wanted.snapshotter);
            // What is not known is not remote.
            let remote = self.service.is_remote(image, snapshotter).await;
            if remote.unwrap_or(false) {
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
        Ok(Needed::Known)
    }

    /// Whether the call is to be sent once more, after containerd answered this.
    pub(crate) async fn again(&self, status: &Status) -> Result<bool, Status> {
        let Some(cause) = failed_unpack(status) else {
            return Ok(false);
        };
        tracing::info!(cause, "containerd could not unpack an image");
        let Ok(Some(needs)) = self.needs(true).await else {
            return Ok(false);
        };
        for wanted in &needs.images {
            match self.wait(wanted, false).await? {
                Ok(()) => {}
                // The caller gets containerd's answer, which is as good.
                Err(error) => {
                    tracing::warn!("{}", in_full(&error));
                    return Ok(false);
                }
            }
        }
        self.proxy.saw(&Seen::Retried);
        Ok(true)
    }

    /// A sandbox's image that nobody named before is known now, and gets what it lacks.
    async fn after(&self) {
        let look = async {
            let handlers = self.knowledge().handlers(self.backend).await?;
            let Some(snapshotter) = self.snapshotter_of_sandbox(&handlers, false) else {
                return Ok(());
            };
            let image = self.knowledge().sandbox_image(self.backend).await?;
            let Some(image) = image else {
                return Ok(());
            };
            let wanted = Wanted::of_sandbox(image.value, snapshotter, &handlers);
            self.ensure(&wanted, false).await
        };
        if let Err(error) = look.await {
            tracing::warn!(%error, "the image of a pod's sandbox could not be looked after");
        }
    }

    fn knowledge(&self) -> &Knowledge {
        &self.proxy.knowledge
    }

    fn need(&self, snapshotter: &str) -> Option<&Need> {
        self.knowledge().settings.profiles.need(snapshotter)
    }

    /// What the call needs on a snapshotter that is looked at, or on `any`.
    async fn needs(&self, any: bool) -> Result<Option<Needs>, Status> {
        match self.call {
            Call::RunPodSandbox(_) => {
                let handlers = self.knowledge().handlers(self.backend).await?;
                let Some(snapshotter) = self.snapshotter_of_sandbox(&handlers, any) else {
                    return Ok(None);
                };
                let image = self.knowledge().sandbox_image(self.backend).await?;
                let wanted =
                    image.map(|image| Wanted::of_sandbox(image.value, snapshotter, &handlers));
                Ok(Some(Needs {
                    images: wanted.into_iter().collect(),
                    guest_volumes: Vec::new(),
                }))
            }
            Call::CreateContainer(request) => self.needs_of_container(request, any).await,
        }
    }

    fn snapshotter_of_sandbox<'a>(&self, handlers: &'a Handlers, any: bool) -> Option<&'a str> {
        let Call::RunPodSandbox(request) = self.call else {
            return None;
        };
        let handler = &request.runtime_handler;
        let snapshotter = handlers.snapshotter(handler)?;
        let looked_at = any || self.looks_at(handlers, snapshotter);
        (looked_at && !handlers.is_foreign(handler)).then_some(snapshotter)
    }

    fn looks_at(&self, handlers: &Handlers, snapshotter: &str) -> bool {
        self.knowledge().settings.always || !handlers.is_default(snapshotter)
    }

    async fn needs_of_container(
        &self,
        request: &CreateContainerRequest,
        any: bool,
    ) -> Result<Option<Needs>, Status> {
        let Some(config) = &request.config else {
            return Ok(None);
        };
        let (knowledge, backend) = (self.knowledge(), self.backend);
        let sandbox = &request.pod_sandbox_id;
        let Some(snapshotter) = knowledge.snapshotter_of(backend, sandbox).await? else {
            return Ok(None);
        };
        let handlers = knowledge.handlers(backend).await?;
        if !any && !self.looks_at(&handlers, &snapshotter) {
            return Ok(None);
        }
        let wanted = |spec| Wanted::new(spec, &snapshotter, &handlers);
        let named = |spec: &ImageSpec| !spec.image.is_empty();
        let mut images: Vec<Wanted> = config.image.clone().into_iter().map(wanted).collect();
        let volumes = config.mounts.iter().filter_map(|mount| mount.image.clone());
        let volumes = volumes.filter(named).map(wanted);
        let mut guest_volumes = Vec::new();
        match knowledge.settings.profiles.get(&snapshotter).volumes {
            Volumes::Host => images.extend(volumes),
            Volumes::HostBefore(major, minor) if !handlers.is_at_least((major, minor)) => {
                images.extend(volumes);
            }
            Volumes::Guest => guest_volumes.extend(volumes),
            // containerd does as well without us, or as badly.
            Volumes::HostBefore(..) | Volumes::Unknown => {}
        }
        Ok(Some(Needs {
            images,
            guest_volumes,
        }))
    }

    /// Makes one image ready, and decides what it means if that cannot be.
    async fn ensure(&self, wanted: &Wanted, pulls: bool) -> Result<(), Status> {
        let snapshotter = &wanted.snapshotter;
        let settings = &self.knowledge().settings;
        let need = self.need(snapshotter);
        let repair = match (settings.unlabelled, need) {
            (_, None) | (Some(Unlabelled::Forward | Unlabelled::Fail), _) => false,
            (Some(Unlabelled::Repair), _) => true,
            (None, Some(need)) => need.mended_by.is_some(),
        };
        let mut ended = self.wait(wanted, repair).await?;
        if pulls && need.is_some() && matches!(ended, Err(Unready::Unknown)) {
            match self.pull(&wanted.image, snapshotter).await? {
                Ok(()) => ended = self.wait(wanted, repair).await?,
                // Pulling is containerd's business, and so is what it says about it.
                Err(error) => self.forwarded(Why::Unresolved, &wanted.image, &error),
            }
        }
        let status = |error: &resnap_core::Error| Status::new(code(error.kind()), in_full(error));
        match ended {
            Ok(()) | Err(Unready::Unknown) => Ok(()),
            Err(Unready::Unlabelled(error)) => {
                if settings.unlabelled == Some(Unlabelled::Fail) {
                    return Err(status(&error));
                }
                self.forwarded(Why::Unlabelled, &wanted.image, &status(&error));
                Ok(())
            }
            Err(Unready::Failed(error)) if need.is_some() => Err(status(&error)),
            // A snapshotter that can do without us gets the call all the same.
            Err(Unready::Failed(error)) => {
                self.forwarded(Why::Failed, &wanted.image, &status(&error));
                Ok(())
            }
        }
    }

    /// Waits until one image is ready, or answers before the caller gives up.
    async fn wait(&self, wanted: &Wanted, repair: bool) -> Result<Result<(), Unready>, Status> {
        let latest = Mutex::new(Progress::default());
        let tell = |progress| *latest.lock().unwrap_or_else(PoisonError::into_inner) = progress;
        let snapshotter = &wanted.snapshotter;
        let want = Want {
            image: &wanted.image,
            reference: wanted.reference.as_deref(),
            snapshotter,
            repair,
            pick: wanted.pick,
        };
        let still = || {
            let Progress {
                done,
                layers,
                percent,
            } = *latest.lock().unwrap_or_else(PoisonError::into_inner);
            let image = &wanted.image;
            format!(
                "unpacking {image} for {snapshotter}: {done} of {layers} layers, {percent} %, \
                 still running"
            )
        };
        let ended = self.in_time(self.service.ensure(want, &tell), still);
        let ended = ended.await?;
        if ended.is_ok() && !self.deadline.is_none_or(Deadline::leaves_time) {
            let image = &wanted.image;
            return Err(Status::new(
                DEADLINE_EXCEEDED,
                format!(
                    "{image} is ready on {snapshotter} now; there is no time left to start it in"
                ),
            ));
        }
        Ok(ended)
    }

    /// Has containerd pull an image. Once begun that goes on, whoever waits for it.
    async fn pull(&self, image: &str, snapshotter: &str) -> Result<Result<(), Status>, Status> {
        let still = || format!("pulling {image}, to unpack it for {snapshotter}, still running");
        let pulled = self
            .in_time(pull(self.proxy, self.outer, image), still)
            .await?;
        if pulled.is_ok() {
            self.proxy.saw(&Seen::Pulled);
        }
        Ok(pulled)
    }

    /// What `work` ends with; if the caller's deadline is nearer, the answer that it goes on.
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
        tokio::select! {
            ended = work => Ok(ended),
            () = too_late => {
                self.proxy.saw(&Seen::AnsweredEarly);
                Err(Status::new(DEADLINE_EXCEEDED, still()))
            }
        }
    }

    fn forwarded(&self, why: Why, what: &str, reason: &Status) {
        tracing::warn!(%reason, "{what} was not made ready; containerd gets the call as it is");
        self.proxy.saw(&Seen::Forwarded(why));
    }
}
