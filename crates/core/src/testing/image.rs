// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images for a simulated backend.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{Descriptor, DiffId, Digest, Labels, Platform, media_type};

/// The prefix of a simulated layer's blob; the rest is its "tar". The blob's digest and the diff ID
/// differ, so that tests detect when they are mixed up.
const COMPRESSED: &[u8] = b"compressed: ";

/// The media type of the layers.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A layer of a [`SimulatedImage`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedLayer {
    pub(super) blob: Vec<u8>,
    /// The blob.
    pub descriptor: Descriptor,
    /// The diff ID in the image's config.
    pub diff_id: DiffId,
}

impl SimulatedLayer {
    /// Creates a layer with the content `text`.
    pub fn new(text: &str) -> Self {
        let blob = [COMPRESSED, text.as_bytes()].concat();
        Self {
            descriptor: descriptor(LAYER, &blob),
            blob,
            diff_id: DiffId(Digest::sha256(text.as_bytes())),
        }
    }

    /// Creates a layer with the content `text` and a diff ID that does not match.
    pub fn mislabelled(text: &str) -> Self {
        Self {
            diff_id: Self::new(&format!("not {text}")).diff_id,
            ..Self::new(text)
        }
    }
}

/// Returns the "tar" in a layer's blob.
pub(super) fn decompress(blob: &[u8]) -> Option<&[u8]> {
    blob.strip_prefix(COMPRESSED)
}

/// An image: a manifest, a config and layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimulatedImage {
    /// The manifest.
    pub manifest: Descriptor,
    /// The config.
    pub config: Descriptor,
    /// The layers, the base first.
    pub layers: Vec<SimulatedLayer>,
    pub(super) blobs: BTreeMap<Digest, (Vec<u8>, Labels)>,
}

impl SimulatedImage {
    /// Returns the bytes of one of the image's blobs.
    pub fn blob(&self, digest: &Digest) -> Option<&[u8]> {
        self.blobs.get(digest).map(|(bytes, _)| &**bytes)
    }

    /// Creates an image of these layers.
    pub fn new(layers: impl IntoIterator<Item = SimulatedLayer>) -> Self {
        Self::of(&Platform::host(), layers)
    }

    /// Creates an image of these layers for a platform.
    pub fn of(platform: &Platform, layers: impl IntoIterator<Item = SimulatedLayer>) -> Self {
        let layers: Vec<_> = layers.into_iter().collect();
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let mut config = json!(platform);
        config["rootfs"] = json!({ "type": "layers", "diff_ids": diff_ids });
        let config_blob = config.to_string().into_bytes();
        let config = descriptor(media_type::OCI_CONFIG, &config_blob);
        let descriptors: Vec<_> = layers.iter().map(|layer| &layer.descriptor).collect();
        let manifest_blob = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": config,
            "layers": descriptors,
        })
        .to_string()
        .into_bytes();
        let manifest = descriptor(media_type::OCI_MANIFEST, &manifest_blob);

        // As containerd's import and pull set them (core/images/mediatypes.go, ChildGCLabels).
        let references = descriptors
            .iter()
            .enumerate()
            .map(|(index, layer)| (format!("l.{index}"), layer.digest.to_string()))
            .chain([("config".to_owned(), config.digest.to_string())])
            .map(|(name, digest)| (format!("containerd.io/gc.ref.content.{name}"), digest))
            .collect();
        let layer_blobs = layers.iter().map(|layer| {
            let blob = (layer.blob.clone(), Labels::new());
            (layer.descriptor.digest.clone(), blob)
        });
        let blobs = layer_blobs
            .chain([
                (config.digest.clone(), (config_blob, Labels::new())),
                (manifest.digest.clone(), (manifest_blob, references)),
            ])
            .collect();
        Self {
            manifest,
            config,
            layers,
            blobs,
        }
    }
}

/// Returns the descriptor and the blob of an index of these manifests.
pub(super) fn index(entries: &[(Platform, SimulatedImage)]) -> (Descriptor, Vec<u8>) {
    let manifests = entries.iter().map(|(platform, image)| Descriptor {
        platform: Some(platform.clone()),
        ..image.manifest.clone()
    });
    let blob = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": manifests.collect::<Vec<_>>(),
    })
    .to_string()
    .into_bytes();
    (descriptor(media_type::OCI_INDEX, &blob), blob)
}

fn descriptor(media_type: &str, blob: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest: Digest::sha256(blob),
        size: blob.len() as u64,
        annotations: BTreeMap::new(),
        platform: None,
    }
}
