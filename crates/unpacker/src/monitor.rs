// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What the applier is allowed, and what it tells of a job's layers.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use async_trait::async_trait;
use resnap_core::{ApplyMonitor, ApplyPermit, Stage, StageTiming};
use tokio::time::Instant;

use crate::Phase;
use crate::flight::Flight;

/// How often the progress of one layer is told at most.
const PACE: Duration = Duration::from_millis(100);

/// Of the layers of a job from `first` on.
pub(crate) struct JobMonitor {
    flight: Arc<Flight>,
    first: usize,
    /// When the progress of each layer was told last, or might have been.
    told: Mutex<Vec<Instant>>,
}

impl JobMonitor {
    pub(crate) fn new(flight: Arc<Flight>, first: usize) -> Self {
        let layers = flight.plan.layers.len().saturating_sub(first);
        Self {
            flight,
            first,
            told: Mutex::new(vec![Instant::now(); layers]),
        }
    }
}

#[async_trait]
impl ApplyMonitor for JobMonitor {
    async fn admit(&self, index: usize) -> ApplyPermit {
        let asked = std::time::Instant::now();
        let slot = self.flight.share.slot().await;
        self.record_stage(index, Stage::Wait, StageTiming::since(asked));
        self.flight.tell(self.first + index, Phase::Applying);
        ApplyPermit::new(slot)
    }

    fn read(&self, index: usize, bytes: u64) {
        {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(told) = told.get_mut(index).filter(|told| told.elapsed() >= PACE) else {
                return;
            };
            *told = Instant::now();
        }
        self.flight.tell_read(self.first + index, bytes);
    }

    fn record_stage(&self, index: usize, stage: Stage, span: StageTiming) {
        self.flight.record_stage(self.first + index, stage, span);
    }
}
