// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A comparison of layers written as directories with the same layers written as EROFS images, for unit
//! tests and fuzzing. It needs root.

#![allow(clippy::unwrap_used, clippy::panic)]

pub(crate) mod copies;
mod layers;
pub(crate) mod tree;
pub(crate) mod writing;

use std::fs;
use std::path::Path;

use self::copies::Chain;
pub use self::layers::{Item, RECORD, layers};
use self::writing::{extract, of_stream, write};

/// Writes layers, the lowest first, to directories and to EROFS images. Checks that both have the same
/// content, or are refused for the same reason. Files are written to `within`, and removed.
///
/// # Panics
///
/// The results differ.
pub fn compare(layers: &[Vec<Item>], within: &Path) {
    let root = tempfile::tempdir_in(within).unwrap();
    let (mut directories, mut images) = (Vec::new(), Vec::new());
    for (number, items) in layers.iter().enumerate() {
        let stream = layers::archive(items);
        let directory = root.path().join(number.to_string());
        fs::create_dir(&directory).unwrap();
        let extracted = of_stream(&stream[..], |layer| {
            extract(layer, &directory, &directories)
        });
        let image = directory.with_extension("erofs");
        let written = of_stream(&stream[..], |layer| write(layer, &image, &images));
        let image = match (extracted, written) {
            (Ok(()), Ok(image)) => image,
            (Err(extracted), Err(written)) => {
                let message = format!("{extracted}; {written}; layer {number} of {layers:?}");
                assert_eq!(extracted.kind(), written.kind(), "{message}");
                return;
            }
            (extracted, written) => {
                let written = written.map(drop);
                panic!("{extracted:?}; {written:?}; layer {number} of {layers:?}");
            }
        };
        let (extracted, written) = (tree::on_disk(&directory), tree::in_image(&image));
        let differences = tree::differences(&extracted, &written);
        assert!(
            differences.is_empty(),
            "{differences:#?}; layer {number} of {layers:?}"
        );
        directories.insert(0, directory);
        images.insert(0, image);
    }
}

/// Writes layers to the snapshots of a chain. Checks that a copy of each is written as the layer is, to
/// directories and to EROFS images. Layers that are refused are left out with all above them.
///
/// # Panics
///
/// The results differ.
pub fn compare_copies(layers: &[Vec<Item>], within: &Path) {
    let mut chain = Chain::new(within);
    for items in layers {
        if !chain.add(&layers::archive(items)) {
            break;
        }
    }
    chain.check();
}
