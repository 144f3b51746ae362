// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The kinds of simulated snapshotters.

/// The answer of a simulated snapshotter to a Prepare with a layer's labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Writable mounts.
    Ordinary,
    /// A read-only mount: the content of the layer exists already.
    Staged,
    /// AlreadyExists, and the layer is committed. Without the labels that a remote snapshotter needs,
    /// like an ordinary one.
    Remote,
    /// AlreadyExists, although nothing exists: this many times for each layer, then like an ordinary
    /// one.
    Lying(usize),
}
