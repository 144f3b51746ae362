// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! A comparison of layers written as directories with the same layers written as EROFS images, for unit
//! tests and fuzzing. It needs root.

#![allow(clippy::unwrap_used, clippy::panic)]

pub(crate) mod copies;
mod layers;
pub(crate) mod tree;

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use resnap_core::Digest;
use resnap_erofs::ErofsReader;
use resnap_layer::{Layer, Limits};
use tokio_util::sync::CancellationToken;

pub use self::layers::{Item, RECORD, layers};
use crate::erofs::{self, Parent};
use crate::error::Error;
use crate::extract::Extraction;
use crate::guard::Guard;
use crate::lower::LowerDirs;
use crate::whiteout::WhiteoutMode;
use crate::xattr::XattrNamespace;

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
        let extracted = extract(&stream[..], &directory, &directories);
        let written = write(&stream[..], &directory.with_extension("erofs"), &images);
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
    let mut chain = copies::Chain::new(within);
    for items in layers {
        if !chain.add(&layers::archive(items)) {
            break;
        }
    }
    chain.check();
}

/// Writes a layer to a directory. `below` are the directories of the lower layers, the topmost first.
pub(crate) fn extract(stream: impl Read, directory: &Path, below: &[PathBuf]) -> Result<(), Error> {
    let mode = match below {
        [] => WhiteoutMode::Base,
        _ => WhiteoutMode::Upper,
    };
    let mut layer = Layer::new(stream, Limits::default());
    let mut extraction = Extraction::new(
        directory,
        mode,
        XattrNamespace::Trusted,
        CancellationToken::new(),
    )?;
    extraction.add(&mut layer)?;
    layer.finish()?;
    extraction.finish(&LowerDirs::open(below).unwrap())
}

/// Writes a layer to an image. `below` are the images of the lower layers, the topmost first.
pub(crate) fn write(stream: impl Read, path: &Path, below: &[Parent]) -> Result<Parent, Error> {
    let guard = Guard::from(CancellationToken::new());
    let mut layer = Layer::new(stream, Limits::default());
    let writer = erofs::write(path, &mut layer, below.is_empty(), &guard)?;
    layer.finish()?;
    erofs::finish(writer, below.to_vec(), &Digest::sha256(b""), &guard)?;
    Ok(ErofsReader::open(Arc::new(File::open(path).unwrap())).unwrap())
}
