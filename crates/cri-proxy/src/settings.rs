// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The settings of the proxy.

use std::collections::BTreeMap;
use std::path::PathBuf;

use resnap_core::{Profiles, PullCredentials};

/// The default directory of kubelet.
pub const KUBELET_ROOT: &str = "/var/lib/kubelet";

/// The settings of a proxy. What they leave out, the proxy asks containerd.
#[derive(Debug, Clone)]
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
    /// When a pull names the handler of its pod, so that containerd unpacks the image for that handler.
    /// [`When::Safe`] means: if the image is on the default snapshotter already. By a steered first pull
    /// it would not get there.
    pub steer_pulls: When,
    /// When an image is reported as absent that cannot be made ready for want of credentials, so that
    /// kubelet pulls it with its own. [`When::Safe`] means: if kubelet has pulled it before, or keeps no
    /// records of pulls. Else a pull would take the image from pods with other credentials.
    pub image_status: When,
    /// The directory of kubelet, with its records of pulls. The default is `/var/lib/kubelet`.
    pub kubelet_root: PathBuf,
    /// The store for the credentials of pulls, by which missing layers are fetched for the same pod.
    pub credentials: Option<PullCredentials>,
    /// The default snapshotter, instead of containerd's.
    pub default_snapshotter: Option<String>,
    /// The sandbox image, instead of containerd's.
    pub sandbox_image: Option<String>,
    /// The snapshotters of runtime handlers, instead of containerd's.
    pub handlers: BTreeMap<String, String>,
}

impl Default for ProxySettings {
    fn default() -> Self {
        Self {
            profiles: Profiles::default(),
            always: false,
            unlabelled: None,
            steer_pulls: When::Safe,
            image_status: When::Safe,
            kubelet_root: KUBELET_ROOT.into(),
            credentials: None,
            default_snapshotter: None,
            sandbox_image: None,
            handlers: BTreeMap::new(),
        }
    }
}

/// When the proxy changes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum When {
    /// If no other pod can suffer from it.
    #[default]
    Safe,
    /// Whenever it is of use.
    Always,
    /// Never.
    Never,
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
