// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What is known of snapshotters by their names, since they do not tell it themselves.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// What is known of one snapshotter. Of one that is not in the table nothing is, and so it needs
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Profile {
    /// What it needs labels for; `None` if for nothing.
    pub need: Option<LabelRequirement>,
    /// What an image on it shows that is mounted on the host, as image volumes are.
    pub volumes: Volumes,
    /// The OS features of images that it takes as they are.
    pub os_features: BTreeSet<String>,
    /// Whether a layer has to be on the disk before it is committed; not by default, as containerd
    /// has it.
    pub sync_fs: bool,
}

/// What a snapshotter needs labels for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelRequirement {
    /// What it does with them, and what happens without.
    pub why: Cow<'static, str>,
    /// On which layers they have to be.
    pub layers: LabeledLayers,
    /// The label with which a snapshot that was committed without the others becomes what it would
    /// have been with them, if there is such a label.
    pub repair_label: Option<(&'static str, &'static str)>,
}

impl LabelRequirement {
    /// Whether the layer at `index` of `count` has to have labels.
    pub fn covers(&self, index: usize, count: usize) -> bool {
        self.layers == LabeledLayers::Every || index + 1 == count
    }
}

/// On which layers of an image a snapshotter needs labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LabeledLayers {
    /// On each.
    Every,
    /// On the top layer, on which a container stands.
    Top,
}

/// What an image shows that is mounted on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Volumes {
    /// Nobody knows.
    #[default]
    Unknown,
    /// Its files.
    Host,
    /// Its files, except with the containerds from this major and minor version on that cannot mount
    /// it, up to the one that can again.
    HostExcept {
        /// The first that cannot.
        from: (u32, u32),
        /// The first that can again.
        until: (u32, u32),
    },
    /// Nothing: with labels its files come to be in the guest only.
    Guest,
}

/// The OS feature of an image whose layers are EROFS images.
pub const EROFS_FEATURE: &str = "erofs";

/// The OS feature of an image in Nydus' own format (nydusify `pkg/converter`).
const NYDUS_FEATURE: &str = "nydus.remoteimage.v1";

const LAZILY: &str = "mounts layers lazily by them; without, every layer is unpacked whole";

/// The table of snapshotters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profiles(BTreeMap<String, Profile>);

impl Default for Profiles {
    /// The snapshotters that containerd has, and those in wide use beside it.
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
        // Up to 2.4 containerd reports none of what its snapshotters take.
        let takes = |feature: &str| BTreeSet::from([feature.to_owned()]);
        let nydus = Profile {
            need: Some(LabelRequirement {
                why: Cow::Borrowed(
                    "finds image and layer by them; without, layers are unpacked on the host or \
                     the container fails",
                ),
                layers: LabeledLayers::Top,
                // A container's mounts are made by what its parent has (nydus-snapshotter 0.13.4
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
            // From 2.2 on its mounts are for the mount manager, by which image volumes go from 2.4 on
            // (containerd #13542).
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
    /// What is known of the snapshotter of this name.
    pub fn get(&self, snapshotter: &str) -> &Profile {
        const UNKNOWN: &Profile = &Profile {
            need: None,
            volumes: Volumes::Unknown,
            os_features: BTreeSet::new(),
            sync_fs: false,
        };
        self.0.get(snapshotter).unwrap_or(UNKNOWN)
    }

    /// What the snapshotter of this name needs labels for.
    pub fn need(&self, snapshotter: &str) -> Option<&LabelRequirement> {
        self.get(snapshotter).need.as_ref()
    }

    /// Of `features` those that the snapshotter of this name does not take.
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

    /// What is known of a snapshotter, to be changed; it enters the table.
    pub fn entry(&mut self, snapshotter: &str) -> &mut Profile {
        self.0.entry(snapshotter.to_owned()).or_default()
    }

    /// All of the table, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Profile)> {
        self.0
            .iter()
            .map(|(name, profile)| (name.as_str(), profile))
    }
}
