// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Copies of images.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use resnap_core::{Descriptor, Destination, Digest, Error, Kind, media_type, null_is_default};
use serde::Deserialize;

use crate::image::SourceImage;

/// The number of blobs that are copied at once.
const PARALLEL: usize = 3;

/// The limit on the nesting of indexes. Real images have one.
const MAX_DEPTH: usize = 8;

/// The limit on the documents that are copied for one image.
const MAX_DOCUMENTS: usize = 4096;

/// The parts of an index or manifest.
#[derive(Deserialize)]
struct Parts {
    #[serde(default, deserialize_with = "null_is_default")]
    manifests: Vec<Descriptor>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default, deserialize_with = "null_is_default")]
    layers: Vec<Descriptor>,
}

/// The reason why a document was not copied.
pub(crate) enum CopyError {
    /// The source lacks a part.
    Missing(Error),
    /// Any other.
    Other(Error),
}

impl From<CopyError> for Error {
    fn from(error: CopyError) -> Self {
        match error {
            CopyError::Missing(error) | CopyError::Other(error) => error,
        }
    }
}

impl CopyError {
    fn of_source(error: Error) -> Self {
        match error.is_not_found() {
            true => Self::Missing(error),
            false => Self::Other(error),
        }
    }
}

/// Copies documents of an image with all that they refer to, unchanged, each once.
pub(crate) struct Copy<'a> {
    image: &'a SourceImage,
    to: &'a dyn Destination,
    seen: HashSet<Digest>,
}

impl<'a> Copy<'a> {
    pub(crate) fn new(image: &'a SourceImage, to: &'a dyn Destination) -> Self {
        Self {
            image,
            to,
            seen: HashSet::new(),
        }
    }

    /// Copies an index or manifest.
    pub(crate) async fn document(
        &mut self,
        document: &Descriptor,
    ) -> std::result::Result<(), CopyError> {
        self.nested(document, MAX_DEPTH).await
    }

    async fn nested(
        &mut self,
        document: &Descriptor,
        depth: usize,
    ) -> std::result::Result<(), CopyError> {
        if !self.seen.insert(document.digest.clone()) {
            return Ok(());
        }
        let digest = document.digest.as_str();
        let limit = match (depth, self.seen.len()) {
            (0, _) => Some(format!("indexes are nested more than {MAX_DEPTH} deep")),
            (_, count) if count > MAX_DOCUMENTS => {
                Some(format!("the image has more than {MAX_DOCUMENTS} documents"))
            }
            _ => None,
        };
        if let Some(reason) = limit {
            let copy = Error::new(Kind::ResourceExhausted, "copy", digest);
            return Err(CopyError::Other(copy.with_source(reason)));
        }
        let bytes = self.image.document(document).await;
        let bytes = bytes.map_err(CopyError::of_source)?;
        let parts: Parts = serde_json::from_slice(&bytes).map_err(|error| {
            let read = Error::new(Kind::InvalidArgument, "read", digest);
            CopyError::Other(read.with_source(error))
        })?;
        if media_type::is_index(&document.media_type) {
            for manifest in &parts.manifests {
                Box::pin(self.nested(manifest, depth - 1)).await?;
            }
        } else {
            let (image, to) = (self.image, self.to);
            let blobs = parts.config.into_iter().chain(parts.layers);
            let copied =
                stream::iter(blobs).map(|blob| async move { copy_blob(image, &blob, to).await });
            let copied = copied.buffer_unordered(PARALLEL);
            copied.try_collect::<()>().await?;
        }
        let put = self.to.put_manifest(document, bytes, None).await;
        put.map_err(CopyError::Other)
    }
}

/// Copies a blob, unless it is there.
pub(crate) async fn copy_blob(
    image: &SourceImage,
    blob: &Descriptor,
    to: &dyn Destination,
) -> std::result::Result<(), CopyError> {
    let of_source = Arc::new(Mutex::new(None));
    let seen = Arc::clone(&of_source);
    let bytes = image.blob(blob).inspect_err(move |error| {
        *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
    });
    let put = to.put_blob(blob, bytes.boxed()).await;
    put.map_err(|error| {
        let of_source = of_source
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match (of_source, error.kind()) {
            (Some(error), _) => CopyError::of_source(error),
            // The destination has found that out.
            (None, Kind::DataLoss) => {
                let read = Error::new(Kind::DataLoss, "read from the source", blob.digest.as_str());
                CopyError::Other(read.with_source(error))
            }
            (None, _) => CopyError::Other(error),
        }
    })
}
