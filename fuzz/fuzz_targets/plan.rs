// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Checks of plans, and of the errors returned instead of one.

use resnap_core::{ChainId, Digest, Kind, error_chain, labels};
use resnap_unpacker::{Plan, UnpackError};

/// Checks the snapshots and labels of a plan against a second computation.
///
/// # Panics
/// They differ.
pub fn verify(plan: &Plan) {
    assert_eq!(plan.platform, plan.platform.normalized());
    let layers = plan.layers.iter();
    let digests: Vec<&str> = layers
        .map(|layer| layer.descriptor.digest.as_str())
        .collect();
    let mut parent: Option<String> = None;
    for (index, layer) in plan.layers.iter().enumerate() {
        let chain_id = match &parent {
            None => layer.diff_id.to_string(),
            Some(parent) => {
                Digest::sha256(format!("{parent} {}", layer.diff_id).as_bytes()).to_string()
            }
        };
        assert_eq!(layer.chain_id.as_str(), chain_id);
        assert_eq!(
            layer.parent.as_ref().map(ChainId::as_str),
            parent.as_deref()
        );

        let label = |key| layer.labels.get(key).map(String::as_str);
        for (key, value) in [
            (labels::SNAPSHOT_REF, Some(chain_id.as_str())),
            (labels::DIFF_ID, Some(layer.diff_id.0.as_str())),
            (labels::PARENT_CHAIN_ID, parent.as_deref()),
            (labels::IMAGE_REF, plan.image.reference.as_deref()),
            (labels::MANIFEST_DIGEST, Some(plan.manifest.digest.as_str())),
            (labels::LAYER_DIGEST, Some(digests[index])),
        ] {
            assert_eq!(label(key), value, "{key}");
        }
        let listed = label(labels::IMAGE_LAYERS).expect("the layers above");
        let count = listed.split(',').count();
        assert_eq!(listed, digests[index..index + count].join(","));
        if let Some(next) = digests.get(index + count) {
            let more = format!("{listed},{next}");
            assert!(!labels::fits(labels::IMAGE_LAYERS, &more));
        }
        for (key, value) in &layer.labels {
            assert!(key.starts_with(labels::INHERITED_PREFIX) || key == labels::SNAPSHOT_REF);
            assert!(key.len() + value.len() <= 4096);
        }
        parent = Some(chain_id);
    }
}

/// Checks that the error is the fault of the image, and that its text is short and printable.
///
/// # Panics
/// It is not.
pub fn verify_error(error: &UnpackError) {
    let text = error_chain(error);
    assert!(text.len() < 16 << 10, "{} bytes", text.len());
    assert!(!text.contains(char::is_control), "{text:?}");
    assert!(
        matches!(
            error.kind(),
            Kind::NotFound
                | Kind::InvalidArgument
                | Kind::FailedPrecondition
                | Kind::ResourceExhausted
                | Kind::Unimplemented
        ),
        "{error:?}"
    );
}
