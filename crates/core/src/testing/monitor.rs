// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A monitor that lets all go on.

use async_trait::async_trait;

use crate::{ApplyMonitor, ApplyPermit, Stage, StageTiming};

/// Who admits every layer at once, and does not listen.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoopMonitor;

#[async_trait]
impl ApplyMonitor for NoopMonitor {
    async fn admit(&self, _: usize) -> ApplyPermit {
        ApplyPermit::new(())
    }

    fn read(&self, _: usize, _: u64) {}

    fn record_stage(&self, _: usize, _: Stage, _: StageTiming) {}
}
