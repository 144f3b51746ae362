// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The engine, as the proxy asks for it.

use async_trait::async_trait;
use resnap_core::{EnsureProgress, EnsureRequest, Error, NotReady, UnpackService, error_chain};
use resnap_unpacker::{Engine, Progress, Request, UnpackError};

/// The engine, as the proxy asks for it.
pub(crate) struct Service(pub(crate) Engine);

impl Service {
    async fn is_ready(&self, request: &Request) -> Result<bool, UnpackError> {
        let plan = self.0.plan(request).await?;
        self.0.is_ready(&plan, &request.snapshotter).await
    }
}

#[async_trait]
impl UnpackService for Service {
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
            pod: want.pod.map(str::to_owned),
            ..Request::new(want.image, want.snapshotter)
        };
        match self.is_ready(&request).await {
            Ok(true) => return Ok(()),
            Err(UnpackError::NoSuchImage { .. }) => return Err(NotReady::Unknown),
            // The job finds out better, and mends what can be.
            Ok(false) | Err(_) => {}
        }
        let image = want.image;
        let mut job = self.0.unpack(request);
        let mut progress = Progress::default();
        while let Some(event) = job.next_event().await {
            progress.record(&event);
            tell(EnsureProgress {
                done: progress.ready_layers(),
                layers: event.layers,
                percent: progress.percent(),
            });
        }
        job.report()
            .await
            .map(drop)
            .map_err(|error| unready(image, &error))
    }

    async fn is_remote(&self, image: &str, snapshotter: &str) -> Result<bool, NotReady> {
        let request = Request::new(image, snapshotter);
        let plan = self
            .0
            .plan(&request)
            .await
            .map_err(|error| unready(image, &error))?;
        let remote = self.0.is_remote(&plan, snapshotter).await;
        remote.map_err(|error| unready(image, &error))
    }
}

fn unready(image: &str, error: &UnpackError) -> NotReady {
    let told = || Error::new(error.kind(), "make ready", image).with_source(error_chain(error));
    match error {
        UnpackError::NoSuchImage { .. } => NotReady::Unknown,
        UnpackError::Unlabelled { .. }
        | UnpackError::InUse { .. }
        | UnpackError::Unremovable { .. } => NotReady::Unlabelled(told()),
        _ => NotReady::Failed(told()),
    }
}
