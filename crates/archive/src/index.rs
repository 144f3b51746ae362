// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The places of blobs in an archive.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::Path;

use resnap_core::Digest;
use serde::Deserialize;
use tar::{Archive, EntryType};

use crate::layout::{self, Wanted};

/// The limit on entries of an archive.
const MAX_ENTRIES: usize = 1 << 20;

/// The limit on images of a `docker save` archive.
const MAX_IMAGES: usize = 1024;

/// The limit on the bytes of a `manifest.json` or an image's config.
const MAX_DOCUMENT: u64 = 8 << 20;

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
}

impl Index {
    /// Returns the place of a file.
    pub(crate) fn get(&self, wanted: Wanted<'_>) -> Option<Place> {
        match wanted {
            Wanted::Index => self.layout,
            Wanted::Blob(digest) => self.blobs.get(digest).copied(),
        }
    }
}

/// An image in the `manifest.json` of `docker save`.
#[derive(Deserialize)]
struct SavedImage {
    #[serde(rename = "Config")]
    config: String,
    #[serde(rename = "Layers")]
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// Returns the blobs of an archive: those of an OCI layout in it (`blobs/ALGORITHM/ENCODED`), and the
/// uncompressed layers of `docker save`, which are named by the diff IDs of their images.
pub(crate) fn index(path: &Path) -> io::Result<Index> {
    let mut archive = Archive::new(File::open(path)?);
    let mut places = HashMap::new();
    // Raw, as extended headers would be read whole. All names that matter fit into plain ones.
    for (count, entry) in archive.entries_with_seek()?.raw(true).enumerate() {
        let entry = entry?;
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
    let layout = places.get(layout::INDEX).copied();
    let mut blobs = saved(&mut archive.into_inner(), &places)?;
    let layouts = places.iter().filter_map(|(name, place)| {
        let (algorithm, encoded) = name.strip_prefix("blobs/")?.split_once('/')?;
        let digest = format!("{algorithm}:{encoded}").parse().ok()?;
        Some((digest, *place))
    });
    blobs.extend(layouts);
    Ok(Index { layout, blobs })
}

/// Returns the layers of the images in the `manifest.json`.
fn saved(file: &mut File, places: &HashMap<String, Place>) -> io::Result<HashMap<Digest, Place>> {
    let mut index = HashMap::new();
    let Some(manifest) = places.get("manifest.json") else {
        return Ok(index);
    };
    let images: Vec<SavedImage> = serde_json::from_slice(&document(file, *manifest)?)?;
    if images.len() > MAX_IMAGES {
        let text = format!("{} images; the limit is {MAX_IMAGES}", images.len());
        return Err(io::Error::other(text));
    }
    for image in images {
        let Some(config) = places.get(&image.config) else {
            continue;
        };
        let config: Config = serde_json::from_slice(&document(file, *config)?)?;
        for (layer, diff_id) in image.layers.iter().zip(config.rootfs.diff_ids) {
            if let Some(place) = places.get(layer) {
                index.insert(diff_id, *place);
            }
        }
    }
    Ok(index)
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
