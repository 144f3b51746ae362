// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The engine, as the proxy asks for it.

use std::collections::HashMap;

use async_trait::async_trait;
use resnap_core::{Error, Progress, UnpackService, Unready, Want, in_full};
use resnap_unpacker::{Engine, Event, Phase, Request, UnpackError};

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
            tell(far.after(&event));
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

/// How far a job is, by its events.
#[derive(Default)]
struct Far {
    done: usize,
    bytes: u64,
    total: u64,
    /// Of the layers that are not done.
    read: HashMap<usize, u64>,
}

impl Far {
    fn after(&mut self, event: &Event) -> Progress {
        let index = event.layer.saturating_sub(1);
        match event.phase {
            Phase::Planned => self.total = self.total.saturating_add(event.bytes),
            Phase::Progress => {
                let read = event.read.unwrap_or(0).min(event.bytes);
                self.read.insert(index, read);
            }
            phase if phase.is_ready() => {
                self.done += 1;
                self.read.remove(&index);
                self.bytes = self.bytes.saturating_add(event.bytes);
            }
            _ => {}
        }
        let read = self
            .read
            .values()
            .map(|read| u128::from(*read))
            .sum::<u128>();
        let percent = (u128::from(self.bytes) + read) * 100 / u128::from(self.total.max(1));
        Progress {
            done: self.done,
            layers: event.layers,
            percent: u8::try_from(percent).unwrap_or(100),
        }
    }
}
