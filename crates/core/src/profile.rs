// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Built-in facts about snapshotters, by name. Snapshotters do not report them.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::Integrity;

/// The facts about one snapshotter. The profile of an unknown snapshotter is empty: it has no
/// requirements.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// The labels it requires, if any.
    pub need: Option<LabelRequirement>,
    /// The content of images that are mounted on the host, as image volumes are.
    pub volumes: Volumes,
    /// The OS features of images that it supports natively.
    pub os_features: BTreeSet<String>,
    /// Whether a layer is flushed to disk before it is committed. The default is that of containerd: it
    /// is not.
    pub sync_fs: bool,
    /// The proof that its layers need.
    pub integrity: Integrity,
}

/// The requirement of a snapshotter for labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelRequirement {
    /// Its use of the labels, and what happens without them.
    pub why: Cow<'static, str>,
    /// The layers that need labels.
    pub layers: LabeledLayers,
    /// The label that repairs a snapshot which was committed without the others, if there is one.
    pub repair_label: Option<(&'static str, &'static str)>,
}

impl LabelRequirement {
    /// Returns whether the layer at `index` of `count` needs labels.
    pub fn covers(&self, index: usize, count: usize) -> bool {
        self.layers == LabeledLayers::Every || index + 1 == count
    }
}

/// The layers of an image that need labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabeledLayers {
    /// Every layer.
    Every,
    /// The top layer, the parent of a container's snapshot.
    Top,
}

/// The content of an image that is mounted on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Volumes {
    /// Unknown.
    #[default]
    Unknown,
    /// Its files.
    Host,
    /// Its files, except with versions of containerd that cannot mount it. Versions are major and minor.
    HostExcept {
        /// The first version that cannot mount it.
        from: (u32, u32),
        /// The first version that can mount it again.
        until: (u32, u32),
    },
    /// Nothing: with labels, the files appear in the guest only.
    Guest,
}

/// The OS feature of an image whose layers are EROFS images.
pub const EROFS_FEATURE: &str = "erofs";

/// The OS feature of an image in the Nydus format (nydusify `pkg/converter`).
const NYDUS_FEATURE: &str = "nydus.remoteimage.v1";

const LAZILY: &str = "mounts layers lazily by them; without, every layer is unpacked whole";

/// The table of snapshotters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profiles(BTreeMap<String, Profile>);

impl Default for Profiles {
    /// Returns the profiles of containerd's own snapshotters and of widely used others.
    fn default() -> Self {
        let lazy = |why| Profile {
            need: Some(LabelRequirement {
                why: Cow::Borrowed(why),
                layers: LabeledLayers::Every,
                repair_label: None,
            }),
            volumes: Volumes::Host,
            ..Profile::default()
        };
        let plain = |volumes| Profile {
            volumes,
            ..Profile::default()
        };
        // containerd up to 2.4 does not report the OS features of its snapshotters.
        let takes = |feature: &str| BTreeSet::from([feature.to_owned()]);
        let nydus = Profile {
            need: Some(LabelRequirement {
                why: Cow::Borrowed(
                    "finds image and layer by them; without, layers are unpacked on the host or \
                     the container fails",
                ),
                layers: LabeledLayers::Top,
                // The mounts of a container depend on its parent (nydus-snapshotter 0.13.4
                // `snapshot/snapshot.go`): in proxy mode by this label and the layer's digest.
                repair_label: Some(("containerd.io/snapshot/nydus-proxy-mode", "true")),
            }),
            volumes: Volumes::Guest,
            os_features: takes(NYDUS_FEATURE),
            ..Profile::default()
        };
        let overlaybd = Profile {
            volumes: Volumes::Unknown,
            ..lazy(
                "finds the remote blob by them; without, every layer is fetched and unpacked whole",
            )
        };
        let table = [
            // Since 2.2 its mounts need the mount manager, which image volumes use since 2.4 (containerd
            // #13542).
            (
                "erofs",
                Profile {
                    os_features: takes(EROFS_FEATURE),
                    ..plain(Volumes::HostExcept {
                        from: (2, 2),
                        until: (2, 4),
                    })
                },
            ),
            ("nydus", nydus),
            ("overlaybd", overlaybd),
            ("overlayfs", plain(Volumes::Host)),
            ("soci", lazy(LAZILY)),
            ("stargz", lazy(LAZILY)),
        ];
        Self(
            table
                .map(|(name, profile)| (name.to_owned(), profile))
                .into(),
        )
    }
}

impl Profiles {
    /// Returns the profile of a snapshotter.
    pub fn get(&self, snapshotter: &str) -> &Profile {
        const UNKNOWN: &Profile = &Profile {
            need: None,
            volumes: Volumes::Unknown,
            os_features: BTreeSet::new(),
            sync_fs: false,
            integrity: Integrity::Off,
        };
        self.0.get(snapshotter).unwrap_or(UNKNOWN)
    }

    /// Returns the label requirement of a snapshotter.
    pub fn need(&self, snapshotter: &str) -> Option<&LabelRequirement> {
        self.get(snapshotter).need.as_ref()
    }

    /// Returns those of `features` that a snapshotter does not support.
    pub fn not_taken<'a>(
        &self,
        snapshotter: &str,
        features: impl IntoIterator<Item = &'a String>,
    ) -> Vec<&'a str> {
        let taken = &self.get(snapshotter).os_features;
        let features = features.into_iter();
        let missing = features.filter(|feature| !taken.contains(*feature));
        missing.map(String::as_str).collect()
    }

    /// Returns the profile of a snapshotter for modification, and adds it to the table if it is missing.
    pub fn entry(&mut self, snapshotter: &str) -> &mut Profile {
        self.0.entry(snapshotter.to_owned()).or_default()
    }

    /// Returns all profiles, ordered by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Profile)> {
        self.0
            .iter()
            .map(|(name, profile)| (name.as_str(), profile))
    }
}
