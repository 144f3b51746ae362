// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The engine as the [`UnpackService`] of a proxy.

use async_trait::async_trait;
use futures::StreamExt as _;
use resnap_core::{
    EnsureProgress, EnsureRequest, Error, Integrity, ManifestPreference, NotReady, UnpackService,
    error_chain,
};

use crate::found_ready::ReadyKey;
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
        match find_ready(self, &request, want.snapshotter).await {
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
        let is_ready = find_ready(self, &request, snapshotter).await;
        is_ready.map_err(|error| not_ready(image, &error))
    }

    async fn is_still_ready(
        &self,
        image: &str,
        snapshotter: &str,
        pick: ManifestPreference,
    ) -> bool {
        let key = key(image, snapshotter, pick);
        let Some(plan) = self.found_ready.get(&key) else {
            return false;
        };
        let backend = &self.backend;
        if backend.profiles.get(snapshotter).integrity == Integrity::Signed {
            return false;
        }
        let record = |name| backend.ports.images.get(&backend.scope, name);
        let is_same = async {
            let record = record(&plan.image.name).await;
            record.is_ok_and(|record| record.target.digest == plan.image.target.digest)
        };
        // An image by exactly the name that was asked for goes before others.
        let is_preferred = async {
            let is_exact = image == plan.image.name;
            is_exact || record(image).await.is_err_and(|error| error.is_not_found())
        };
        // What was found ready holds if the name still stands for it.
        let is_named = async {
            key.decides_on(&plan) || {
                let (is_same, is_preferred) = tokio::join!(is_same, is_preferred);
                is_same && is_preferred
            }
        };
        let is_ready = Reader::is_ready(self, &plan, snapshotter);
        let (is_named, is_ready) = tokio::join!(is_named, is_ready);
        is_named && matches!(is_ready, Ok(true))
    }

    async fn is_remote(&self, image: &str, snapshotter: &str) -> Result<bool, NotReady> {
        let not_ready = |error| not_ready(image, &error);
        let plan = self.plan(&Request::new(image).on(snapshotter)).await;
        let plan = plan.map_err(not_ready)?;
        let is_remote = Reader::is_remote(self, &plan, snapshotter).await;
        is_remote.map_err(not_ready)
    }
}

/// Returns whether an image is ready, and remembers that it is.
async fn find_ready(
    engine: &Engine,
    request: &Request,
    snapshotter: &str,
) -> Result<bool, UnpackError> {
    let plan = engine.plan(request).await?;
    let is_ready = Reader::is_ready(engine, &plan, snapshotter).await?;
    if is_ready {
        let key = key(&request.image, snapshotter, request.pick);
        engine.found_ready.remember(key, &plan);
    }
    Ok(is_ready)
}

fn key(image: &str, snapshotter: &str, pick: ManifestPreference) -> ReadyKey {
    ReadyKey {
        image: image.to_owned(),
        snapshotter: snapshotter.to_owned(),
        pick,
    }
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
