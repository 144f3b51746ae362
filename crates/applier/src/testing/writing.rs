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

use crate::erofs::{self, Parent};
use crate::error::Error;
use crate::extract::Extraction;
use crate::guard::Guard;
use crate::lower::LowerDirs;
use crate::whiteout::WhiteoutMode;
use crate::xattr::XattrNamespace;

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
