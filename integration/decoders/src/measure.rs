// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Measurements, each by a process of its own: its peak of memory is that of one decoder.

use std::env;
use std::fmt;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::time::{ClockId, clock_gettime};

use crate::decoder::Decoder;

/// The argument by which the program measures one decoder.
pub(crate) const CHILD: &str = "decode";

/// The cost of one run of a decoder.
#[derive(Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) wall: f64,
    /// Seconds of user and system.
    pub(crate) cpu: f64,
    /// The peak of the resident set of the process, in KiB.
    pub(crate) peak: u64,
    /// Bytes of the output.
    pub(crate) bytes: u64,
}

/// Runs a decoder in this process.
pub(crate) fn measure(decoder: &Decoder, input: &Path) -> Result<Sample> {
    let (begin, before) = (Instant::now(), cpu()?);
    let bytes = (decoder.run)(input)?;
    Ok(Sample {
        wall: begin.elapsed().as_secs_f64(),
        cpu: cpu()?.saturating_sub(before).as_secs_f64(),
        peak: peak()?,
        bytes,
    })
}

/// The line that a child prints.
impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            wall,
            cpu,
            peak,
            bytes,
        } = self;
        write!(f, "{wall} {cpu} {peak} {bytes}")
    }
}

impl Sample {
    /// Runs a decoder, by its index, in a child process.
    pub(crate) fn of_child(decoder: usize, input: &Path) -> Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.arg(CHILD).arg(decoder.to_string()).arg(input);
        let output = command.stderr(Stdio::inherit()).output()?;
        if !output.status.success() {
            bail!("{command:?}: {}", output.status);
        }
        let text = String::from_utf8(output.stdout)?;
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [wall, cpu, peak, bytes] = fields[..] else {
            bail!("{command:?} printed {text:?}");
        };
        Ok(Self {
            wall: wall.parse()?,
            cpu: cpu.parse()?,
            peak: peak.parse()?,
            bytes: bytes.parse()?,
        })
    }
}

/// Returns the CPU time of this process.
fn cpu() -> Result<Duration> {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Ok(Duration::new(
        time.tv_sec.try_into()?,
        time.tv_nsec.try_into()?,
    ))
}

/// Returns the peak of the resident set of this process. Unlike that of `getrusage`, it has nothing of the process
/// that started this one.
fn peak() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").context("read the status")?;
    let figure = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let figure = figure.and_then(|figure| figure.trim().strip_suffix(" kB"));
    Ok(figure.context("no peak in the status")?.parse()?)
}

/// Returns the load average of the last minute.
pub(crate) fn load() -> Result<f64> {
    let text = fs::read_to_string("/proc/loadavg").context("read the load")?;
    let first = text.split_whitespace().next().unwrap_or_default();
    first.parse().with_context(|| format!("the load {text:?}"))
}
