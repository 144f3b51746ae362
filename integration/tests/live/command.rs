// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Commands that run to their end, and what they print.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// The exit code and output of a command.
#[derive(Debug)]
pub(crate) struct CommandOutput {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl CommandOutput {
    /// Returns the standard output of a command that ended with 0.
    pub(crate) fn ok(self) -> Result<String> {
        ensure!(self.code == Some(0), "want exit code 0: {self:#?}");
        Ok(self.stdout)
    }

    /// Returns the lines of JSON of a command that ended with 0.
    pub(crate) fn json_lines(self) -> Result<Vec<Value>> {
        let text = self.ok()?;
        text.lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }

    /// Returns the report of an unpack that ended with 0.
    pub(crate) fn report(self) -> Result<Value> {
        let mut lines = self.json_lines()?;
        let report = lines.last_mut().and_then(|line| line.get_mut("report"));
        Ok(report.context("the last line has no report")?.take())
    }

    /// Returns the error that a command ended with, as it tells it to programs: kind, message and next
    /// step. All three were told to people as well.
    pub(crate) fn error(self) -> Result<Value> {
        ensure!(self.code == Some(2), "want exit code 2: {self:#?}");
        let line = self.stdout.lines().last().context("nothing was printed")?;
        let error = serde_json::from_str::<Value>(line)?["error"].take();
        for key in ["message", "next_step"] {
            let text = error[key].as_str();
            let text = text.with_context(|| format!("no {key} in {error}"))?;
            ensure!(self.stderr.contains(text), "{text:?} is not on stderr");
        }
        Ok(error)
    }

    /// Returns the kind of the error that a command ended with.
    pub(crate) fn kind(&self) -> Result<String> {
        let line = self.stdout.lines().last().context("nothing was printed")?;
        let error: Value = serde_json::from_str(line)?;
        let kind = error["error"]["kind"].as_str();
        Ok(kind
            .with_context(|| format!("no kind in {error}"))?
            .to_owned())
    }

    /// Returns the JSON document of a command that ended with 0.
    pub(crate) fn json(self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok()?)?)
    }
}

/// Returns a command for the binary under test.
pub(crate) fn resnap() -> Result<Command> {
    let exe = std::env::current_exe()?;
    let bin = exe
        .ancestors()
        .nth(2)
        .context("the test has no target directory")?
        .join("resnap");
    ensure!(
        bin.is_file(),
        "{bin:?} is not built: run `make build` (or `cargo build`) first"
    );
    Ok(Command::new(bin))
}

/// Runs a command to its end.
pub(crate) fn run_to_end(command: &mut Command) -> Result<CommandOutput> {
    let output = command
        .output()
        .with_context(|| format!("run {command:?}"))?;
    Ok(CommandOutput {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}
