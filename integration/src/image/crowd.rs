// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Many small images in one archive, as a node has them that runs for long.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::archive;
use super::blobs::Blobs;
use super::builder::{ImageBuilder, Index};
use super::built::Built;
use super::layer::Layer;
use super::tar_entry::Entry;

/// The layers of each image of a [`crowd`]; they share all but the last.
pub const CROWD_LAYERS: usize = 9;

/// Writes the images of these numbers, with an index each. They also have the names that the CRI plugin
/// gives them: their IDs. containerd refuses an archive of more than some 400.
pub fn crowd(numbers: Range<usize>, path: &Path) -> Result<Vec<Built>> {
    let shared: Vec<Layer> = (1..CROWD_LAYERS)
        .map(|number| {
            let dir = format!("shared-{number}");
            let file = format!("{dir}/file");
            Layer::of(&[Entry::dir(&dir), Entry::file(file, dir.as_str())])
        })
        .collect::<Result<_>>()?;
    let mut blobs = Blobs::default();
    let mut images: Vec<(Value, Built)> = Vec::with_capacity(numbers.len());
    for number in numbers {
        let own = Layer::of(&[Entry::file("own", format!("image {number}\n"))])?;
        let reference = format!("docker.io/crowd/image-{number:04}:1");
        let image = ImageBuilder::new(&reference)
            .layers(shared.iter().cloned().chain([own]))
            .cmd(["/own"]);
        images.push(
            Index::new(&reference)
                .image(image)
                .store(&mut blobs, path)?,
        );
    }
    let names = images
        .iter()
        .flat_map(|(target, built)| [&*built.reference, &*built.config].map(|name| (name, target)));
    archive::write(path, &names.collect::<Vec<_>>(), &blobs)?;
    Ok(images.into_iter().map(|(_, built)| built).collect())
}
