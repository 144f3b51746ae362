// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Artifacts with dm-verity trees that a publisher attaches to an image: tar indexes, hash trees and
//! signatures of root hashes, in a registry or a layout.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::archive;
use super::blobs::Blobs;
use super::built::Built;
use super::layer::digest;
use crate::registry::{CREDENTIALS, Push, Registry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// The names in an artifact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArtifactNames {
    /// Those that are proposed for containerd.
    Containerd,
    /// Those of notation's signer, which also annotates signatures with their bytes.
    Notary,
}

/// The bytes that a publisher adds to a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPayloads {
    /// The digest of the layer's blob.
    pub layer: String,
    /// The index of the layer's tar; empty if the layer is an EROFS image, which has a signature only.
    pub index: Vec<u8>,
    /// The hash tree, if there is an index.
    pub tree: Vec<u8>,
    /// The root hash in lower-case hexadecimal digits.
    pub root_hash: String,
    /// The detached signature of the root hash, in DER.
    pub signature: Vec<u8>,
}

/// An artifact of an image.
#[derive(Debug)]
pub struct Artifact {
    subject: String,
    manifest: Value,
    blobs: Blobs,
}

impl Artifact {
    /// Returns the artifact of the first manifest of an image.
    ///
    /// # Errors
    /// If the image's archive cannot be read.
    pub fn new(image: &Built, names: ArtifactNames, layers: &[LayerPayloads]) -> Result<Self> {
        let size = image.blob(&image.manifest)?.len();
        let mut blobs = Blobs::default();
        let mut add = |media_type: &str, bytes: &[u8], annotations: Value| {
            blobs.0.insert(digest(bytes), Arc::new(bytes.to_vec()));
            json!({
                "mediaType": media_type, "digest": digest(bytes), "size": bytes.len(),
                "annotations": annotations,
            })
        };
        let mut payloads = Vec::new();
        for layer in layers {
            let [index, tree, signature] = names.payloads(layer);
            if !layer.index.is_empty() {
                payloads.push(add(index.0, &layer.index, index.1));
                payloads.push(add(tree.0, &layer.tree, tree.1));
            }
            payloads.push(add(signature.0, &layer.signature, signature.1));
        }
        let config = blobs.json(EMPTY, &json!({}));
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "artifactType": names.artifact_type(),
            "config": config,
            "layers": payloads,
            "subject": { "mediaType": MANIFEST, "digest": image.manifest, "size": size },
        });
        Ok(Self {
            subject: image.manifest.clone(),
            manifest,
            blobs,
        })
    }

    /// Changes the manifest before it is published.
    #[must_use]
    pub fn edit(mut self, edit: impl FnOnce(&mut Value)) -> Self {
        edit(&mut self.manifest);
        self
    }

    /// Leaves a blob out of what is published.
    #[must_use]
    pub fn without(mut self, digest: &str) -> Self {
        self.blobs.0.remove(digest);
        self
    }

    /// Returns the digest of the manifest.
    pub fn digest(&self) -> String {
        digest(self.manifest.to_string().as_bytes())
    }

    /// Pushes it to a repository of a registry. The referrers under the tag are kept up to date if the
    /// registry does not list any itself (distribution specification, "Pushing Manifests with Subject").
    ///
    /// # Errors
    /// If the registry refuses a part.
    pub fn push(&self, registry: &Registry, repository: &str) -> Result<()> {
        let push = Push::new(registry.address(), CREDENTIALS, repository);
        for blob in self.blobs.0.values() {
            push.blob(&digest(blob), blob)?;
        }
        let bytes = self.manifest.to_string();
        let is_listed = push.manifest(&self.digest(), MANIFEST, bytes.as_bytes())?;
        if is_listed {
            return Ok(());
        }
        let tag = self.tag();
        let mut index = match push.tagged(&tag, INDEX)? {
            Some(bytes) => serde_json::from_slice(&bytes).context("the index under the tag")?,
            None => json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [] }),
        };
        let manifests = index["manifests"].as_array_mut();
        let manifests = manifests.context("no manifests under the tag")?;
        if !manifests.contains(&self.descriptor()) {
            manifests.push(self.descriptor());
        }
        push.manifest(&tag, INDEX, index.to_string().as_bytes())?;
        Ok(())
    }

    /// Writes an archive of an OCI layout with nothing but the artifact.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write_archive(&self, path: &Path) -> Result<()> {
        let mut blobs = Blobs(self.blobs.0.clone());
        blobs.json(MANIFEST, &self.manifest);
        archive::write(path, &[(&self.tag(), &self.descriptor())], &blobs)
    }

    /// Writes an OCI layout with nothing but the artifact to a directory.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write_layout(&self, dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        let path = dir.join("layout.tar");
        self.write_archive(&path)?;
        tar::Archive::new(File::open(&path)?).unpack(dir)?;
        fs::remove_file(&path).with_context(|| format!("remove {path:?}"))
    }

    /// Returns the tag of the referrers.
    fn tag(&self) -> String {
        self.subject.replace(':', "-")
    }

    fn descriptor(&self) -> Value {
        json!({
            "mediaType": MANIFEST,
            "digest": self.digest(),
            "size": self.manifest.to_string().len(),
            "artifactType": self.manifest["artifactType"],
        })
    }
}

impl ArtifactNames {
    fn artifact_type(self) -> &'static str {
        match self {
            Self::Containerd => "application/vnd.containerd.erofs.dmverity.v1",
            Self::Notary => "application/vnd.cncf.notary.dmverity.v1",
        }
    }

    /// Returns the media types and annotations of index, tree and signature.
    fn payloads(self, layer: &LayerPayloads) -> [(&'static str, Value); 3] {
        let (of, root_hash) = (&layer.layer, &layer.root_hash);
        match self {
            Self::Containerd => {
                let source = json!({ "io.containerd.erofs.v1/dmverity.source-layer-digest": of });
                let mut signed = source.clone();
                signed["io.containerd.erofs.v1/dmverity.root-hash"] = json!(root_hash);
                [
                    (
                        "application/vnd.containerd.erofs.metadata.v1",
                        source.clone(),
                    ),
                    (
                        "application/vnd.containerd.erofs.dmverity.merkle-tree.v1",
                        source,
                    ),
                    (
                        "application/vnd.containerd.erofs.dmverity.layer-signature.v1+pkcs7",
                        signed,
                    ),
                ]
            }
            Self::Notary => {
                let source = json!({ "io.cncf.notary.dmverity.source-layer-digest": of });
                let signed = json!({
                    "io.cncf.notary.dmverity.layer-digest": of,
                    "io.cncf.notary.dmverity.layer-roothash": root_hash,
                    "io.cncf.notary.dmverity.layer-signature": STANDARD.encode(&layer.signature),
                });
                [
                    (
                        "application/vnd.cncf.containerd.erofs.layer.v1",
                        source.clone(),
                    ),
                    ("application/vnd.cncf.dmverity.merkle-tree.v1", source),
                    (
                        "application/vnd.cncf.notary.dmverity.layer-signature+pkcs7",
                        signed,
                    ),
                ]
            }
        }
    }
}
