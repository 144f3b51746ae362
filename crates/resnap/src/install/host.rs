// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The node: its files and its programs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use async_trait::async_trait;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::timeout;

/// The time that a program has to end: systemd waits for a service to be ready, which takes containerd's start.
const PATIENCE: Duration = Duration::from_secs(120);

/// The node that is changed.
pub(crate) struct Host {
    /// The root directory of its files.
    pub(crate) root: PathBuf,
    pub(crate) programs: Box<dyn Programs>,
}

/// The programs of the node.
#[async_trait]
pub(crate) trait Programs: Send + Sync {
    /// Runs a program to its end, and returns its standard output.
    async fn run(&self, words: &[&str]) -> Result<String>;
}

/// The programs of the machine that this process runs on.
pub(crate) struct SystemPrograms;

#[async_trait]
impl Programs for SystemPrograms {
    async fn run(&self, words: &[&str]) -> Result<String> {
        let text = words.join(" ");
        let (program, arguments) = words.split_first().context("no program is named")?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("run `{text}`"))?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let ended = tokio::task::spawn_blocking(|| child.wait_with_output());
        let Ok(ended) = timeout(PATIENCE, ended).await else {
            pid.map(|pid| kill_process(pid, Signal::KILL)).transpose()?;
            bail!("`{text}` has not ended in {PATIENCE:?}");
        };
        let output = ended?.with_context(|| format!("run `{text}`"))?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("`{text}`: {}: {}", output.status, stderr.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Host {
    /// Returns where a path of the node is found.
    pub(super) fn at(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Reads a file of the node. Returns `None` if there is none.
    pub(super) fn read(&self, path: &Path) -> Result<Option<Vec<u8>>> {
        match fs::read(self.at(path)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {path:?}")),
        }
    }

    /// Returns properties of a unit. Those with several values have them on lines.
    pub(super) async fn unit(
        &self,
        name: &str,
        properties: &str,
    ) -> Result<BTreeMap<String, String>> {
        let property = format!("--property={properties}");
        let show = ["systemctl", "show", name, &property];
        let shown = self.programs.run(&show).await?;
        let mut found: BTreeMap<String, String> = BTreeMap::new();
        for line in shown.lines() {
            if let Some((key, value)) = line.split_once('=') {
                let values = found.entry(key.to_owned()).or_default();
                if !values.is_empty() {
                    values.push('\n');
                }
                values.push_str(value);
            }
        }
        Ok(found)
    }

    /// Returns whether a unit is active, or on its way.
    pub(super) async fn is_active(&self, name: &str) -> Result<bool> {
        let unit = self.unit(name, "ActiveState").await?;
        let state = unit.get("ActiveState").map_or("", String::as_str);
        Ok(matches!(state, "active" | "activating" | "reloading"))
    }

    /// Returns whether a unit is started at boot.
    pub(super) async fn is_enabled(&self, name: &str) -> Result<bool> {
        let unit = self.unit(name, "UnitFileState").await?;
        Ok(unit
            .get("UnitFileState")
            .is_some_and(|state| state == "enabled"))
    }
}
