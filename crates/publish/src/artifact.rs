// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Artifacts of an image that have no signatures yet.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use resnap_core::erofs_layer::{self, OwnTree};
use resnap_core::{
    ArtifactSet, BlobSource, Descriptor, Destination, Digest, ErofsMode, Error, IndexedLayer, Kind,
    MissingBlob, Payload, Platform, Referrer, Result, media_type,
};
use resnap_erofs::ErofsReader;
use resnap_handler_wrapper::Choice;
use resnap_verity::{BlockSize, RootHash, Work, verify};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::blob_file::{FileBlob, FileRange, put_bytes};
use crate::fault::{IoContext as _, Stop, blocking};
use crate::image::SourceImage;
use crate::layers::{Progress, WrittenLayer, write_layers};
use crate::scratch::Scratch;
use crate::tree::append_tree;

/// The types of the artifacts of the sets, whose configs say what is to be signed.
pub(crate) const UNSIGNED: [&str; 2] = [
    "application/vnd.resnap.dmverity.unsigned.containerd.v1",
    "application/vnd.resnap.dmverity.unsigned.notary.v1",
];
const UNSIGNED_CONFIG: &str = "application/vnd.resnap.dmverity.unsigned.v1+json";

fn unsigned_type(set: ArtifactSet) -> &'static str {
    let [containerd, notary] = UNSIGNED;
    match set {
        ArtifactSet::Containerd => containerd,
        ArtifactSet::Notary => notary,
    }
}

/// The artifacts of an image's layers, before they are signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnsignedArtifacts {
    /// The manifest of the image.
    pub subject: Descriptor,
    /// The set of names: `containerd` or `notary`.
    pub set: ArtifactSet,
    /// The layers, the lowest first. One that an image has several times is here once.
    pub layers: Vec<UnsignedLayer>,
}

/// The artifacts of a layer, before they are signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnsignedLayer {
    /// The digest of the layer's blob.
    pub layer: Digest,
    /// The root hash: 64 lower-case hexadecimal digits, which are what is signed.
    pub root_hash: String,
    /// The index and the tree, with its superblock as `veritysetup format` writes it to a device of its own; none for a
    /// layer that is an EROFS image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub indexed: Option<IndexedLayer>,
}

/// The place of unsigned artifacts: a layout.
#[derive(Clone, Copy)]
pub struct Unsigned<'a> {
    /// The layout.
    pub destination: &'a dyn Destination,
    /// The same layout as a source.
    pub source: &'a dyn BlobSource,
    /// The tag of the image there, if its documents are to be stored: `None` if they are there.
    pub tag: Option<&'a str>,
}

impl std::fmt::Debug for Unsigned<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unsigned")
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

/// Makes the artifacts of an image's layers for a platform, and stores them where they can be signed, in the place of
/// others of the same set. The layers themselves are not stored.
///
/// # Errors
/// Those of [`SourceImage::choose`], of reading layers, and of the destination.
pub async fn build_artifacts(
    image: &SourceImage,
    platform: &Platform,
    set: ArtifactSet,
    to: Unsigned<'_>,
    progress: Arc<dyn Progress>,
) -> Result<UnsignedArtifacts> {
    let choice = image.choose(platform).await?;
    let scratch = Scratch::temporary().await?;
    let (store, mode) = (scratch.join("store"), ErofsMode::TarIndex);
    let written = write_layers(image, &choice, mode, &store, progress).await?;
    let (mut layers, mut seen) = (Vec::new(), HashSet::new());
    for layer in written {
        if !seen.insert(layer.descriptor.digest.clone()) {
            continue;
        }
        let (unsigned, blobs) = blocking(move |stop| unsigned(&layer, set, stop)).await?;
        for blob in blobs {
            blob.put(to.destination).await?;
        }
        layers.push(unsigned);
    }
    let artifacts = UnsignedArtifacts {
        subject: Descriptor {
            annotations: BTreeMap::new(),
            platform: None,
            ..choice.manifest.clone()
        },
        set,
        layers,
    };
    let subject = &artifacts.subject;
    if let Some(tag) = to.tag {
        copy_documents(image, &choice, to.destination, tag).await?;
    }
    let (referrer, bytes) = artifacts.manifest(to.destination).await?;
    to.destination
        .put_referrer(&referrer, bytes, &subject.digest)
        .await?;
    let subject = MissingBlob::new(subject.clone(), None);
    let all = to.source.referrers(&subject, &[unsigned_type(set)]).await?;
    let subject = &subject.descriptor.digest;
    let old = all
        .iter()
        .filter(|other| other.descriptor.digest != referrer.descriptor.digest);
    for old in old {
        to.destination.remove_referrer(old, subject).await?;
    }
    Ok(artifacts)
}

/// Stores the documents of an image that lead to a manifest, under a tag.
async fn copy_documents(
    image: &SourceImage,
    choice: &Choice,
    to: &dyn Destination,
    tag: &str,
) -> Result<()> {
    let config = &choice.config_descriptor;
    put_bytes(to, &config.media_type, image.document(config).await?.into()).await?;
    let is_target = choice.manifest.digest == image.target.digest;
    let manifest = image.document(&choice.manifest).await?;
    let own = is_target.then_some(tag);
    to.put_manifest(&choice.manifest, manifest, own).await?;
    if !is_target {
        let index = image.document(&image.target).await?;
        to.put_manifest(&image.target, index, Some(tag)).await?;
    }
    Ok(())
}

/// Returns the artifacts of a layer, and the blobs of them.
fn unsigned(
    layer: &WrittenLayer,
    set: ArtifactSet,
    stop: &Stop,
) -> Result<(UnsignedLayer, Vec<FileBlob>)> {
    let digest = &layer.descriptor.digest;
    let file = FileRange::whole(&layer.path)?;
    if erofs_layer::is_image(&layer.descriptor) {
        let root_hash = match &layer.own_tree {
            Some(own) => verified_root(layer, own, stop)?,
            None => {
                let block = BlockSize::B4096;
                let size = (file.size, block.bytes());
                let tree = append_tree(&layer.path, size, block, digest, stop)?;
                tree.appended.root_hash.to_string()
            }
        };
        let layer = UnsignedLayer {
            layer: digest.clone(),
            root_hash,
            indexed: None,
        };
        return Ok((layer, Vec::new()));
    }
    let index = FileRange {
        size: index_size(&layer.path)?,
        ..file.clone()
    };
    let device = index.size + layer.tar_size;
    let size = (device, set.padding());
    let tree = append_tree(&layer.path, size, BlockSize::B512, digest, stop)?;
    let offset = tree.appended.hash_offset;
    let tree_range = FileRange {
        offset,
        size: tree.appended.size - offset,
        path: layer.path.clone(),
    };
    let index = index.blob(set.media_type(Payload::Index))?;
    let tree_blob = tree_range.blob(set.media_type(Payload::Tree))?;
    let indexed = IndexedLayer::new(index.descriptor.clone(), tree_blob.descriptor.clone());
    let layer = UnsignedLayer {
        layer: digest.clone(),
        root_hash: tree.appended.root_hash.to_string(),
        indexed: Some(indexed),
    };
    Ok((layer, vec![index, tree_blob]))
}

/// Returns the root hash of the tree that a layer brings. What its annotation says is signed only if it is of the data.
fn verified_root(layer: &WrittenLayer, own: &OwnTree, stop: &Stop) -> Result<String> {
    let digest = layer.descriptor.digest.as_str();
    let wrong = |error: Box<dyn std::error::Error + Send + Sync>| {
        Error::new(Kind::DataLoss, "verify the hash tree of layer", digest).with_source(error)
    };
    let root_hash: RootHash = own
        .root_hash
        .parse()
        .map_err(|error| wrong(Box::new(error)))?;
    let file = File::open(&layer.path).during("open", &layer.path)?;
    let check = || Ok(stop.check()?);
    let verified = verify(&file, own.hash_offset, &root_hash, .., Work::new(&check));
    verified.map_err(|error| wrong(Box::new(error)))?;
    Ok(root_hash.to_string())
}

/// Returns the size of the index at the beginning of a file.
fn index_size(path: &Path) -> Result<u64> {
    let file = File::open(path).during("open", path)?;
    let image = ErofsReader::open(file).map_err(|error| {
        Error::new(Kind::Internal, "read", path.display().to_string()).with_source(error)
    })?;
    Ok(image.size())
}

impl UnsignedArtifacts {
    /// Stores the config, and returns the manifest.
    async fn manifest(&self, to: &dyn Destination) -> Result<(Referrer, Bytes)> {
        let config = json!(self).to_string().into_bytes();
        let config = put_bytes(to, UNSIGNED_CONFIG, config).await?;
        let indexed = self
            .layers
            .iter()
            .filter_map(|layer| layer.indexed.as_ref());
        let blobs = indexed.flat_map(|indexed| [&indexed.index, &indexed.tree]);
        let subject = &self.subject;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "artifactType": unsigned_type(self.set),
            "config": config,
            "layers": blobs.collect::<Vec<_>>(),
            "subject": subject,
        });
        let bytes = Bytes::from(manifest.to_string());
        let (digest, size) = (Digest::sha256(&bytes), bytes.len() as u64);
        Ok((Referrer::new(unsigned_type(self.set), digest, size), bytes))
    }

    /// Reads those of a manifest in an image's place.
    pub(crate) async fn read(image: &SourceImage, referrer: &Referrer) -> Result<Self> {
        #[derive(Deserialize)]
        struct Manifest {
            config: Descriptor,
        }
        let malformed = |error| {
            let digest = referrer.descriptor.digest.as_str();
            Error::new(Kind::InvalidArgument, "read artifact", digest).with_source(error)
        };
        let bytes = image.document(&referrer.descriptor).await?;
        let manifest: Manifest = serde_json::from_slice(&bytes).map_err(malformed)?;
        let bytes = image.document(&manifest.config).await?;
        serde_json::from_slice(&bytes).map_err(malformed)
    }
}
