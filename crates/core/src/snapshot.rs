// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Snapshots (containerd `core/snapshots/snapshotter.go`).

use std::fmt;
use std::time::SystemTime;

use serde::Serialize;

use crate::{ChainId, Labels};

/// The name of a snapshot within one snapshotter and namespace: the [`ChainId`] of a committed layer, or
/// the name that the creator of an active snapshot chose.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SnapshotKey(String);

impl SnapshotKey {
    /// Returns a key for an active snapshot in which `chain_id` is unpacked. The form `extract-UNIQUE
    /// CHAINID` is containerd's own (`core/unpack/unpacker.go`), so that operators recognise it.
    pub fn extraction(unique: &str, chain_id: &ChainId) -> Self {
        Self(format!("extract-{unique} {chain_id}"))
    }

    /// Returns whether this is the key of an [extraction](Self::extraction), by resnap or containerd.
    pub fn is_extraction(&self) -> bool {
        self.0.starts_with("extract-")
    }

    /// Returns the key as text.
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

/// The kind of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Writable.
    Active,
    /// Read-only, and a possible parent of others.
    Committed,
    /// A read-only view of a committed snapshot.
    View,
}

/// The result of Stat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its name.
    pub key: SnapshotKey,
    /// The committed parent.
    pub parent: Option<SnapshotKey>,
    /// Its kind.
    pub kind: SnapshotKind,
    /// Its labels.
    pub labels: Labels,
    /// The time of creation, or of the commit.
    pub created: SystemTime,
}

/// The disk space of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// The bytes.
    pub bytes: u64,
    /// The inodes.
    pub inodes: u64,
}
