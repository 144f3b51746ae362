// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Snapshots (containerd `core/snapshots/snapshotter.go`).

use std::fmt;

use serde::Serialize;

use crate::{ChainId, Labels};

/// The name of a snapshot within one snapshotter and namespace: of a committed layer its
/// [`ChainId`], of an active snapshot what its maker chose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SnapshotKey(String);

impl SnapshotKey {
    /// The key of an active snapshot in which `chain_id` is unpacked. The form `extract-UNIQUE
    /// CHAINID` is containerd's own (`core/unpack/unpacker.go`), so that whoever looks at a node
    /// knows what it is.
    pub fn extraction(unique: &str, chain_id: &ChainId) -> Self {
        Self(format!("extract-{unique} {chain_id}"))
    }

    /// Whether this is the key of an [extraction](Self::extraction), ours or containerd's own.
    pub fn is_extraction(&self) -> bool {
        self.0.starts_with("extract-")
    }

    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&ChainId> for SnapshotKey {
    fn from(chain_id: &ChainId) -> Self {
        Self(chain_id.as_str().to_owned())
    }
}

impl From<String> for SnapshotKey {
    fn from(key: String) -> Self {
        Self(key)
    }
}

impl fmt::Display for SnapshotKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Writable, being made.
    Active,
    /// Read-only, a parent for others.
    Committed,
    /// A read-only look at a committed one.
    View,
}

/// What Stat says of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub key: SnapshotKey,
    /// The committed snapshot below it.
    pub parent: Option<SnapshotKey>,
    /// What it is.
    pub kind: SnapshotKind,
    /// Its labels.
    pub labels: Labels,
}
