// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The results, as tables and as files for programs.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use resnap_integration::debian::target_dir;
use serde::Serialize;

/// The columns of a table behind the variant.
pub(crate) const COLUMNS: [&str; 11] = [
    "RPCs", "median", "min", "p99", "calls/s", "ratio", "peak", "CPU", "floor", "other", "tenant",
];

/// Variants side by side.
#[derive(Serialize)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// The caption: the meaning of the rows and columns.
    pub(crate) about: String,
    pub(crate) containerd: String,
    pub(crate) cores: usize,
    pub(crate) rows: Vec<Row>,
}

/// The load averages of a minute, before the first variant and after the last.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Load {
    pub(crate) before: f64,
    pub(crate) after: f64,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { before, after } = self;
        write!(
            f,
            "Load of the machine: {before:.1} before, {after:.1} at the end."
        )
    }
}

/// A table, and the load under which it was measured.
#[derive(Serialize)]
struct Measured<'a> {
    #[serde(flatten)]
    table: &'a Table,
    load: Load,
}

/// A variant.
#[derive(Clone, Default, Serialize)]
pub(crate) struct Row {
    pub(crate) variant: String,
    /// The number of things that were looked at, if the same is measured for several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<usize>,
    /// In the order they were taken.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) milliseconds: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) median: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) min: Option<f64>,
    /// The 99th percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) per_second: Option<f64>,
    /// Its median as a multiple of that of the row which it is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ratio: Option<f64>,
    /// The calls that containerd got of one run.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) calls: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) peak_kib: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_seconds: Option<f64>,
    /// Its median as a multiple of what nobody can do without.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) of_floor: Option<f64>,
    /// The least of its times as a multiple of that of another build: what else the machine does
    /// only adds to them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) of_other: Option<f64>,
    /// The outcome of the other tenant's request, and its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tenant: Option<Tenant>,
}

/// The outcome of a request for a tenant's container.
#[derive(Clone, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Tenant {
    /// It was there, after seconds.
    Ready(f64),
    /// The answer was this status instead, after seconds.
    Refused(String, f64),
    /// There was no answer in so many seconds.
    Waits(f64),
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(after) => write!(f, "{after:.2} s"),
            Self::Refused(status, after) => write!(f, "{status} ({after:.2} s)"),
            Self::Waits(limit) => write!(f, "not ready after {limit:.0} s"),
        }
    }
}

impl Row {
    pub(crate) fn timed(variant: impl Into<String>, samples: &[Duration]) -> Self {
        let milliseconds: Vec<f64> = samples
            .iter()
            .map(|sample| sample.as_secs_f64() * 1e3)
            .collect();
        let mut sorted = milliseconds.clone();
        sorted.sort_by(f64::total_cmp);
        Self {
            variant: variant.into(),
            median: sorted.get(sorted.len() / 2).copied(),
            min: sorted.first().copied(),
            milliseconds,
            ..Self::default()
        }
    }

    /// Calls that were too many to show each, made at this rate.
    pub(crate) fn calls(variant: impl Into<String>, samples: &[Duration], per_second: f64) -> Self {
        let row = Self::timed(variant, samples);
        let mut sorted = row.milliseconds;
        sorted.sort_by(f64::total_cmp);
        Self {
            milliseconds: Vec::new(),
            p99: sorted.get(sorted.len() * 99 / 100).copied(),
            per_second: Some(per_second),
            ..row
        }
    }

    pub(crate) fn against(mut self, other: &Self) -> Self {
        self.ratio = self.of(other);
        self
    }

    /// Its median as a multiple of the other's.
    pub(crate) fn of(&self, other: &Self) -> Option<f64> {
        self.median.zip(other.median).map(|(own, of)| own / of)
    }

    /// Returns the texts of the [`COLUMNS`].
    pub(crate) fn cells(&self) -> [String; COLUMNS.len()] {
        let calls: u64 = self.calls.values().sum();
        let ratio = |ratio: f64| format!("{ratio:.2}");
        [
            (calls > 0).then(|| calls.to_string()),
            self.median.map(milliseconds),
            self.min.map(milliseconds),
            self.p99.map(milliseconds),
            self.per_second.map(|rate| format!("{rate:.0}")),
            self.ratio.map(ratio),
            self.peak_kib
                .map(|kib| format!("{:.1} MiB", kib as f64 / 1024.0)),
            self.cpu_seconds.map(|seconds| format!("{seconds:.2} s")),
            self.of_floor.map(ratio),
            self.of_other.map(ratio),
            self.tenant.as_ref().map(Tenant::to_string),
        ]
        .map(Option::unwrap_or_default)
    }

    /// With that of another build beside it.
    pub(crate) fn beside(mut self, other: &Self) -> Self {
        self.of_other = self.min.zip(other.min).map(|(own, of)| own / of);
        self
    }
}

impl Table {
    pub(crate) fn show(&self, load: Load) {
        println!("\n# {}: {}", self.name, self.about);
        println!("{load}");
        println!("{}", line("", COLUMNS.map(str::to_owned)));
        for row in &self.rows {
            println!("{}", line(&row.variant, row.cells()));
        }
    }

    pub(crate) fn write(&self, load: Load) -> Result<()> {
        let path = dir()?.join(format!("{}.json", self.name));
        let text = serde_json::to_string_pretty(&Measured { table: self, load })?;
        fs::write(&path, text).with_context(|| format!("write {path:?}"))
    }
}

/// Returns the directory of the results.
pub(crate) fn dir() -> Result<PathBuf> {
    let dir = target_dir().with_file_name("bench");
    fs::create_dir_all(&dir).with_context(|| format!("create {dir:?}"))?;
    Ok(dir)
}

/// Returns a time as people read it.
pub(crate) fn milliseconds(time: f64) -> String {
    match time.abs() {
        1000.0.. => format!("{:.2} s", time / 1e3),
        10.0.. => format!("{time:.1} ms"),
        _ => format!("{time:.3} ms"),
    }
}

/// Returns a line of a table.
fn line(variant: &str, cells: [String; COLUMNS.len()]) -> String {
    let widths = [7, 11, 11, 11, 9, 8, 11, 9, 8, 8];
    let [first @ .., last] = cells;
    let cells = first.iter().zip(widths);
    let cells: String = cells
        .map(|(cell, width)| format!("{cell:>width$}"))
        .collect();
    format!("{variant:<52}{cells}  {last}")
}
