// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Figures of a process over time, and whether they grow.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

/// The figures of a process at one time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    pub(super) at: Duration,
    /// The resident memory in KiB.
    pub(super) memory: u64,
    pub(super) descriptors: u64,
    pub(super) threads: u64,
}

impl Sample {
    pub(super) fn of(process: u32, at: Duration) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let figure = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let word = line.and_then(|line| line.split_whitespace().next());
            let word = word.with_context(|| format!("no {name} of process {process}"))?;
            anyhow::Ok(word.parse::<u64>()?)
        };
        Ok(Self {
            at,
            memory: figure("VmRSS:")?,
            descriptors: fs::read_dir(format!("/proc/{process}/fd"))?.count() as u64,
            threads: figure("Threads:")?,
        })
    }
}

/// A figure with its name, and the growth that is none: what is in use at one time and not at another.
pub(super) type Figure = (&'static str, fn(&Sample) -> u64, u64);

pub(super) const FIGURES: [Figure; 3] = [
    ("resident memory (KiB)", |sample| sample.memory, 16 << 10),
    ("descriptors", |sample| sample.descriptors, 16),
    ("threads", |sample| sample.threads, 4),
];

/// Checks that no figure is higher in the last quarter than in the second.
pub(super) fn is_flat(samples: &[Sample]) -> Result<()> {
    let quarter = samples.len() / 4;
    ensure!(quarter > 0, "{} samples are too few", samples.len());
    for (name, figure, spare) in FIGURES {
        let middle = |samples: &[Sample]| {
            let mut figures: Vec<u64> = samples.iter().map(figure).collect();
            figures.sort_unstable();
            figures[figures.len() / 2]
        };
        let before = middle(&samples[quarter..2 * quarter]);
        let after = middle(&samples[samples.len() - quarter..]);
        println!("{name}: {before} became {after}");
        ensure!(after <= before + spare, "{name}: {before} became {after}");
    }
    Ok(())
}
