// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Commands that run to their end.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs the command and fails with what it wrote to stderr.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Like `run`, with what the command wrote to stdout.
pub fn output(command: &mut Command) -> Result<String> {
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {command:?}"))?;
    let stdout = String::from_utf8_lossy(&out.stdout).into_owned();
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!(
            "{command:?}: {}: {}{}",
            out.status,
            stderr.trim(),
            stdout.trim()
        );
    }
    Ok(stdout)
}
