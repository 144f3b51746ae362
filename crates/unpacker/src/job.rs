// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A running unpack.

use std::time::Instant;

use resnap_core::ChainId;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::plan::PlannedLayer;
use crate::{Event, Phase, Plan, Report, UnpackError};

/// The handle of a running unpack. Dropping it stops neither the work nor its clean-up.
#[derive(Debug)]
pub struct Job {
    pub(crate) image: String,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    pub(crate) task: JoinHandle<Result<Report, UnpackError>>,
}

impl Job {
    /// The next event, `None` after the last. Cancel-safe.
    pub async fn next_event(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The end of the job. Events that were not asked for are dropped.
    ///
    /// # Errors
    /// What kept the image from being ready. No active snapshot is left then.
    pub async fn report(self) -> Result<Report, UnpackError> {
        let Self { image, task, .. } = self;
        task.await.unwrap_or_else(|error| {
            Err(UnpackError::Broken {
                image,
                reason: error.to_string(),
            })
        })
    }
}

/// Tells events of one job.
#[derive(Debug)]
pub(crate) struct Teller<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) image: &'a str,
    pub(crate) snapshotter: &'a str,
    pub(crate) started: Instant,
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

impl Teller<'_> {
    /// Tells `phase` of the layer at `index`.
    pub(crate) fn tell(&self, index: usize, phase: Phase) {
        let Some(PlannedLayer {
            descriptor,
            chain_id,
            ..
        }) = self.plan.layers.get(index)
        else {
            return;
        };
        let chain_id: &ChainId = chain_id;
        // Nobody listening is fine.
        let _ = self.events.send(Event {
            image: self.image.to_owned(),
            snapshotter: self.snapshotter.to_owned(),
            phase,
            layer: index + 1,
            layers: self.plan.layers.len(),
            digest: descriptor.digest.clone(),
            chain_id: chain_id.clone(),
            bytes: descriptor.size,
            seconds: self.started.elapsed().as_secs_f64(),
        });
    }
}
