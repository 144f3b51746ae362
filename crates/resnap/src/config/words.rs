// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The words that values of the configuration file have.

use resnap_applier::Differ;
use resnap_core::{ErofsMode, Integrity};
use resnap_cri_proxy::{Unlabelled, When};
use resnap_unpacker::KeepFetched;
use serde::Deserialize;

/// Whether blobs that were fetched are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KeepWord {
    Auto,
    Always,
    Never,
}

impl KeepWord {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

impl From<KeepWord> for KeepFetched {
    fn from(word: KeepWord) -> Self {
        match word {
            KeepWord::Auto => Self::Auto,
            KeepWord::Always => Self::Always,
            KeepWord::Never => Self::Never,
        }
    }
}

/// The name of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum SourceName {
    Archive,
    Sibling,
    Registry,
}

impl SourceName {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Archive => "archive",
            Self::Sibling => "sibling",
            Self::Registry => "registry",
        }
    }
}

/// The condition under which layers are copied from another snapshotter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SiblingWord {
    WhenMissing,
    Always,
    Never,
}

impl SiblingWord {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::WhenMissing => "when-missing",
            Self::Always => "always",
            Self::Never => "never",
        }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum WhenWord {
    WhenSafe,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum UnlabelledWord {
    Repair,
    Forward,
    Fail,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum LabelsWord {
    None,
    Top,
    Every,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum VolumesWord {
    Host,
    Guest,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DifferWord {
    Auto,
    Resnap,
    Containerd,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum IntegrityWord {
    Off,
    Verity,
    Signed,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum ErofsModeWord {
    Full,
    TarIndex,
}

impl From<ErofsModeWord> for ErofsMode {
    fn from(word: ErofsModeWord) -> Self {
        match word {
            ErofsModeWord::Full => Self::Full,
            ErofsModeWord::TarIndex => Self::TarIndex,
        }
    }
}

impl From<IntegrityWord> for Integrity {
    fn from(word: IntegrityWord) -> Self {
        match word {
            IntegrityWord::Off => Self::Off,
            IntegrityWord::Verity => Self::Verity,
            IntegrityWord::Signed => Self::Signed,
        }
    }
}

impl From<DifferWord> for Differ {
    fn from(word: DifferWord) -> Self {
        match word {
            DifferWord::Auto => Self::Auto,
            DifferWord::Resnap => Self::Resnap,
            DifferWord::Containerd => Self::Containerd,
        }
    }
}

impl From<WhenWord> for When {
    fn from(word: WhenWord) -> Self {
        match word {
            WhenWord::WhenSafe => Self::Safe,
            WhenWord::Always => Self::Always,
            WhenWord::Never => Self::Never,
        }
    }
}

impl From<UnlabelledWord> for Unlabelled {
    fn from(word: UnlabelledWord) -> Self {
        match word {
            UnlabelledWord::Repair => Self::Repair,
            UnlabelledWord::Forward => Self::Forward,
            UnlabelledWord::Fail => Self::Fail,
        }
    }
}
