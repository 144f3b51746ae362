// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The sources of layers whose blobs are missing, as an engine is configured with them.

use std::fmt;
use std::sync::Arc;

use resnap_core::{BlobSource, Error, Kind, Labels, labels};

/// The name of [`Source::Sibling`] in the configuration.
pub(crate) const SIBLING: &str = "sibling";

/// A source of layers whose blobs are missing.
#[derive(Clone)]
#[non_exhaustive]
pub enum Source {
    /// A source of blobs.
    Blobs(Arc<dyn BlobSource>),
    /// The snapshots of the same layers on another snapshotter, which are copied.
    Sibling {
        /// Whether layers are also copied if their blobs exist.
        always: bool,
    },
}

impl Source {
    /// Returns the name of the source as the configuration has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Blobs(source) => source.name(),
            Self::Sibling { .. } => SIBLING,
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A source that did not serve, and why.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Tried {
    /// The name of the source as the configuration has it.
    pub source: &'static str,
    /// The reason.
    pub error: Error,
}

impl Tried {
    /// Returns that a source failed with this error.
    pub fn new(source: &'static str, error: Error) -> Self {
        Self { source, error }
    }

    /// Returns whether the source asks for credentials, or for other ones. Layers that are copied need
    /// none: what is denied there is a file.
    pub(crate) fn is_denied(&self) -> bool {
        let kind = self.error.kind();
        self.source != SIBLING && matches!(kind, Kind::Unauthenticated | Kind::PermissionDenied)
    }
}

/// Whether blobs that were fetched are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KeepFetched {
    /// Unless containerd discards the layers of the images that it pulls. That is visible in the
    /// labels of a manifest: one that was pulled through the CRI refers to the config, but to no
    /// layer.
    #[default]
    Auto,
    /// Always, by a label of the manifest.
    Always,
    /// Not beyond the job, unless the manifest already has a label for them.
    Never,
}

impl KeepFetched {
    pub(crate) fn keeps(self, manifest: &Labels) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => {
                let has_layers = manifest
                    .keys()
                    .any(|key| key.starts_with(labels::GC_LAYER_PREFIX));
                has_layers || !manifest.contains_key(labels::GC_CONFIG)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn discarding_nodes_keep_no_blobs() {
        let labels = |keys: &[&str]| -> Labels {
            let keys = keys.iter();
            keys.map(|key| ((*key).to_owned(), String::new())).collect()
        };
        let layer = "containerd.io/gc.ref.content.l.0";
        let config = "containerd.io/gc.ref.content.config";
        for (manifest, keeps) in [
            (labels(&[config, layer]), true),
            (labels(&[config]), false),
            (labels(&[]), true),
        ] {
            assert_eq!(KeepFetched::Auto.keeps(&manifest), keeps, "{manifest:?}");
            assert!(KeepFetched::Always.keeps(&manifest));
            assert!(!KeepFetched::Never.keeps(&manifest));
        }
    }
}
