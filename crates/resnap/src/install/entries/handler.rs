// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Runtime handlers as operators name them.

use std::str::FromStr;

use anyhow::{Result, bail};

use super::containerd::Containerd;

/// A runtime handler with a snapshotter of its own, written `HANDLER=SNAPSHOTTER`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Handler {
    pub(super) name: String,
    pub(super) snapshotter: String,
}

impl FromStr for Handler {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, snapshotter)) if !name.is_empty() && !snapshotter.is_empty() => Ok(Self {
                name: name.to_owned(),
                snapshotter: snapshotter.to_owned(),
            }),
            _ => Err("it is not HANDLER=SNAPSHOTTER".to_owned()),
        }
    }
}

impl Handler {
    /// Checks that containerd has the snapshotter, and that it works.
    pub(super) fn require_snapshotter(&self, containerd: &Containerd) -> Result<()> {
        let Self { name, snapshotter } = self;
        let all = &containerd.snapshotters;
        let found = all.iter().find(|info| info.name == *snapshotter);
        match found.map(|info| &info.failure) {
            Some(None) => Ok(()),
            Some(Some(failure)) => bail!(
                "--handler {name}={snapshotter}: containerd's snapshotter {snapshotter} did not load: {failure}. Mend \
                 that, restart containerd, and run this again"
            ),
            None => {
                let working = all.iter().filter(|info| info.failure.is_none());
                let names: Vec<&str> = working.map(|info| info.name.as_str()).collect();
                bail!(
                    "--handler {name}={snapshotter}: containerd has no snapshotter {snapshotter}; it has {}. One that \
                     was added to its configuration is there after a restart",
                    names.join(", ")
                )
            }
        }
    }
}
