// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One layer, written ahead or in place.

use std::fs::{DirBuilder, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use resnap_core::{Applied, Digest};
use resnap_erofs::Writer;
use resnap_layer::{Layer, Limits};
use rustix::fs::{CWD, renameat, syncfs};

use crate::erofs::{self, Parents};
use crate::error::{Doing as _, Error};
use crate::extract::Extraction;
use crate::guard::Guard;
use crate::lower::Lower;
use crate::pipeline::{Work, run};
use crate::remove::remove;
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
    Image(Box<Writer<File>>, Guard),
    NoLower,
}

/// The place a layer is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// In a directory of our own: nothing is there without success.
    Ahead,
    /// In its snapshot.
    InPlace,
}

/// Removes what was written of a layer ahead of its turn, or of an image.
fn discard(path: &Path) {
    let removed = match (path.parent().map(File::open), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => remove(&parent.into(), name.as_bytes(), &|| Ok(())),
        (Some(Err(error)), _) => Err(error),
        _ => Ok(()),
    };
    if let Err(error) = removed {
        tracing::warn!(?path, %error, "cannot be removed yet");
    }
}

/// Writes a layer to `path`: an empty directory or, for a [`Shape::Tree`] that is written ahead, none
/// yet; a file to be made otherwise.
pub(crate) fn build(
    source: Source,
    work: &Work,
    shape: Shape,
    path: PathBuf,
    place: Placement,
    user: bool,
) -> Result<Built, Error> {
    let ran = run(source, work, |stream| {
        let layer = |stream| Layer::new(stream, Limits::default());
        Ok(match shape {
            Shape::Blob => {
                erofs::copy(&path, stream)?;
                Rest::NoLower
            }
            Shape::Image { is_lowest } => {
                let mut layer = layer(stream);
                let writer = erofs::write(&path, &mut layer, is_lowest, &work.guard)?;
                layer.finish()?;
                Rest::Image(Box::new(writer), work.guard.clone())
            }
            Shape::Tree(style) => {
                if !path.exists() {
                    let made = DirBuilder::new().mode(0o755).create(&path);
                    made.when("make the directory to write to")?;
                }
                let mut extraction = Extraction::new(&path, style, user, work.guard.clone())?;
                let mut layer = layer(stream);
                extraction.add(&mut layer)?;
                layer.finish()?;
                Rest::Tree(Box::new(extraction))
            }
        })
    });
    let (rest, applied) = ran.map_err(|error| {
        if place == Placement::Ahead || !matches!(shape, Shape::Tree(_)) {
            discard(&path);
        }
        error.settled()
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
        known: &Parents,
    ) -> Result<Applied, Error> {
        let Self {
            applied,
            path,
            rest,
        } = self;
        complete(rest, &path, target, blob, known).map_err(Error::settled)?;
        let to = target.path();
        if path != to {
            renameat(CWD, &path, CWD, &to).when("move the layer to its snapshot")?;
        }
        if sync {
            let snapshot = File::open(target.snapshot()).when("open the snapshot")?;
            syncfs(&snapshot).when("sync the snapshot's file system")?;
        }
        Ok(applied)
    }
}

/// Does what the layers below decide.
fn complete(
    rest: Rest,
    path: &Path,
    target: &Target,
    blob: &Digest,
    known: &Parents,
) -> Result<(), Error> {
    match (rest, target) {
        (Rest::Tree(extraction), Target::Upper { lower, .. }) => {
            extraction.finish(&Lower::open(lower).when("open the layers below")?)
        }
        (Rest::Tree(extraction), _) => extraction.finish(&Lower::default()),
        (Rest::Image(writer, guard), target) => {
            let parents = match target {
                Target::Image { parents, .. } => known.open(parents),
                _ => Ok(Vec::new()),
            };
            let finished =
                parents.and_then(|parents| erofs::finish(*writer, parents, blob, &guard));
            finished.inspect_err(|_| discard(path))
        }
        (Rest::NoLower, _) => Ok(()),
    }
}
