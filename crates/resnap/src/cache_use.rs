// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The use of a cache of layers by this machine's containerd.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use resnap_containerd::Client;
use resnap_core::labels::DIFF_ID;
use resnap_core::{Scope, SnapshotKind};
use resnap_publish::CacheEntry;
use resnap_unpacker::UnpackError;

use crate::config::{Config, Source};
use crate::doctor::{ContainerdConfig, DEFAULT_FILE, Process};

/// The snapshotter that mounts cached layers where they are.
const SNAPSHOTTER: &str = "erofs";

/// Checks that no snapshot of this machine's containerd is one of these layers of a cache.
///
/// # Errors
/// One is, or that cannot be told.
pub(crate) async fn require_unused(
    config: &Config,
    dir: &Path,
    entries: &[CacheEntry],
) -> Result<()> {
    let socket = config.backend();
    if entries.is_empty() {
        return Ok(());
    }
    if !socket.exists() {
        if config.address.source != Source::Default {
            bail!(
                "containerd ({}) cannot be asked what it uses: it does not listen there",
                socket.display()
            );
        }
        let configured = fs::read_to_string(DEFAULT_FILE).unwrap_or_default();
        let dir = dir.display().to_string();
        if configured.contains(&dir) {
            bail!(
                "{DEFAULT_FILE} has {dir}, and containerd ({}) does not run to be asked what it uses: start it first",
                socket.display()
            );
        }
        return Ok(());
    }
    let unknown = || {
        format!(
            "whether containerd ({}) uses {dir:?} cannot be told",
            socket.display()
        )
    };
    let process = Process::listening_at(socket).await.with_context(unknown)?;
    let configured = ContainerdConfig::of(&process).await;
    let configured = configured
        .map_err(anyhow::Error::msg)
        .with_context(unknown)?;
    let is_given = configured.layer_caches().iter().any(|path| {
        let path = Path::new(path);
        path == dir || path.canonicalize().is_ok_and(|path| path == dir)
    });
    if !is_given {
        return Ok(());
    }
    let used = used(config).await.with_context(unknown)?;
    let found = entries
        .iter()
        .find(|entry| used.contains(entry.diff_id.0.as_str()));
    if let Some(entry) = found {
        bail!(
            "containerd has a snapshot of {}, and may mount it where it is: keep it in the list, or remove the image first",
            entry.path.display()
        );
    }
    Ok(())
}

/// Returns the diff IDs of all committed snapshots.
async fn used(config: &Config) -> Result<HashSet<String>> {
    let client = Client::connect(&config.address.value)
        .await
        .map_err(UnpackError::from)?;
    let snapshotter = client.ports().snapshotters.snapshotter(SNAPSHOTTER);
    let mut used = HashSet::new();
    for namespace in client.namespaces().await.map_err(UnpackError::from)? {
        let snapshots = snapshotter.list(&Scope::new(&namespace)).await;
        for snapshot in snapshots.map_err(UnpackError::from)? {
            if snapshot.kind != SnapshotKind::Committed {
                continue;
            }
            match snapshot.labels.get(DIFF_ID) {
                Some(diff_id) => _ = used.insert(diff_id.clone()),
                None => bail!(
                    "snapshot {} in namespace {namespace} has no label with its diff ID",
                    snapshot.key
                ),
            }
        }
    }
    Ok(used)
}
