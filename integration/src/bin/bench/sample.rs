// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The costs of runs of a program.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::process::{cpu, memory};
use crate::table::Row;

/// Often enough for the peak, which only grows, to be that of the last moment.
const LOOK: Duration = Duration::from_millis(2);

/// The cost of one run.
#[derive(Debug)]
pub(crate) struct Sample {
    wall: Duration,
    /// In seconds.
    pub(crate) cpu: f64,
    peak_kib: u64,
}

impl Sample {
    /// Runs a command to its good end.
    pub(crate) fn of(command: &mut Command) -> Result<Self> {
        let own = std::process::id();
        let before = cpu(own)?.1;
        let begin = Instant::now();
        let mut child = command
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let mut peak = 0;
        let status = loop {
            // There is none when it is ending.
            peak = memory(child.id(), "VmHWM").unwrap_or(peak);
            if let Some(status) = child.try_wait()? {
                break status;
            }
            std::thread::sleep(LOOK);
        };
        ensure!(status.success(), "{command:?}: {status}");
        Ok(Self {
            wall: begin.elapsed(),
            cpu: cpu(own)?.1 - before,
            peak_kib: peak,
        })
    }

    /// Prints the sample of a variant: a table takes minutes.
    pub(crate) fn show(&self, variant: &str) {
        println!(
            "{variant}: {:.2} s, {:.2} s CPU, {} KiB",
            self.wall.as_secs_f64(),
            self.cpu,
            self.peak_kib
        );
    }

    /// Returns the row of a variant.
    pub(crate) fn row(variant: impl Into<String>, samples: &[Self]) -> Row {
        let walls: Vec<_> = samples.iter().map(|sample| sample.wall).collect();
        Row {
            cpu_seconds: median(samples.iter().map(|sample| sample.cpu).collect()),
            peak_kib: samples.iter().map(|sample| sample.peak_kib).max(),
            ..Row::timed(variant, &walls)
        }
    }
}

pub(crate) fn median(mut samples: Vec<f64>) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 2).copied()
}
