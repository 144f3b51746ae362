// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What happens before a call is forwarded.

use std::sync::{Mutex, PoisonError};

use resnap_core::{Progress, UnpackService, Unready, in_full, labels};

use crate::deadline::Deadline;
use crate::grpc::{DEADLINE_EXCEEDED, Status, code};
use crate::knowledge::Knowledge;
use crate::messages::{CreateContainerRequest, RunPodSandboxRequest};
use crate::pass::Backend;

/// A look at one call.
pub(crate) struct Look<'a> {
    pub(crate) service: &'a dyn UnpackService,
    pub(crate) knowledge: &'a Knowledge,
    pub(crate) backend: &'a Backend,
    pub(crate) deadline: Option<Deadline>,
}

impl Look<'_> {
    /// Makes the image of sandboxes ready, where the handler has a snapshotter of its own.
    pub(crate) async fn run_pod_sandbox(
        &self,
        request: RunPodSandboxRequest,
    ) -> Result<(), Status> {
        let found = async {
            let handlers = self.knowledge.handlers(self.backend).await?;
            let Some(snapshotter) = handlers.special(&request.runtime_handler) else {
                return Ok(None);
            };
            let snapshotter = snapshotter.to_owned();
            let image = self
                .knowledge
                .sandbox_image(self.backend, &handlers)
                .await?;
            Ok(image.map(|image| (image, snapshotter)))
        };
        match found.await {
            Ok(Some((image, snapshotter))) => self.ensure(&image, None, &snapshotter).await,
            Ok(None) => Ok(()),
            Err(error) => forward("the sandbox's image", &error),
        }
    }

    /// Makes the container's image ready on the snapshotter of its pod.
    pub(crate) async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<(), Status> {
        let image = request.config.and_then(|config| config.image);
        let Some(image) = image else {
            return Ok(());
        };
        // Empty from old kubelets.
        let reference = Some(image.user_specified_image).filter(|text| !text.is_empty());
        let image = image.image;
        let found = async {
            let sandbox = &request.pod_sandbox_id;
            let snapshotter = self.knowledge.snapshotter_of(self.backend, sandbox).await?;
            let Some(snapshotter) = snapshotter else {
                return Ok(None);
            };
            let handlers = self.knowledge.handlers(self.backend).await?;
            Ok((!handlers.is_default(&snapshotter)).then_some(snapshotter))
        };
        match found.await {
            Ok(Some(snapshotter)) => {
                self.ensure(&image, reference.as_deref(), &snapshotter)
                    .await
            }
            Ok(None) => Ok(()),
            Err(error) => forward(&image, &error),
        }
    }

    /// Waits until the image is ready, or answers before the caller gives up.
    async fn ensure(
        &self,
        image: &str,
        reference: Option<&str>,
        snapshotter: &str,
    ) -> Result<(), Status> {
        let latest = Mutex::new(Progress::default());
        let tell = |progress| *latest.lock().unwrap_or_else(PoisonError::into_inner) = progress;
        let work = self.service.ensure(image, reference, snapshotter, &tell);
        let in_time = async {
            match self.deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.answer_at()).await,
                None => std::future::pending().await,
            }
        };
        let ended = tokio::select! {
            ended = work => ended,
            () = in_time => {
                let progress = *latest.lock().unwrap_or_else(PoisonError::into_inner);
                return Err(still(image, snapshotter, progress));
            }
        };
        match ended {
            Ok(()) if self.deadline.is_none_or(Deadline::leaves_time) => Ok(()),
            Ok(()) => Err(Status::new(
                DEADLINE_EXCEEDED,
                format!(
                    "{image} is ready on {snapshotter} now; there is no time left to start it in"
                ),
            )),
            Err(Unready::Unknown) => Ok(()),
            Err(Unready::Failed(error)) => self.failed(image, snapshotter, &error),
        }
    }

    /// A snapshotter that can do without us gets the call all the same.
    fn failed(
        &self,
        image: &str,
        snapshotter: &str,
        error: &resnap_core::Error,
    ) -> Result<(), Status> {
        let status = Status::new(code(error.kind()), in_full(error));
        if labels::need(snapshotter).is_none() {
            return forward(image, &status);
        }
        Err(status)
    }
}

fn forward(what: &str, why: &Status) -> Result<(), Status> {
    tracing::warn!(%why, "{what} could not be made ready; containerd gets the call as it is");
    Ok(())
}

fn still(image: &str, snapshotter: &str, progress: Progress) -> Status {
    let Progress {
        done,
        layers,
        percent,
    } = progress;
    Status::new(
        DEADLINE_EXCEEDED,
        format!(
            "unpacking {image} for {snapshotter}: {done} of {layers} layers, {percent} %, still running"
        ),
    )
}
