// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The retention of blobs that were fetched, beyond the lease of the job.

use resnap_core::{Labels, error_chain, labels};

use crate::Plan;
use crate::backend::Backend;

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
    fn keeps(self, manifest: &Labels) -> bool {
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

/// Keeps the blob of the layer at `index` if blobs are kept. If that fails, it goes with the lease.
pub(crate) async fn retain(backend: &Backend, plan: &Plan, index: usize, manifest: &Labels) {
    let key = format!("{}{index}", labels::GC_LAYER_PREFIX);
    if manifest.contains_key(&key) || !backend.keep_fetched.keeps(manifest) {
        return;
    }
    let Some(layer) = plan.layers.get(index) else {
        return;
    };
    let (labeler, digest) = (&backend.ports.labeler, layer.descriptor.digest.as_str());
    let kept = labeler.set_label(&backend.scope, &plan.manifest.digest, &key, digest);
    if let Err(error) = kept.await {
        let reason = error_chain(&error);
        tracing::warn!(digest, reason, "the layer's blob is not kept");
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
