// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The kinds of simulated snapshotters.

/// How a simulated snapshotter answers a Prepare that carries a layer's labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// With mounts to write to.
    Ordinary,
    /// With a read-only mount: the layer is there already.
    Staged,
    /// With AlreadyExists, and the layer is committed. Without the labels a remote snapshotter
    /// lives on, as an ordinary one.
    Remote,
    /// With AlreadyExists, and nothing is there: so many times for each layer, then as an ordinary
    /// one.
    Lying(usize),
}
