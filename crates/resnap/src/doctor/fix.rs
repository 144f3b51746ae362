// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Fixes that are safe: they take nothing from a container, and nothing that could not be had again.

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use resnap_unpacker::{Engine, Request};
use serde::Serialize;

/// A fix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "kebab-case")]
pub(crate) enum Fix {
    DeleteOrphanedLeases,
    RemoveStaging { root: PathBuf },
    CollectGarbage,
    Repair { image: String, snapshotter: String },
    Unpack { image: String, snapshotter: String },
}

impl fmt::Display for Fix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeleteOrphanedLeases => f.write_str("delete the orphaned leases"),
            Self::RemoveStaging { root } => {
                write!(
                    f,
                    "remove what was left in {}",
                    root.join(".resnap").display()
                )
            }
            Self::CollectGarbage => f.write_str("have containerd collect its garbage"),
            Self::Repair { image, snapshotter } => {
                write!(f, "repair {image} on {snapshotter}, unless it is in use")
            }
            Self::Unpack { image, snapshotter } => write!(f, "unpack {image} on {snapshotter}"),
        }
    }
}

impl Fix {
    pub(crate) async fn run(&self, engine: &Engine) -> Result<()> {
        match self {
            Self::DeleteOrphanedLeases => engine.sweep().await.map(drop)?,
            Self::RemoveStaging { root } => {
                let root = root.clone();
                let cleared = tokio::task::spawn_blocking(move || resnap_applier::clear(&root));
                cleared.await??;
            }
            Self::CollectGarbage => engine.collect_garbage().await?,
            Self::Repair { image, snapshotter } => {
                let mut request = Request::new(image).on(snapshotter);
                request.repair = true;
                engine.unpack(request).report().await?;
            }
            Self::Unpack { image, snapshotter } => {
                let request = Request::new(image).on(snapshotter);
                engine.unpack(request).report().await?;
            }
        }
        Ok(())
    }
}
