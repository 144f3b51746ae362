// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The places of blobs in an archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};

use bytes::Bytes;
use resnap_core::{Descriptor, Digest, media_type, null_is_default};
use serde::Deserialize;
use serde_json::json;
use tar::{Archive, EntryType};

use crate::layout::{self, Found, Wanted};

/// The limit on entries of an archive.
const MAX_ENTRIES: usize = 1 << 20;

/// The limit on images of a `docker save` archive.
const MAX_IMAGES: usize = 1024;

/// The limit on the bytes of a `manifest.json` or an image's config.
const MAX_DOCUMENT: u64 = 8 << 20;

/// The limit on the layers of an image of a `docker save` archive, as of any image.
const MAX_LAYERS: usize = 512;

/// The media type of its layers, which are not compressed.
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

/// The place of a blob in an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// The places of the blobs of an archive, and of the index of its layout.
#[derive(Debug, Default)]
pub(crate) struct Index {
    layout: Option<Place>,
    blobs: HashMap<Digest, Place>,
    /// The manifests of the images of `docker save`, which the archive does not have itself.
    manifests: HashMap<Digest, Bytes>,
    /// Those images.
    pub(crate) saved: Vec<Saved>,
}

/// An image of `docker save`.
#[derive(Debug)]
pub(crate) struct Saved {
    pub(crate) names: Vec<String>,
    pub(crate) target: Descriptor,
}

impl Index {
    /// Returns a file, whose place is in the archive `file`.
    pub(crate) fn get(&self, file: File, wanted: Wanted<'_>) -> Option<Found> {
        let place = match wanted {
            Wanted::Index => self.layout,
            Wanted::Blob(digest) => match self.manifests.get(digest) {
                Some(manifest) => return Some(Found::Made(manifest.clone())),
                None => self.blobs.get(digest).copied(),
            },
        };
        place.map(|Place { offset, size }| Found::File { file, offset, size })
    }
}

/// An image in the `manifest.json` of `docker save`.
#[derive(Deserialize)]
struct SavedImage {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
    #[serde(default, rename = "RepoTags", deserialize_with = "null_is_default")]
    names: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// Returns the blobs of an archive: those of an OCI layout in it (`blobs/ALGORITHM/ENCODED`), and the configs and
/// uncompressed layers of `docker save`; the latter are named by the diff IDs of their images.
pub(crate) fn index(file: File) -> io::Result<Index> {
    let mut archive = Archive::new(file);
    let mut places = HashMap::new();
    // Raw, as extended headers would be read whole. All names that matter fit into plain ones.
    for (count, entry) in archive.entries_with_seek()?.raw(true).enumerate() {
        let entry = entry.map_err(no_tar)?;
        if count == MAX_ENTRIES {
            return Err(io::Error::other(format!("more than {MAX_ENTRIES} files")));
        }
        if entry.header().entry_type() != EntryType::Regular {
            continue;
        }
        let name = entry.path()?.to_string_lossy().into_owned();
        let place = Place {
            offset: entry.raw_file_position(),
            size: entry.size(),
        };
        places.insert(name.trim_start_matches("./").to_owned(), place);
    }
    let mut index = Index {
        layout: places.get(layout::INDEX).copied(),
        ..Index::default()
    };
    add_saved(&mut index, &mut archive.into_inner(), &places)?;
    let layouts = places.iter().filter_map(|(name, place)| {
        let (algorithm, encoded) = name.strip_prefix("blobs/")?.split_once('/')?;
        let digest = format!("{algorithm}:{encoded}").parse().ok()?;
        Some((digest, *place))
    });
    index.blobs.extend(layouts);
    Ok(index)
}

fn no_tar(error: io::Error) -> io::Error {
    let text = format!("it is no tar archive, or is cut short: {error}");
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// Adds the images in the `manifest.json`, with their configs and layers.
fn add_saved(
    index: &mut Index,
    file: &mut File,
    places: &HashMap<String, Place>,
) -> io::Result<()> {
    let Some(manifest) = places.get("manifest.json") else {
        return Ok(());
    };
    let images: Vec<SavedImage> = serde_json::from_slice(&document(file, *manifest)?)?;
    if images.len() > MAX_IMAGES {
        let text = format!("{} images; the limit is {MAX_IMAGES}", images.len());
        return Err(io::Error::other(text));
    }
    for image in images {
        let Some(place) = places.get(&image.config) else {
            continue;
        };
        let bytes = document(file, *place)?;
        let config: Config = serde_json::from_slice(&bytes)?;
        let found = image.layers.iter().map(|layer| places.get(layer));
        let layers = found.zip(config.rootfs.diff_ids);
        let layers: Vec<_> = layers
            .filter_map(|(place, diff_id)| Some((*place?, diff_id)))
            .collect();
        // What is missing may be elsewhere, but a manifest needs the sizes.
        if layers.len() == image.layers.len() && layers.len() <= MAX_LAYERS {
            let (target, manifest) = manifest_of(&Digest::sha256(&bytes), place.size, &layers);
            index.manifests.insert(target.digest.clone(), manifest);
            index.saved.push(Saved {
                names: image.names,
                target,
            });
        }
        index.blobs.insert(Digest::sha256(&bytes), *place);
        let layers = layers.into_iter();
        index
            .blobs
            .extend(layers.map(|(place, diff_id)| (diff_id, place)));
    }
    Ok(())
}

/// Returns the manifest of an image, with its descriptor.
fn manifest_of(config: &Digest, size: u64, layers: &[(Place, Digest)]) -> (Descriptor, Bytes) {
    let layers = layers
        .iter()
        .map(|(place, digest)| json!({"mediaType": LAYER, "digest": digest, "size": place.size}));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type::DOCKER_MANIFEST,
        "config": {"mediaType": media_type::DOCKER_CONFIG, "digest": config, "size": size},
        "layers": layers.collect::<Vec<_>>(),
    });
    let bytes = Bytes::from(manifest.to_string());
    let target = Descriptor {
        media_type: media_type::DOCKER_MANIFEST.to_owned(),
        digest: Digest::sha256(&bytes),
        size: bytes.len() as u64,
        annotations: Default::default(),
        platform: None,
    };
    (target, bytes)
}

fn document(file: &mut File, place: Place) -> io::Result<Vec<u8>> {
    if place.size > MAX_DOCUMENT {
        let (size, limit) = (place.size, MAX_DOCUMENT);
        return Err(io::Error::other(format!(
            "a document of {size} bytes; the limit is {limit}"
        )));
    }
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(place.offset))?;
    file.take(place.size).read_to_end(&mut bytes)?;
    Ok(bytes)
}
