// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Chains of snapshots, as a view shows them.

use crate::{Mount, SnapshotInfo};

/// A view of a chain of snapshots of one snapshotter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainView {
    /// The snapshotter.
    pub snapshotter: String,
    /// The mounts of a view of the top snapshot.
    pub mounts: Vec<Mount>,
    /// The committed snapshots, the base first.
    pub snapshots: Vec<SnapshotInfo>,
}
