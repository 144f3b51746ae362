// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Content of an image that is not on the node.

use std::collections::BTreeSet;

use resnap_core::{
    Descriptor, Digest, Labels, MissingBlob, PodId, SnapshotKey, labels, media_type,
};
use resnap_handler_wrapper::layer_urls;

use crate::backend::Backend;
use crate::plan::PlannedLayer;
use crate::sources::Tried;
use crate::{Plan, UnpackError};

/// Returns the error for a layer whose blob is missing and needed.
pub(crate) async fn blob(
    backend: &Backend,
    plan: &Plan,
    title: &str,
    layer: &PlannedLayer,
    snapshotter: &str,
    tried: Vec<Tried>,
) -> UnpackError {
    let digest = layer.descriptor.digest.clone();
    let (image, snapshotter) = (title.to_owned(), snapshotter.to_owned());
    if media_type::is_foreign(&layer.descriptor.media_type) {
        let content = backend.ports.content.as_ref();
        let urls = layer_urls(content, &backend.scope, &plan.manifest, &digest).await;
        return UnpackError::MissingForeignBlob {
            image,
            digest,
            snapshotter,
            // The places only add to the message: a manifest that cannot be read is no obstacle.
            urls: urls.unwrap_or_default(),
            tried,
        };
    }
    UnpackError::MissingBlob {
        image,
        digest,
        snapshotter,
        fetch: plan.image.fetch(plan.manifest.platform.as_ref()),
        tried,
    }
}

/// Returns the lowest layer that is neither unpacked nor in the content store.
pub(crate) async fn first_missing(
    backend: &Backend,
    plan: &Plan,
    snapshotter: &str,
) -> Result<Option<Digest>, UnpackError> {
    let snapshotter = backend.snapshotter(snapshotter);
    let mut needed = Vec::new();
    for layer in plan.layers.iter().rev() {
        let key = SnapshotKey::from(&layer.chain_id);
        match snapshotter.stat(&backend.scope, &key).await {
            // The layers below are unpacked as well.
            Ok(_) => break,
            Err(error) if error.is_not_found() => needed.push(layer.descriptor.digest.clone()),
            Err(error) => return Err(UnpackError::Backend(error)),
        }
    }
    if needed.is_empty() {
        return Ok(None);
    }
    let existing = backend.ports.content.existing(&backend.scope, &needed);
    let existing = existing.await?;
    let mut from_base = needed.into_iter().rev();
    Ok(from_base.find(|digest| !existing.contains(digest)))
}

/// Returns the description of a layer's blob for sources. `labels` are those of the manifest, `pods`
/// those that wait for the image.
pub(crate) async fn missing_layer(
    backend: &Backend,
    plan: &Plan,
    layer: &Descriptor,
    labels: &Labels,
    pods: BTreeSet<PodId>,
) -> MissingBlob {
    let mut urls = Vec::new();
    if media_type::is_foreign(&layer.media_type) {
        let content = backend.ports.content.as_ref();
        let found = layer_urls(content, &backend.scope, &plan.manifest, &layer.digest);
        // They only add to what registries have.
        urls = found.await.unwrap_or_default();
    }
    MissingBlob {
        urls,
        ..missing_blob(layer, plan.image.reference.as_deref(), labels, pods)
    }
}

/// Returns the description of a blob for sources. `labels` are those of a blob that refers to it.
pub(crate) fn missing_blob(
    descriptor: &Descriptor,
    reference: Option<&str>,
    labels: &Labels,
    pods: BTreeSet<PodId>,
) -> MissingBlob {
    let repositories = labels.iter().filter_map(|(key, names)| {
        let host = key.strip_prefix(labels::DISTRIBUTION_SOURCE_PREFIX)?;
        Some((
            host.to_owned(),
            names.split(',').map(str::to_owned).collect(),
        ))
    });
    MissingBlob {
        descriptor: descriptor.clone(),
        reference: reference.map(str::to_owned),
        repositories: repositories.collect(),
        urls: Vec::new(),
        pods,
    }
}

/// Returns the labels of a fetched blob with the repositories that it can be pulled from.
pub(crate) fn source_labels(blob: &MissingBlob) -> Labels {
    let repositories = blob.repositories.iter();
    let labels = repositories.map(|(host, names)| {
        let key = format!("{}{host}", labels::DISTRIBUTION_SOURCE_PREFIX);
        (key, names.join(","))
    });
    labels.collect()
}
