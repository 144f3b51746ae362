// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The manifests of artifacts that are made.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::document::EMPTY_CONFIG;
use super::names::{ArtifactSet, Payload};
use crate::{Descriptor, Digest, media_type};

/// Returns the descriptor of a payload, with these annotations besides that with the layer's digest.
pub(super) fn part(
    set: ArtifactSet,
    payload: Payload,
    layer: &Digest,
    descriptor: &Descriptor,
    others: impl IntoIterator<Item = (&'static str, String)>,
) -> Value {
    let mut annotations = BTreeMap::from([(set.layer_digest(payload), layer.to_string())]);
    annotations.extend(others);
    json!({
        "mediaType": set.media_type(payload),
        "digest": descriptor.digest,
        "size": descriptor.size,
        "annotations": annotations,
    })
}

/// Returns the manifest of an artifact of an image with these payloads.
pub(super) fn manifest(set: ArtifactSet, parts: &[Value], subject: &Descriptor) -> Vec<u8> {
    let (media_type, digest, size) = EMPTY_CONFIG;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "artifactType": set.artifact_type(),
        "config": { "mediaType": media_type, "digest": digest, "size": size },
        "layers": parts,
        "subject": {
            "mediaType": subject.media_type, "digest": subject.digest, "size": subject.size,
        },
    });
    manifest.to_string().into_bytes()
}
