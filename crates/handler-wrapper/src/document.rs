// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The JSON documents of an image: index, manifest and config. Only the fields that resnap needs
//! are read, so that an image that containerd accepts is not refused for others.

use resnap_core::{
    ContentReader, Descriptor, DiffId, Digest, Error, Kind, LargeRead, Platform, Result, Scope,
    media_type, null_is_default, read_verified, work_on,
};
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

/// The limit on the bytes of an index, manifest or config.
pub const MAX_DOCUMENT_BYTES: usize = 8 << 20;

/// The limit on the bytes of all documents read for one operation.
pub(crate) const MAX_BYTES: usize = 4 * MAX_DOCUMENT_BYTES;

/// The limit on the layers of an image. No kernel mounts as many, and each costs memory several
/// times over.
pub const MAX_LAYERS: usize = 4096;

#[derive(Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) manifests: Vec<Descriptor>,
    /// A field of manifests only.
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) layers: Vec<Descriptor>,
    /// A field of indexes only.
    manifests: Option<IgnoredAny>,
}

/// The platform and the layers in an image's config (OCI image-spec `config.md`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The platform.
    pub platform: Platform,
    /// The digests of the uncompressed layers, the base first.
    pub diff_ids: Vec<DiffId>,
}

/// The fields of a platform are repeated here. With `serde(flatten)` all unknown fields would be
/// buffered in memory, at many times their size.
#[derive(Deserialize)]
struct RawConfig {
    #[serde(default, deserialize_with = "null_is_default")]
    os: String,
    #[serde(default, deserialize_with = "null_is_default")]
    architecture: String,
    #[serde(default, deserialize_with = "null_is_default")]
    variant: String,
    #[serde(rename = "os.version", default, deserialize_with = "null_is_default")]
    os_version: String,
    #[serde(rename = "os.features", default, deserialize_with = "null_is_default")]
    os_features: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    rootfs: RawRootfs,
}

#[derive(Default, Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "null_is_default")]
    diff_ids: Vec<DiffId>,
}

/// The manifest is not that of a container image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("its media type {media_type:?} is not that of a container image, nor does it name layers")]
pub struct NotAnImage {
    /// The media type of the config.
    pub media_type: String,
}

impl NotAnImage {
    /// Returns the cause of an error, if it is a `NotAnImage`.
    pub fn behind(error: &Error) -> Option<&Self> {
        std::error::Error::source(error)?.downcast_ref()
    }
}

/// An index, manifest or config is missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("it is not in the content store")]
pub struct MissingDocument {
    /// The descriptor of the document.
    pub descriptor: Box<Descriptor>,
}

impl MissingDocument {
    /// Returns the cause of an error, if it is a `MissingDocument`.
    pub fn behind(error: &Error) -> Option<&Self> {
        std::error::Error::source(error)?.downcast_ref()
    }
}

/// Reads a manifest's config. A config whose media type is not that of an image config is accepted
/// if it lists layers, since containerd does not check the type.
///
/// # Errors
/// [`Kind::NotFound`] if the blob is missing; [`Kind::InvalidArgument`] if it is not valid JSON of
/// this form, or for [`NotAnImage`]; [`Kind::ResourceExhausted`] beyond [`MAX_DOCUMENT_BYTES`];
/// [`Kind::DataLoss`] if it does not match its digest.
pub async fn rootfs(
    content: &dyn ContentReader,
    scope: &Scope,
    config: &Descriptor,
) -> Result<Config> {
    Documents::new(content, scope).rootfs(config).await
}

/// Returns the URLs that a manifest gives for the blob of `layer`, at most eight.
///
/// # Errors
/// As [`rootfs`].
pub async fn layer_urls(
    content: &dyn ContentReader,
    scope: &Scope,
    manifest: &Descriptor,
    layer: &Digest,
) -> Result<Vec<String>> {
    let mut documents = Documents::new(content, scope);
    let placed: Placed = documents.read("read manifest", manifest).await?;
    let mut layers = placed.layers.into_iter();
    let urls = layers.find(|placed| placed.digest == *layer);
    let mut urls = urls.map(|placed| placed.urls).unwrap_or_default();
    urls.truncate(MAX_URLS);
    Ok(urls)
}

/// The limit on the URLs of a layer.
const MAX_URLS: usize = 8;

/// The URLs of layers, which are needed only if a blob is missing.
#[derive(Deserialize)]
struct Placed {
    #[serde(default, deserialize_with = "null_is_default")]
    layers: Vec<PlacedLayer>,
}

#[derive(Deserialize)]
struct PlacedLayer {
    digest: Digest,
    #[serde(default, deserialize_with = "null_is_default")]
    urls: Vec<String>,
}

/// Reads the documents of one image, with a limit on their total size.
pub(crate) struct Documents<'a> {
    content: &'a dyn ContentReader,
    scope: &'a Scope,
    /// The bytes that may still be read: descriptors may state any size.
    bytes_left: usize,
    large: LargeRead,
}

impl<'a> Documents<'a> {
    pub(crate) fn new(content: &'a dyn ContentReader, scope: &'a Scope) -> Self {
        Self {
            content,
            scope,
            bytes_left: MAX_BYTES,
            large: LargeRead::default(),
        }
    }

    /// Reads a config.
    ///
    /// # Errors
    /// As [`rootfs`].
    pub(crate) async fn rootfs(&mut self, config: &Descriptor) -> Result<Config> {
        const READ: &str = "read config";
        let is_known = media_type::is_config(&config.media_type);
        let not_an_image = || {
            Error::new(Kind::InvalidArgument, READ, config.digest.as_str()).with_source(
                NotAnImage {
                    media_type: config.media_type.clone(),
                },
            )
        };
        let raw: RawConfig = match self.read(READ, config).await {
            Err(error) if !is_known && error.kind() == Kind::InvalidArgument => {
                return Err(not_an_image());
            }
            read => read?,
        };
        if !is_known && raw.rootfs.diff_ids.is_empty() {
            return Err(not_an_image());
        }
        let platform = Platform {
            os: raw.os,
            architecture: raw.architecture,
            variant: raw.variant,
            os_version: raw.os_version,
            os_features: raw.os_features,
        };
        Ok(Config {
            platform: platform.normalized(),
            diff_ids: raw.rootfs.diff_ids,
        })
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// As [`rootfs`]; [`Kind::InvalidArgument`] also past [`MAX_LAYERS`].
    pub(crate) async fn manifest(&mut self, descriptor: &Descriptor) -> Result<Manifest> {
        let manifest: Manifest = self.read("read manifest", descriptor).await?;
        if manifest.manifests.is_some() {
            return Err(ambiguous(descriptor));
        }
        let layers = manifest.layers.len();
        if layers > MAX_LAYERS {
            let digest = descriptor.digest.as_str();
            return Err(
                Error::new(Kind::InvalidArgument, "read manifest", digest).with_source(format!(
                    "it has {layers} layers, and may have at most {MAX_LAYERS}"
                )),
            );
        }
        Ok(manifest)
    }

    /// Reads an index.
    ///
    /// # Errors
    /// As for [`manifest`], except for the layers.
    pub(crate) async fn index(&mut self, descriptor: &Descriptor) -> Result<Index> {
        let index: Index = self.read("read index", descriptor).await?;
        if index.config.is_some() || index.layers.is_some() {
            return Err(ambiguous(descriptor));
        }
        Ok(index)
    }

    async fn read<T>(&mut self, operation: &'static str, descriptor: &Descriptor) -> Result<T>
    where
        T: DeserializeOwned + Send + 'static,
    {
        let (content, scope) = (self.content, self.scope);
        let failed = |kind| Error::new(kind, operation, descriptor.digest.as_str());
        let read = read_verified(
            content,
            scope,
            descriptor,
            MAX_DOCUMENT_BYTES,
            &mut self.large,
        )
        .await;
        let bytes = read.map_err(|error| match error.kind() {
            Kind::NotFound => failed(Kind::NotFound).with_source(MissingDocument {
                descriptor: Box::new(descriptor.clone()),
            }),
            _ => error,
        })?;
        self.bytes_left = self.bytes_left.checked_sub(bytes.len()).ok_or_else(|| {
            failed(Kind::ResourceExhausted).with_source(format!(
                "more than {MAX_BYTES} bytes of documents had to be read"
            ))
        })?;
        let parsed = work_on(content, bytes, |bytes| serde_json::from_slice(&bytes)).await?;
        parsed.map_err(|error| failed(Kind::InvalidArgument).with_source(error))
    }
}

/// A document that is an index and a manifest at once could be read as two different images
/// (containerd `core/images/image.go`, `validateMediaType`).
fn ambiguous(descriptor: &Descriptor) -> Error {
    Error::new(Kind::InvalidArgument, "read", descriptor.digest.as_str())
        .with_source("it is an index and a manifest at once")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_config_the_platform_is_read_and_the_rest_passed_over() {
        let json = r#"{
            "created": "2026-01-01T00:00:00Z", "x": [[0], {"os": "odd"}], "os": "windows",
            "architecture": "amd64", "variant": null, "os.version": "10.0",
            "os.features": ["win32k"], "rootfs": null, "config": {"Env": ["architecture=odd"]}
        }"#;
        let config: RawConfig = serde_json::from_str(json).unwrap();
        let names = [
            &config.os,
            &config.architecture,
            &config.variant,
            &config.os_version,
        ];
        assert_eq!(names, ["windows", "amd64", "", "10.0"]);
        assert_eq!(config.os_features, ["win32k"]);
        assert!(config.rootfs.diff_ids.is_empty());
        let config: RawConfig = serde_json::from_str(r#"{"os.features":null}"#).unwrap();
        assert!(config.os.is_empty() && config.os_features.is_empty());
    }
}
