// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The settings of the proxy.

use std::collections::BTreeMap;

use resnap_core::{Profiles, PullCredentials};

/// The settings of a proxy. What they leave out, the proxy asks containerd.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ProxySettings {
    /// The properties of snapshotters.
    pub profiles: Profiles,
    /// Whether images are also made ready on the default snapshotter, to which containerd unpacks
    /// what it pulls.
    pub always: bool,
    /// The policy for layers that were unpacked without the labels that their snapshotter needs. By
    /// default [`Unlabelled::Repair`] where setting labels suffices, else [`Unlabelled::Forward`].
    pub unlabelled: Option<Unlabelled>,
    /// The store for the credentials of pulls, by which missing layers are fetched for the same pod.
    pub credentials: Option<PullCredentials>,
    /// The default snapshotter, instead of containerd's.
    pub default_snapshotter: Option<String>,
    /// The sandbox image, instead of containerd's.
    pub sandbox_image: Option<String>,
    /// The snapshotters of runtime handlers, instead of containerd's.
    pub handlers: BTreeMap<String, String>,
}

/// A policy for layers that were unpacked without the labels that their snapshotter needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlabelled {
    /// Set the labels. Where that does not suffice and the layers are not in use, remove them and
    /// unpack them again. If that is not possible, forward the call.
    Repair,
    /// Forward the call, and log a warning.
    Forward,
    /// Answer the call with an error.
    Fail,
}
