// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Copies of images.

use futures::{StreamExt as _, TryStreamExt as _, stream};
use resnap_core::{Descriptor, Destination, Error, Kind, Result, media_type, null_is_default};
use serde::Deserialize;

use crate::image::SourceImage;

/// The number of blobs that are copied at once.
const PARALLEL: usize = 3;

/// The limit on the nesting of indexes. Real images have one.
const MAX_DEPTH: usize = 8;

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

/// Copies an index or manifest with all that it refers to, unchanged.
///
/// # Errors
/// [`Kind::NotFound`] if the source does not have all of it.
pub(crate) async fn copy(
    image: &SourceImage,
    document: &Descriptor,
    to: &dyn Destination,
) -> Result<()> {
    copy_nested(image, document, to, MAX_DEPTH).await
}

async fn copy_nested(
    image: &SourceImage,
    document: &Descriptor,
    to: &dyn Destination,
    depth: usize,
) -> Result<()> {
    let digest = document.digest.as_str();
    if depth == 0 {
        let deep = Error::new(Kind::ResourceExhausted, "copy index", digest);
        return Err(deep.with_source(format!("indexes are nested more than {MAX_DEPTH} deep")));
    }
    let bytes = image.document(document).await?;
    let parts: Parts = serde_json::from_slice(&bytes)
        .map_err(|error| Error::new(Kind::InvalidArgument, "read", digest).with_source(error))?;
    if media_type::is_index(&document.media_type) {
        for manifest in &parts.manifests {
            Box::pin(copy_nested(image, manifest, to, depth - 1)).await?;
        }
    } else {
        let blobs = parts.config.into_iter().chain(parts.layers);
        let copied =
            stream::iter(blobs).map(|blob| async move { copy_blob(image, &blob, to).await });
        copied
            .buffer_unordered(PARALLEL)
            .try_collect::<()>()
            .await?;
    }
    to.put_manifest(document, bytes, None).await
}

async fn copy_blob(image: &SourceImage, blob: &Descriptor, to: &dyn Destination) -> Result<()> {
    match to.has(blob).await? {
        true => Ok(()),
        false => to.put_blob(blob, image.blob(blob).await?).await,
    }
}
