// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The engine as the [`UnpackService`] of a proxy.

use async_trait::async_trait;
use futures::StreamExt as _;
use resnap_core::{
    EnsureProgress, EnsureRequest, Error, ManifestPreference, NotReady, UnpackService, error_chain,
};

use crate::{Engine, Progress, Reader, Request, UnpackError};

#[async_trait]
impl UnpackService for Engine {
    async fn ensure(
        &self,
        want: EnsureRequest<'_>,
        tell: &(dyn Fn(EnsureProgress) + Send + Sync),
    ) -> Result<(), NotReady> {
        let request = Request {
            repair: want.repair,
            pick: want.pick,
            by_itself: true,
            origin: "cri".to_owned(),
            user_reference: want.reference.map(str::to_owned),
            pod: want.pod.cloned(),
            ..Request::new(want.image).on(want.snapshotter)
        };
        let not_ready = |error| not_ready(want.image, &error);
        let verified = self.verify_signed(&request, want.snapshotter);
        match is_ready(self, &request, want.snapshotter).await {
            Ok(true) => return verified.await.map_err(not_ready),
            Err(UnpackError::NoSuchImage { .. }) => return Err(NotReady::Unknown),
            // The job finds the exact reason, and repairs what it can.
            Ok(false) | Err(_) => {}
        }
        let job = self.unpack(request.clone());
        let mut events = job.events();
        let mut progress = Progress::default();
        while let Some(event) = events.next().await {
            progress.record(&event);
            tell(EnsureProgress {
                done: progress.ready_layers(),
                layers: event.layers,
                percent: progress.percent(),
            });
        }
        job.report().await.map_err(not_ready)?;
        verified.await.map_err(not_ready)
    }

    async fn is_ready(
        &self,
        image: &str,
        snapshotter: &str,
        pick: ManifestPreference,
    ) -> Result<bool, NotReady> {
        let request = Request {
            pick,
            by_itself: true,
            ..Request::new(image).on(snapshotter)
        };
        let is_ready = is_ready(self, &request, snapshotter).await;
        is_ready.map_err(|error| not_ready(image, &error))
    }

    async fn is_remote(&self, image: &str, snapshotter: &str) -> Result<bool, NotReady> {
        let not_ready = |error| not_ready(image, &error);
        let plan = self.plan(&Request::new(image).on(snapshotter)).await;
        let plan = plan.map_err(not_ready)?;
        let is_remote = Reader::is_remote(self, &plan, snapshotter).await;
        is_remote.map_err(not_ready)
    }
}

async fn is_ready(
    reader: &Reader,
    request: &Request,
    snapshotter: &str,
) -> Result<bool, UnpackError> {
    let plan = reader.plan(request).await?;
    reader.is_ready(&plan, snapshotter).await
}

fn not_ready(image: &str, error: &UnpackError) -> NotReady {
    let source = || Error::new(error.kind(), "make ready", image).with_source(error_chain(error));
    match error {
        UnpackError::NoSuchImage { .. } => NotReady::Unknown,
        UnpackError::Unlabelled { .. }
        | UnpackError::InUse { .. }
        | UnpackError::Unremovable { .. } => NotReady::Unlabelled(source()),
        UnpackError::Unproven { .. } | UnpackError::Unsigned { .. } => NotReady::Unproven(source()),
        error if error.is_denied() => NotReady::Denied(source()),
        _ => NotReady::Failed(source()),
    }
}
