// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The images of an archive or layout.

use std::io;

use resnap_core::{Descriptor, media_type, null_is_default};
use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::index::Saved;

/// The annotations with the name of an image: of the specification, and of containerd, which has whole
/// references.
const NAMES: [&str; 2] = [
    "org.opencontainers.image.ref.name",
    "io.containerd.image.name",
];

/// The form in which an archive has its images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveForm {
    /// An OCI layout, as a directory or an archive.
    Oci,
    /// The archive of `docker save`.
    Docker,
}

/// An image of an archive or layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchivedImage {
    /// Its names.
    pub names: Vec<String>,
    /// The index or manifest.
    pub target: Descriptor,
}

#[derive(Deserialize)]
struct Index {
    #[serde(default, deserialize_with = "null_is_default")]
    manifests: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(flatten)]
    target: Descriptor,
    /// Set for what refers to an image.
    #[serde(rename = "artifactType", default)]
    artifact_type: Option<IgnoredAny>,
}

/// Returns the images of the index of a layout.
pub(crate) fn of_layout(index: &[u8]) -> io::Result<Vec<ArchivedImage>> {
    let index: Index = serde_json::from_slice(index)?;
    let entries = index.manifests.into_iter();
    let images = entries.filter(|entry| entry.artifact_type.is_none());
    Ok(images.filter_map(|entry| image(entry.target)).collect())
}

/// Returns the images of `docker save`.
pub(crate) fn of_saved(saved: &[Saved]) -> Vec<ArchivedImage> {
    let images = saved.iter().map(|saved| ArchivedImage {
        names: saved.names.clone(),
        target: saved.target.clone(),
    });
    images.collect()
}

/// Returns the image that an entry of an index is, if it is one.
fn image(target: Descriptor) -> Option<ArchivedImage> {
    let kind = &target.media_type;
    if !media_type::is_manifest(kind) && !media_type::is_index(kind) {
        return None;
    }
    let mut names: Vec<_> = NAMES
        .iter()
        .filter_map(|name| target.annotations.get(*name).cloned())
        .collect();
    names.dedup();
    Some(ArchivedImage { names, target })
}
