// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The image that something is made of.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use resnap_core::{
    BlobSource, ByteStream, ContentReader, Descriptor, Error, Kind, LargeRead, Platform, Referrer,
    Result, Scope, media_type, read_verified,
};
use resnap_handler_wrapper::{
    Choice, ChoiceError, MAX_DOCUMENT_BYTES, MissingDocument, choose_manifest,
};
use resnap_platforms::Matcher;

use crate::content::SourceContent;

/// The limit on the documents that are read to choose a manifest.
const MAX_DOCUMENTS: usize = 256;

/// An image, and the place that its content is read from.
pub struct SourceImage {
    /// The name, as the user wrote it.
    pub name: String,
    /// The index or manifest.
    pub target: Descriptor,
    pub(crate) content: Arc<dyn ContentReader>,
    /// The directory that has the blobs as files `blobs/ALGORITHM/HEX`, if there is one.
    pub(crate) content_root: Option<PathBuf>,
    pub(crate) scope: Scope,
    /// The content, if it is of a source of blobs.
    source: Option<Arc<SourceContent>>,
}

impl std::fmt::Debug for SourceImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceImage")
            .field("name", &self.name)
            .field("target", &self.target.digest)
            .finish_non_exhaustive()
    }
}

impl SourceImage {
    /// Returns an image in a source of blobs. `reference` is the name by which a registry has it; `layout` is the
    /// directory of the OCI layout that it is in, if it is in one.
    pub fn in_source(
        name: impl Into<String>,
        target: Descriptor,
        source: Arc<dyn BlobSource>,
        reference: Option<String>,
        layout: Option<PathBuf>,
    ) -> Self {
        let source = Arc::new(SourceContent::new(source, reference));
        Self {
            name: name.into(),
            target: unlisted(target),
            content: Arc::clone(&source) as _,
            content_root: layout,
            scope: Scope::new("local"),
            source: Some(source),
        }
    }

    /// Returns an image in a content store. `root` is the directory with its blobs, if it can be read.
    pub fn in_store(
        name: impl Into<String>,
        target: Descriptor,
        content: Arc<dyn ContentReader>,
        scope: Scope,
        root: Option<PathBuf>,
    ) -> Self {
        Self {
            name: name.into(),
            target: unlisted(target),
            content,
            content_root: root,
            scope,
            source: None,
        }
    }

    /// Chooses the manifest of a platform.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, with the platforms that there are, or if content is missing; errors of
    /// the source; those of a document that is malformed.
    pub async fn choose(&self, platform: &Platform) -> Result<Choice> {
        let matcher = Matcher::ordered(std::slice::from_ref(platform));
        for _ in 0..MAX_DOCUMENTS {
            let chosen = choose_manifest(&*self.content, &self.scope, &self.target, &matcher).await;
            let error = match chosen {
                Ok(choice) => {
                    self.add(&choice.config_descriptor);
                    choice.layers.iter().for_each(|layer| self.add(layer));
                    return Ok(choice);
                }
                Err(ChoiceError::Content(error)) => error,
                Err(ChoiceError::NoMatch(platforms)) => {
                    return Err(self.no_match(platform, &platforms));
                }
            };
            let missing = MissingDocument::behind(&error).map(|missing| &missing.descriptor);
            let (Some(source), Some(missing)) = (&self.source, missing) else {
                return Err(error);
            };
            if !source.fetch(missing).await? {
                return Err(error);
            }
        }
        let many = Error::new(Kind::ResourceExhausted, "read image", &*self.name);
        Err(many.with_source(format!(
            "more than {MAX_DOCUMENTS} documents had to be read"
        )))
    }

    /// Chooses the manifests of platforms, each once.
    ///
    /// # Errors
    /// As [`SourceImage::choose`].
    pub async fn choose_all(&self, platforms: &[Platform]) -> Result<Vec<Choice>> {
        let mut choices: Vec<Choice> = Vec::new();
        for platform in platforms {
            let choice = self.choose(platform).await?;
            if choices
                .iter()
                .all(|other| other.manifest.digest != choice.manifest.digest)
            {
                choices.push(choice);
            }
        }
        Ok(choices)
    }

    fn no_match(&self, platform: &Platform, platforms: &[Platform]) -> Error {
        let platforms: Vec<_> = platforms.iter().map(Platform::to_string).collect();
        let platforms = platforms.join(", ");
        let reason = format!("it has no manifest for {platform}; it has: {platforms}");
        Error::new(Kind::NotFound, "choose a manifest of", &*self.name).with_source(reason)
    }

    /// Returns a document of the image, checked.
    pub(crate) async fn document(&self, descriptor: &Descriptor) -> Result<Bytes> {
        self.add(descriptor);
        let mut large = LargeRead::default();
        let (content, scope) = (&*self.content, &self.scope);
        let read = read_verified(content, scope, descriptor, MAX_DOCUMENT_BYTES, &mut large).await;
        Ok(read?.into())
    }

    /// Returns the bytes of a blob, unchecked. Nothing is asked for before the stream is read.
    pub(crate) fn blob(&self, descriptor: &Descriptor) -> ByteStream {
        self.add(descriptor);
        let (content, scope) = (Arc::clone(&self.content), self.scope.clone());
        let digest = descriptor.digest.clone();
        let opened = async move { content.open(&scope, &digest).await };
        stream::once(opened).try_flatten().boxed()
    }

    /// Returns the manifests that refer to a manifest of the image.
    ///
    /// # Errors
    /// [`Kind::Unimplemented`] for an image in a content store; those of the source.
    pub(crate) async fn referrers(
        &self,
        manifest: &Descriptor,
        artifact_types: &[&str],
    ) -> Result<Vec<Referrer>> {
        match &self.source {
            Some(source) => source.referrers(manifest, artifact_types).await,
            None => {
                let list = Error::new(Kind::Unimplemented, "list the artifacts of", &*self.name);
                Err(list.with_source(
                    "a content store does not list them: name the image by where it is, as oci:PATH or docker://REFERENCE",
                ))
            }
        }
    }

    fn add(&self, descriptor: &Descriptor) {
        if let Some(source) = &self.source {
            source.add(descriptor);
        }
    }
}

/// Returns a target without the platform in an index that lists it: its own config tells.
fn unlisted(target: Descriptor) -> Descriptor {
    Descriptor {
        platform: None,
        ..target
    }
}

/// Returns whether a target is an index.
pub(crate) fn is_index(target: &Descriptor) -> bool {
    media_type::is_index(&target.media_type)
}
