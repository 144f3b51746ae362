// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The connection of an applier to a job: slots for writing, and progress.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use resnap_core::{ApplyMonitor, ApplyPermit, ByteStream, Stage, StageTiming};
use tokio::time::Instant;

use crate::running::RunningJob;
use crate::supply::Supply;
use crate::{EngineEvent, Phase};

/// The shortest time between two progress events of a layer.
const PACE: Duration = Duration::from_millis(100);

/// The monitor of the layers of a job from `first` on.
pub(crate) struct JobMonitor {
    job: Arc<RunningJob>,
    first: usize,
    supply: Arc<Supply>,
    /// When the last progress event of each layer was emitted, at first the start.
    last_sent: Mutex<Vec<Instant>>,
}

impl JobMonitor {
    pub(crate) fn new(job: Arc<RunningJob>, first: usize, supply: Arc<Supply>) -> Self {
        let layers = job.spec.plan.layers.len().saturating_sub(first);
        Self {
            job,
            first,
            supply,
            last_sent: Mutex::new(vec![Instant::now(); layers]),
        }
    }

    /// Returns whether a progress event of the layer is due, and records that it is sent.
    fn is_due(&self, index: usize) -> bool {
        let mut last_sent = self
            .last_sent
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match last_sent.get_mut(index) {
            Some(sent) if sent.elapsed() >= PACE => {
                *sent = Instant::now();
                true
            }
            _ => false,
        }
    }
}

#[async_trait]
impl ApplyMonitor for JobMonitor {
    async fn admit(&self, index: usize) -> ApplyPermit {
        let gate = self.supply.gate(self.first + index);
        let started = std::time::Instant::now();
        let slot = loop {
            gate.ready().await;
            let slot = self.job.spec.share.slot().await;
            // The bytes that were offered may have found no reader in time.
            if gate.is_ready() {
                break slot;
            }
        };
        self.job.notify_observer(&EngineEvent::Admitted {
            seconds: started.elapsed().as_secs_f64(),
        });
        self.record_stage(index, Stage::Wait, StageTiming::since(started));
        self.job.emit(self.first + index, Phase::Applying);
        ApplyPermit::new(slot)
    }

    fn incoming(&self, index: usize) -> Option<ByteStream> {
        self.supply.take_feed(self.first + index)
    }

    async fn complete(&self, index: usize) {
        self.supply.gate(self.first + index).settled().await;
    }

    fn read(&self, index: usize, bytes: u64) {
        if self.is_due(index) {
            self.job.emit_progress(self.first + index, bytes);
        }
    }

    fn record_stage(&self, index: usize, stage: Stage, timing: StageTiming) {
        self.job.record_stage(self.first + index, stage, timing);
    }
}
