// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Figures of a process, as the kernel reports them.

use std::fs;

use anyhow::{Context as _, Result};

/// The ticks of a second of CPU time in `/proc`, the same on every architecture.
const TICKS: f64 = 100.0;

/// Returns a figure of a process in KiB, as its status names it.
pub(crate) fn memory(process: u32, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let mut lines = status.lines();
    let figure = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let figure = figure.and_then(|figure| figure.trim().strip_suffix(" kB"));
    let figure = figure.with_context(|| format!("no {name} in the status"))?;
    Ok(figure.parse()?)
}

/// Returns the CPU seconds of a process with its ended children, and those of its ended children alone.
pub(crate) fn cpu(process: u32) -> Result<(f64, f64)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name, which may hold anything, is in parentheses; after it the state is field 3.
    let fields = stat.rsplit(") ").next().unwrap_or_default().split(' ');
    let ticks: Vec<f64> = fields
        .skip(11)
        .take(4)
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let [user, system, children_user, children_system] = ticks[..] else {
        anyhow::bail!("{stat:?} has no times");
    };
    let children = (children_user + children_system) / TICKS;
    Ok(((user + system) / TICKS + children, children))
}

/// Returns the load average of the last minute.
pub(crate) fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("read the load")?;
    let first = text.split_whitespace().next().unwrap_or_default();
    first.parse().with_context(|| format!("the load {text:?}"))
}
