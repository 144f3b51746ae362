// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The lines that the demo prints, and the commands that it runs.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

/// Says what the next commands show.
pub(crate) fn say(text: &str) {
    println!("\n# {}", text.replace('\n', "\n# "));
}

/// Returns the time since then.
pub(crate) fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}

/// Runs the command, whose output is the demo's.
pub(crate) fn run(command: &mut Command, code: i32) -> Result<()> {
    let status = command
        // In one stream both stay in order, wherever the demo's output goes.
        .stderr(std::io::stdout())
        .status()
        .with_context(|| format!("start {command:?}"))?;
    ensure!(
        status.code() == Some(code),
        "{command:?}: {status}, not exit code {code}"
    );
    Ok(())
}
