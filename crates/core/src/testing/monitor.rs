// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A monitor without any limits.

use async_trait::async_trait;

use crate::{ApplyMonitor, ApplyPermit, Stage, StageTiming};

/// A monitor that admits every layer at once and ignores progress.
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
