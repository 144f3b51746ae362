// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The engine, as the proxy asks for it.

use async_trait::async_trait;
use resnap_core::{Error, Progress, UnpackService, Unready, Want, in_full};
use resnap_unpacker::{Engine, Progress as Far, Request, UnpackError};

/// The engine, as the proxy asks for it.
pub(super) struct Service(pub(super) Engine);

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
        want: Want<'_>,
        tell: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<(), Unready> {
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
            Err(UnpackError::NoSuchImage { .. }) => return Err(Unready::Unknown),
            // The job finds out better, and mends what can be.
            Ok(false) | Err(_) => {}
        }
        let image = want.image;
        let mut job = self.0.unpack(request);
        let mut far = Far::default();
        while let Some(event) = job.next_event().await {
            far.saw(&event);
            tell(Progress {
                done: far.ready_layers(),
                layers: event.layers,
                percent: far.percent(),
            });
        }
        job.report()
            .await
            .map(drop)
            .map_err(|error| unready(image, &error))
    }

    async fn is_remote(&self, image: &str, snapshotter: &str) -> Result<bool, Unready> {
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

fn unready(image: &str, error: &UnpackError) -> Unready {
    let told = || Error::new(error.kind(), "make ready", image).because(in_full(error));
    match error {
        UnpackError::NoSuchImage { .. } => Unready::Unknown,
        UnpackError::Unlabelled { .. }
        | UnpackError::InUse { .. }
        | UnpackError::Unremovable { .. } => Unready::Unlabelled(told()),
        _ => Unready::Failed(told()),
    }
}
