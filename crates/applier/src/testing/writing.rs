// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Writing of single layers.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use resnap_core::Digest;
use resnap_erofs::ErofsReader;
use resnap_layer::{Layer, Limits};
use tokio_util::sync::CancellationToken;

use crate::erofs::{self, ImageForm, Parent};
use crate::error::Error;
use crate::extract::Extraction;
use crate::guard::Guard;
use crate::layer_source::LayerSource;
use crate::lower::LowerDirs;
use crate::tar_file::TarFile;
use crate::whiteout::WhiteoutMode;
use crate::xattr::XattrNamespace;

/// Reads a layer from its stream, to the end.
pub(crate) fn of_stream<R: Read, T>(
    stream: R,
    consume: impl FnOnce(&mut Layer<R>) -> Result<T, Error>,
) -> Result<T, Error> {
    let mut layer = Layer::new(stream, Limits::default());
    let done = consume(&mut layer)?;
    layer.finish()?;
    Ok(done)
}

/// Writes a layer to a directory. `below` are the directories of the lower layers, the topmost first.
pub(crate) fn extract(
    layer: &mut impl LayerSource,
    directory: &Path,
    below: &[PathBuf],
) -> Result<(), Error> {
    let mode = match below {
        [] => WhiteoutMode::Base,
        _ => WhiteoutMode::Upper,
    };
    let mut extraction = Extraction::new(
        directory,
        mode,
        XattrNamespace::Trusted,
        CancellationToken::new(),
    )?;
    extraction.add(layer)?;
    extraction.finish(&LowerDirs::open(below).unwrap())
}

/// Writes a layer to an image. `below` are the images of the lower layers, the topmost first.
pub(crate) fn write(
    layer: &mut impl LayerSource,
    path: &Path,
    below: &[Parent],
) -> Result<Parent, Error> {
    let guard = Guard::from(CancellationToken::new());
    let writer = erofs::write(path, layer, form(below, false), &guard)?;
    erofs::finish(writer, below.to_vec(), &Digest::sha256(b""), &guard)?;
    Ok(open(path))
}

/// Writes a layer as an index before its tar.
pub(crate) fn write_index(stream: &[u8], path: &Path, below: &[Parent]) -> Result<Parent, Error> {
    let guard = Guard::from(CancellationToken::new());
    let tar = TarFile::new(path)?;
    let writer = of_stream(tar.tee(stream)?, |layer| {
        erofs::write(path, layer, form(below, true), &guard)
    })?;
    let (index, size) = erofs::finish(writer, below.to_vec(), &Digest::sha256(b""), &guard)?;
    tar.append_to(&index.into_parts().0, size, &guard)?;
    Ok(open(path))
}

fn form(below: &[Parent], is_index: bool) -> ImageForm {
    ImageForm {
        is_lowest: below.is_empty(),
        has_tree: false,
        is_index,
    }
}

fn open(path: &Path) -> Parent {
    ErofsReader::open(Arc::new(File::open(path).unwrap())).unwrap()
}
