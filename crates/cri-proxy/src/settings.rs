// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What an operator may say.

use std::collections::BTreeMap;

use resnap_core::Profiles;

/// What the proxy is told. Without a word of it, it goes by what containerd says.
#[derive(Debug, Clone, Default)]
pub struct ProxySettings {
    /// What is known of snapshotters.
    pub profiles: Profiles,
    /// Whether images are made ready on the default snapshotter as well, for which containerd pulls.
    pub always: bool,
    /// What is done about layers that somebody unpacked without labels, where the snapshotter needs
    /// them. If `None`: [`Unlabelled::Repair`] where labels alone do, else [`Unlabelled::Forward`].
    pub unlabelled: Option<Unlabelled>,
    /// The snapshotter for which containerd pulls.
    pub default_snapshotter: Option<String>,
    /// The image of sandboxes.
    pub sandbox_image: Option<String>,
    /// The snapshotters of runtime handlers.
    pub handlers: BTreeMap<String, String>,
}

/// What is done about layers that somebody unpacked without the labels their snapshotter needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unlabelled {
    /// They get their labels; where labels alone do not mend them and nothing uses them, they are
    /// removed and unpacked again. If that cannot be done, containerd gets the call.
    Repair,
    /// containerd gets the call, and the log a warning.
    Forward,
    /// The caller gets an error.
    Fail,
}
