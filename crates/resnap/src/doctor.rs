// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The checks of `resnap doctor`: whether a node is well, and what to do where not.
//!
//! A look reads everything once. The checks change nothing; what some of their findings can have fixed is done
//! only afterwards.

mod containerd;
mod containerd_config;
mod daemon;
mod differs;
pub(crate) mod disk;
pub(crate) mod finding;
pub(crate) mod fix;
mod images;
mod kernel;
mod kubelet;
mod look;
mod orphans;
mod process;
mod snapshots;

use anyhow::Result;
use resnap_containerd::Client;
use resnap_unpacker::Engine;

use crate::config::Config;
pub(crate) use containerd_config::{ContainerdConfig, DEFAULT_FILE, main_file};
use disk::Disk;
use finding::Findings;
use look::Look;
pub(crate) use look::daemon::config_warning;
pub(crate) use process::Process;

/// The results of a look at the node.
pub(crate) struct Examined {
    pub(crate) findings: Findings,
    pub(crate) disk: Option<Disk>,
}

/// Looks at the node, and checks everything. Measures the disk space of images if `disk` is set.
///
/// # Errors
/// containerd does not answer.
pub(crate) async fn examine(
    config: &Config,
    engine: &Engine,
    client: &Client,
    disk: bool,
) -> Result<Examined> {
    let look = Look::take(config, engine, client).await?;
    let mut findings = Findings::default();
    containerd::check(&look, &mut findings);
    differs::check(&look, &mut findings);
    kernel::check(&look, &mut findings);
    kubelet::check(&look, &mut findings);
    daemon::check(&look, &mut findings);
    images::check(&look, &mut findings);
    snapshots::check(&look, &mut findings).await;
    orphans::check(&look, &mut findings);
    findings.sort();
    let disk = match disk {
        true => Some(disk::measure(&look, client).await?),
        false => None,
    };
    Ok(Examined { findings, disk })
}
