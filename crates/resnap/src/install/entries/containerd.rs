// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The containerd whose configuration gets entries.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use resnap_core::SnapshotterInfo;
use toml::Table;

use crate::install::host::Host;

/// The containerd of the node.
#[derive(Debug, Clone)]
pub(crate) struct Containerd {
    pub(crate) program: PathBuf,
    /// The main configuration file.
    pub(crate) config: PathBuf,
    pub(crate) version: (u32, u32),
    /// Its process.
    pub(crate) pid: u32,
    pub(crate) snapshotters: Vec<SnapshotterInfo>,
    /// The names of the differs that work.
    pub(crate) differs: Vec<String>,
}

impl Containerd {
    /// Returns the configuration that it would start with.
    pub(super) async fn dump(&self, host: &Host) -> Result<Table> {
        let program = self.program.to_string_lossy();
        let config = self.config.to_string_lossy();
        let dump = [&program, "-c", &config, "config", "dump"];
        let dump = host.programs.run(&dump).await?;
        let parsed = dump.parse();
        parsed.with_context(|| format!("parse what `{program} -c {config} config dump` prints"))
    }
}
