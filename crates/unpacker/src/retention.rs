// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The retention of blobs that were fetched, beyond the lease of the job.

use resnap_core::{Labels, error_chain, labels};

use crate::Plan;
use crate::backend::Backend;

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
