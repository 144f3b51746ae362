// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The configuration file: its sections, its values, and what they change.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use resnap_core::{LabelRequirement, LabeledLayers, Profile, Volumes};
use resnap_unpacker::Configuration;
use serde::Deserialize;

use super::words::{
    DifferWord, ErofsModeWord, IntegrityWord, KeepWord, LabelsWord, SiblingWord, SourceName,
    UnlabelledWord, VolumesWord, WhenWord,
};
use crate::warm::Floor;

/// The default path of the file.
const PATH: &str = "/etc/resnap/config.toml";

/// The configuration file. Unknown keys are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) address: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) runtime_dir: Option<PathBuf>,
    pub(super) prewarm_jobs: Option<NonZeroUsize>,
    pub(super) max_layer_bytes: Option<u64>,
    pub(super) memory: Option<Memory>,
    pub(super) stall: Option<Stall>,
    pub(super) cri: CriSection,
    pub(super) api: ApiSection,
    pub(super) diff: DiffSection,
    pub(super) metrics: MetricsSection,
    pub(super) sources: SourcesSection,
    pub(super) integrity: IntegritySection,
    pub(super) snapshotters: BTreeMap<String, SnapshotterSection>,
    pub(super) unpack: Option<Vec<UnpackSection>>,
    pub(super) prewarm: Vec<Rule>,
}

/// Bytes of memory for layers, at least 16 MiB: a layer of a real image needs that much.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u64")]
pub(super) struct Memory(pub(super) u64);

impl TryFrom<u64> for Memory {
    type Error = String;

    fn try_from(bytes: u64) -> Result<Self, String> {
        if bytes < 16 << 20 {
            return Err(format!("memory of {bytes} bytes is less than 16777216"));
        }
        Ok(Self(bytes))
    }
}

/// Seconds without progress, at least one.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(from = "NonZeroU64")]
pub(super) struct Stall(pub(super) Duration);

impl From<NonZeroU64> for Stall {
    fn from(seconds: NonZeroU64) -> Self {
        Self(Duration::from_secs(seconds.get()))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CriSection {
    pub(super) socket: Option<PathBuf>,
    pub(super) always: Option<bool>,
    pub(super) unlabelled: Option<UnlabelledWord>,
    pub(super) steer_pulls: Option<WhenWord>,
    pub(super) image_status: Option<WhenWord>,
    pub(super) kubelet_root: Option<PathBuf>,
    pub(super) default_snapshotter: Option<String>,
    pub(super) sandbox_image: Option<String>,
    pub(super) handlers: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct ApiSection {
    pub(super) socket: Option<PathBuf>,
}

/// The socket at which containerd asks for layers.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct DiffSection {
    pub(super) socket: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct MetricsSection {
    pub(super) address: Option<SocketAddr>,
}

/// The sources of layers whose blobs are missing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SourcesSection {
    pub(super) order: Option<Vec<SourceName>>,
    pub(super) sibling: Option<SiblingWord>,
    pub(super) archives: Option<Vec<PathBuf>>,
    pub(super) keep_fetched: Option<KeepWord>,
    pub(super) hosts_dir: Option<Vec<PathBuf>>,
}

/// The certificates by which signatures of root hashes are verified: files in PEM.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct IntegritySection {
    pub(super) authorities: Option<Vec<PathBuf>>,
    pub(super) signers: Option<Vec<PathBuf>>,
}

/// A rule for images that are unpacked in advance.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rule {
    /// Name patterns, in which `*` matches any text.
    #[serde(default = "all")]
    pub(crate) images: Vec<String>,
    pub(crate) snapshotters: Vec<String>,
    /// Space that stays free on the snapshotter's file system.
    #[serde(default)]
    pub(crate) min_free: Floor,
}

fn all() -> Vec<String> {
    vec!["*".to_owned()]
}

/// Facts about a snapshotter. They override the built-in ones.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct SnapshotterSection {
    pub(super) labels: Option<LabelsWord>,
    pub(super) reason: Option<String>,
    pub(super) volumes: Option<VolumesWord>,
    pub(super) os_features: Option<BTreeSet<String>>,
    pub(super) differ: Option<DifferWord>,
    pub(super) sync_fs: Option<bool>,
    pub(super) integrity: Option<IntegrityWord>,
    pub(super) erofs_mode: Option<ErofsModeWord>,
}

/// An unpack configuration, for requests without a snapshotter.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UnpackSection {
    pub(super) platform: String,
    pub(super) snapshotter: String,
    #[serde(default)]
    pub(super) optional: bool,
}

impl UnpackSection {
    pub(super) fn configuration(self) -> Result<Configuration> {
        let platform = self.platform.parse();
        let platform =
            platform.with_context(|| format!("[[unpack]] platform {:?}", self.platform))?;
        Ok(Configuration {
            platform,
            snapshotter: self.snapshotter,
            optional: self.optional,
        })
    }
}

impl SnapshotterSection {
    /// Applies the section to the built-in profile of the snapshotter.
    pub(super) fn apply(self, profile: &mut Profile) {
        let reason = self.reason.map(Into::into);
        profile.need = match (self.labels, profile.need.take()) {
            (Some(LabelsWord::None), _) => None,
            (Some(LabelsWord::Top), known) => {
                Some(label_requirement(known, LabeledLayers::Top, reason))
            }
            (Some(LabelsWord::Every), known) => {
                Some(label_requirement(known, LabeledLayers::Every, reason))
            }
            (None, known) => known.map(|known| {
                let layers = known.layers;
                label_requirement(Some(known), layers, reason)
            }),
        };
        match self.volumes {
            Some(VolumesWord::Host) => profile.volumes = Volumes::Host,
            Some(VolumesWord::Guest) => profile.volumes = Volumes::Guest,
            None => {}
        }
        if let Some(features) = self.os_features {
            profile.os_features = features;
        }
        if let Some(sync_fs) = self.sync_fs {
            profile.sync_fs = sync_fs;
        }
        if let Some(integrity) = self.integrity {
            profile.integrity = integrity.into();
        }
    }
}

fn label_requirement(
    known: Option<LabelRequirement>,
    layers: LabeledLayers,
    reason: Option<Cow<'static, str>>,
) -> LabelRequirement {
    let (why, repair_label) = match known {
        Some(known) => (known.why, known.repair_label),
        None => ("the configuration says so".into(), None),
    };
    LabelRequirement {
        why: reason.unwrap_or(why),
        layers,
        repair_label,
    }
}

impl File {
    /// Reads the file at `path`, or the one at [`PATH`] if that exists. Returns the path of the latter.
    pub(super) fn load(path: Option<&Path>) -> Result<(Option<PathBuf>, Self)> {
        if let Some(path) = path {
            return Ok((None, Self::read(path)?));
        }
        match Self::read(Path::new(PATH)) {
            Ok(file) => Ok((Some(PathBuf::from(PATH)), file)),
            Err(error) if is_not_found(&error) => Ok((None, Self::default())),
            Err(error) => Err(error),
        }
    }

    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {path:?}"))?;
        toml::from_str(&text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count() + 1);
            anyhow!(
                "configuration file {path:?}, line {line}: {}",
                error.message()
            )
        })
    }
}

fn is_not_found(error: &anyhow::Error) -> bool {
    let error = error.downcast_ref::<io::Error>();
    error.is_some_and(|error| error.kind() == io::ErrorKind::NotFound)
}
