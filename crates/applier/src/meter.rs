// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Measurements of the stages of writing a layer.

use std::time::{Duration, Instant};

use resnap_core::StageTiming;

/// A measurement of the time that a stage is busy.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    begin: Option<Instant>,
    end: Option<Instant>,
    pub(crate) busy: Duration,
}

impl Meter {
    pub(crate) fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let done = work();
        let end = Instant::now();
        self.begin.get_or_insert(begin);
        self.end = Some(end);
        self.busy += end - begin;
        done
    }

    pub(crate) fn timing(&self) -> Option<StageTiming> {
        Some(StageTiming {
            start: self.begin?,
            end: self.end?,
            busy: self.busy,
        })
    }
}
