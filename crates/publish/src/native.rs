// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images with native EROFS layers, beside the plain ones in their indexes.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use resnap_core::{
    Descriptor, Destination, DiffId, Digest, EROFS_FEATURE, ErofsMode, Error, Kind, Platform,
    Result, media_type,
};
use resnap_handler_wrapper::Choice;
use resnap_verity::BlockSize;
use serde::Serialize;
use serde_json::{Value, json};

use crate::blob_file::{FileBlob, FileRange, put_bytes};
use crate::copy::{Copy, CopyError};
use crate::fault::{Stop, blocking};
use crate::image::{SourceImage, is_index};
use crate::layer_format::LayerFormat;
use crate::layers::{Progress, WrittenLayer, write_layers};
use crate::scratch::Scratch;
use crate::tree::append_tree;

/// The form of native EROFS layers.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct NativeForm {
    /// The format of the layers.
    pub format: LayerFormat,
    /// Whether each layer brings a dm-verity tree behind its image.
    pub verity: bool,
}

/// An index with the manifests of native EROFS layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NativeImage {
    /// The digest of the new index.
    pub index: Digest,
    /// The digest of what the image was before: an index, or the plain manifest.
    pub source: Digest,
    /// The manifests with native layers.
    pub manifests: Vec<NativeManifest>,
    /// The platforms in the old index whose content the source does not have. They are not in the new one.
    pub left_out: Vec<String>,
}

/// A manifest with native EROFS layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NativeManifest {
    /// Its platform.
    pub platform: Platform,
    /// Its digest.
    pub digest: Digest,
    /// The digest of the plain manifest, which stays as it is.
    pub plain: Digest,
    /// The bytes of its layers.
    pub size: u64,
}

/// Publishes an image under a tag, with a manifest of native EROFS layers behind the plain one of each of these
/// platforms (`linux(+erofs)/ARCH`). A native manifest that the image has for the platform already is replaced.
///
/// # Errors
/// Those of [`SourceImage::choose`], of reading layers, and of the destination.
pub async fn convert_to_native(
    image: &SourceImage,
    platforms: &[Platform],
    form: &NativeForm,
    to: &dyn Destination,
    tag: &str,
    progress: Arc<dyn Progress>,
) -> Result<NativeImage> {
    let work = Work {
        image,
        form,
        to,
        progress,
    };
    let choices = image.choose_all(platforms).await?;
    for choice in &choices {
        work.require_plain(choice)?;
    }
    let (mut index, left_out) = work.plain(&choices).await?;
    for choice in &choices {
        index.position(choice)?;
    }
    let mut manifests = Vec::new();
    for choice in &choices {
        let (entry, manifest) = work.native(choice).await?;
        index.insert(entry, choice)?;
        manifests.push(manifest);
    }
    let bytes = Bytes::from(index.encode());
    let target = Descriptor::new(
        media_type::OCI_INDEX,
        Digest::sha256(&bytes),
        bytes.len() as u64,
    );
    to.put_manifest(&target, bytes, Some(tag)).await?;
    Ok(NativeImage {
        index: target.digest,
        source: image.target.digest.clone(),
        manifests,
        left_out,
    })
}

struct Work<'a> {
    image: &'a SourceImage,
    form: &'a NativeForm,
    to: &'a dyn Destination,
    progress: Arc<dyn Progress>,
}

impl Work<'_> {
    fn require_plain(&self, choice: &Choice) -> Result<()> {
        let platform = choice.platform();
        if !platform
            .os_features
            .iter()
            .any(|feature| feature == EROFS_FEATURE)
        {
            return Ok(());
        }
        let convert = Error::new(Kind::InvalidArgument, "convert image", &*self.image.name);
        Err(convert.with_source(format!(
            "its manifest for {platform} has native layers already"
        )))
    }

    /// Copies the plain manifests, and returns an index of them and the platforms of those that the source does not
    /// have.
    async fn plain(&self, choices: &[Choice]) -> Result<(Index, Vec<String>)> {
        let mut copy = Copy::new(self.image, self.to);
        if !is_index(&self.image.target) {
            copy.document(&self.image.target).await?;
            let platform = choices.first().map(Choice::platform);
            return Ok((Index::of_manifest(&self.image.target, platform), Vec::new()));
        }
        let bytes = self.image.document(&self.image.target).await?;
        let mut index = Index::parse(&bytes, &self.image.target.digest)?;
        let mut left_out = Vec::new();
        for entry in index.entries()? {
            let is_chosen = choices
                .iter()
                .any(|choice| choice.manifest.digest == entry.digest);
            match copy.document(&entry).await {
                Err(CopyError::Missing(_)) if !is_chosen => {
                    let platform = entry.platform.as_ref().map(Platform::to_string);
                    left_out.push(platform.unwrap_or_else(|| entry.digest.to_string()));
                    index.remove(&entry.digest);
                }
                copied => copied?,
            }
        }
        Ok((index, left_out))
    }

    /// Publishes the native manifest of a plain one, and returns its entry in the index.
    async fn native(&self, choice: &Choice) -> Result<(Value, NativeManifest)> {
        let scratch = Scratch::temporary().await?;
        let store = scratch.join("store");
        let mode = ErofsMode::Full;
        let written =
            write_layers(self.image, choice, mode, &store, Arc::clone(&self.progress)).await?;
        let (mut layers, mut diff_ids, mut size) = (Vec::new(), Vec::new(), 0);
        for (number, layer) in written.into_iter().enumerate() {
            let (form, compressed) = (self.form.clone(), scratch.join(&format!("{number}.zst")));
            let native =
                blocking(move |stop| NativeLayer::new(&layer, &form, &compressed, stop)).await?;
            native.blob.put(self.to).await?;
            size += native.blob.descriptor.size;
            diff_ids.push(native.diff_id.clone());
            layers.push(native.descriptor());
        }
        let config = self.config(choice, &diff_ids).await?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": config,
            "layers": layers,
        });
        let bytes = Bytes::from(manifest.to_string());
        let (digest, length) = (Digest::sha256(&bytes), bytes.len() as u64);
        let manifest = Descriptor::new(media_type::OCI_MANIFEST, digest.clone(), length);
        self.to.put_manifest(&manifest, bytes, None).await?;
        let mut platform = choice.platform();
        platform.os_features.push(EROFS_FEATURE.to_owned());
        let entry = Descriptor {
            platform: Some(platform.clone()),
            ..manifest
        };
        Ok((
            json!(entry),
            NativeManifest {
                platform,
                digest,
                plain: choice.manifest.digest.clone(),
                size,
            },
        ))
    }

    /// Publishes the config of native layers, and returns its descriptor.
    async fn config(&self, choice: &Choice, diff_ids: &[DiffId]) -> Result<Descriptor> {
        let bytes = self.image.document(&choice.config_descriptor).await?;
        let malformed = || {
            let digest = choice.config_descriptor.digest.as_str();
            Error::new(Kind::InvalidArgument, "read config", digest)
        };
        let config = serde_json::from_slice(&bytes);
        let mut config: Value = config.map_err(|error| malformed().with_source(error))?;
        let fields = config.as_object_mut().ok_or_else(malformed)?;
        let mut features = choice.platform().os_features;
        features.push(EROFS_FEATURE.to_owned());
        fields.insert("os.features".to_owned(), json!(features));
        let rootfs = json!({ "type": "layers", "diff_ids": diff_ids });
        fields.insert("rootfs".to_owned(), rootfs);
        let config = config.to_string().into_bytes();
        put_bytes(self.to, media_type::OCI_CONFIG, config).await
    }
}

/// A native layer.
struct NativeLayer {
    blob: FileBlob,
    diff_id: DiffId,
    annotations: BTreeMap<String, String>,
}

impl NativeLayer {
    fn new(
        layer: &WrittenLayer,
        form: &NativeForm,
        compressed: &Path,
        stop: &Stop,
    ) -> Result<Self> {
        let tree = form.verity.then(|| {
            let block = BlockSize::B4096;
            let size = (layer.data_size()?, block.bytes());
            append_tree(&layer.path, size, block, &layer.diff_id.0, stop)
        });
        let tree = tree.transpose()?;
        let plain = FileRange::whole(&layer.path)?;
        let media_type = form.format.media_type();
        let (blob, diff_id) = match form.format.is_compressed() {
            true => (
                plain.compress(compressed)?.blob(&media_type)?,
                plain.digest()?,
            ),
            false => {
                let blob = plain.blob(&media_type)?;
                let digest = blob.descriptor.digest.clone();
                (blob, digest)
            }
        };
        let diff_id = DiffId(diff_id);
        Ok(Self {
            annotations: form.format.annotations(&diff_id, tree.as_ref()),
            blob,
            diff_id,
        })
    }

    fn descriptor(self) -> Descriptor {
        Descriptor {
            annotations: self.annotations,
            ..self.blob.descriptor
        }
    }
}

/// An index, with the fields that are not known.
struct Index(Value);

impl Index {
    fn of_manifest(manifest: &Descriptor, platform: Option<Platform>) -> Self {
        let entry = Descriptor {
            platform,
            annotations: BTreeMap::new(),
            ..manifest.clone()
        };
        Self(json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_INDEX,
            "manifests": [entry],
        }))
    }

    fn parse(bytes: &[u8], digest: &Digest) -> Result<Self> {
        let malformed = |error: String| {
            let read = Error::new(Kind::InvalidArgument, "read index", digest.as_str());
            read.with_source(error)
        };
        let index: Value =
            serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        let mut this = Self(index);
        if this.manifests().is_none() {
            return Err(malformed("it has no list of manifests".to_owned()));
        }
        // A Docker manifest list has no native manifests.
        this.0["mediaType"] = json!(media_type::OCI_INDEX);
        Ok(this)
    }

    fn manifests(&mut self) -> Option<&mut Vec<Value>> {
        self.0.get_mut("manifests")?.as_array_mut()
    }

    fn entries(&mut self) -> Result<Vec<Descriptor>> {
        let entries = self.manifests().into_iter().flatten().map(|entry| {
            let parsed = serde_json::from_value(entry.clone());
            parsed.map_err(|error| {
                Error::new(Kind::InvalidArgument, "read", "an entry of an index").with_source(error)
            })
        });
        entries.collect()
    }

    fn remove(&mut self, digest: &Digest) {
        if let Some(manifests) = self.manifests() {
            manifests.retain(|entry| entry["digest"] != digest.as_str());
        }
    }

    /// Returns the place of a plain manifest.
    fn position(&mut self, choice: &Choice) -> Result<usize> {
        let plain = choice.manifest.digest.as_str();
        let mut entries = self.manifests().into_iter().flatten();
        let position = entries.position(|entry| entry["digest"] == plain);
        position.ok_or_else(|| {
            let nested = Error::new(Kind::Unimplemented, "convert manifest", plain);
            nested.with_source("it is in an index that is in another one")
        })
    }

    /// Inserts the entry of a native manifest behind that of the plain one, in the place of an older one.
    fn insert(&mut self, entry: Value, choice: &Choice) -> Result<()> {
        let platform = entry["platform"].clone();
        if let Some(manifests) = self.manifests() {
            manifests.retain(|other| other["platform"] != platform);
        }
        let place = self.position(choice)? + 1;
        if let Some(manifests) = self.manifests() {
            manifests.insert(place, entry);
        }
        Ok(())
    }

    fn encode(&self) -> String {
        self.0.to_string()
    }
}
