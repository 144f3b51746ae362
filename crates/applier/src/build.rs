// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One layer, written ahead or in place.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;

use resnap_core::{Applied, Digest};
use resnap_erofs::Writer;
use resnap_layer::{Layer, Limits};
use rustix::fs::{CWD, renameat, syncfs};

use crate::erofs;
use crate::error::{Doing as _, Error};
use crate::extract::Extraction;
use crate::lower::Lower;
use crate::pipeline::{Stop, Work, run};
use crate::source::Source;
use crate::target::{Shape, Target};

/// A layer whose data is written.
pub(crate) struct Built {
    pub(crate) applied: Applied,
    path: PathBuf,
    rest: Rest,
}

/// What is left to be done once the layers below are there.
enum Rest {
    Tree(Box<Extraction>),
    Image(Box<Writer<File>>, Stop),
    Nothing,
}

/// Writes a layer to `path`: an empty directory or, for a [`Shape::Tree`] that is written ahead, none
/// yet; a file to be made otherwise.
pub(crate) fn build(
    source: Source,
    work: &Work,
    shape: Shape,
    path: PathBuf,
    user: bool,
) -> Result<Built, Error> {
    let (rest, applied) = run(source, work, |stream| {
        let layer = |stream| Layer::new(stream, Limits::default());
        Ok(match shape {
            Shape::Blob => {
                erofs::copy(&path, stream)?;
                Rest::Nothing
            }
            Shape::Image => {
                let mut layer = layer(stream);
                let writer = erofs::write(&path, &mut layer)?;
                layer.finish()?;
                Rest::Image(Box::new(writer), work.stop.clone())
            }
            Shape::Tree(style) => {
                if !path.exists() {
                    let made = DirBuilder::new().mode(0o755).create(&path);
                    made.when("make the directory to write to")?;
                }
                let mut extraction = Extraction::new(&path, style, user, work.stop.clone())?;
                let mut layer = layer(stream);
                extraction.add(&mut layer)?;
                layer.finish()?;
                Rest::Tree(Box::new(extraction))
            }
        })
    })?;
    Ok(Built {
        applied,
        path,
        rest,
    })
}

impl Built {
    /// Does what is left, and moves the layer to its place if it is not there.
    pub(crate) fn place(
        self,
        target: &Target,
        blob: &Digest,
        sync: bool,
    ) -> Result<Applied, Error> {
        match (self.rest, target) {
            (Rest::Tree(extraction), Target::Upper { lower, .. }) => {
                extraction.finish(&Lower::open(lower).when("open the layers below")?)?;
            }
            (Rest::Tree(extraction), _) => extraction.finish(&Lower::default())?,
            (Rest::Image(writer, stop), Target::Image { parents, .. }) => {
                erofs::finish(*writer, &self.path, parents, blob, &stop)?;
            }
            (Rest::Image(writer, stop), _) => {
                erofs::finish(*writer, &self.path, &[], blob, &stop)?;
            }
            (Rest::Nothing, _) => {}
        }
        let to = target.path();
        if self.path != to {
            renameat(CWD, &self.path, CWD, &to).when("move the layer to its snapshot")?;
        }
        if sync {
            let snapshot = File::open(target.snapshot()).when("open the snapshot")?;
            syncfs(&snapshot).when("sync the snapshot's file system")?;
        }
        Ok(self.applied)
    }
}
