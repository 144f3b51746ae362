// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Chains whose layers can be copied, by the mounts of a view.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use resnap_core::{ChainView, SnapshotKind, labels};

use super::layers::{LayerDirectory, LayerImage, Roots};
use super::view;
use crate::copy_fault::{CopyFault, refuse};
use crate::erofs;

/// The layers of a chain, the base first.
#[derive(Debug)]
pub(super) enum Layers {
    Directories(Vec<LayerDirectory>),
    Images(Vec<LayerImage>),
}

/// The form of the layers of a snapshotter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Directories,
    Images,
}

/// Returns the form of the layers of a snapshotter that can be copied.
pub(super) fn form(snapshotter: &str) -> Result<Form, CopyFault> {
    match snapshotter {
        "overlayfs" => Ok(Form::Directories),
        erofs::SNAPSHOTTER => Ok(Form::Images),
        other => Err(CopyFault::Snapshotter(other.to_owned())),
    }
}

/// Opens the directories of the snapshots of a chain of images, the base first, whoever wrote them. `root`
/// is the directory of the snapshotter.
pub(crate) fn snapshots_of_images(
    chain: &ChainView,
    root: &Path,
) -> Result<Vec<OwnedFd>, CopyFault> {
    let paths = images(chain)?;
    let roots = Roots::open(root)?;
    paths.iter().map(|path| roots.snapshot_of(path)).collect()
}

/// Opens the directory of the snapshot at `index`, as [`snapshots_of_images`] does with all.
pub(crate) fn snapshot_of_image(
    chain: &ChainView,
    root: &Path,
    index: usize,
) -> Result<OwnedFd, CopyFault> {
    let paths = images(chain)?;
    let path = paths.get(index).ok_or(CopyFault::NoLayer(index))?;
    Roots::open(root)?.snapshot_of(path)
}

/// Returns the paths of a chain's images, the base first.
fn images(chain: &ChainView) -> Result<Vec<PathBuf>, CopyFault> {
    let paths = view::images(&chain.mounts)?;
    require_count(&paths, chain)?;
    Ok(paths)
}

fn require_count(paths: &[PathBuf], chain: &ChainView) -> Result<(), CopyFault> {
    let (count, expected) = (paths.len(), chain.snapshots.len());
    match count == expected {
        true => Ok(()),
        false => refuse(format!(
            "the view has {count} layers, and the chain {expected} snapshots"
        )),
    }
}

/// Opens the layers of a chain, if resnap wrote their images. `root` is the directory of the snapshotter.
pub(super) fn open(chain: &ChainView, root: &Path) -> Result<Layers, CopyFault> {
    let layers = open_any(chain, root)?;
    if matches!(layers, Layers::Images(_)) {
        require_own_images(chain)?;
    }
    Ok(layers)
}

/// Opens the layers of a chain, whoever wrote them. `root` is the directory of the snapshotter.
pub(super) fn open_any(chain: &ChainView, root: &Path) -> Result<Layers, CopyFault> {
    let form = form(&chain.snapshotter)?;
    let mut paths = match form {
        Form::Directories => view::directories(&chain.mounts)?,
        Form::Images => view::images(&chain.mounts)?,
    };
    require_count(&paths, chain)?;
    check_snapshots(chain)?;
    let roots = Roots::open(root)?;
    let layers = paths.iter().zip(&chain.snapshots);
    let layers = layers.map(|(path, snapshot)| (&**path, snapshot.key.as_str()));
    let layers = match form {
        Form::Directories => {
            let opened = layers.map(|(path, name)| roots.directory(path, name));
            Layers::Directories(opened.collect::<Result<_, _>>()?)
        }
        Form::Images => {
            let opened = layers.map(|(path, name)| roots.image(path, name));
            Layers::Images(opened.collect::<Result<_, _>>()?)
        }
    };
    paths.sort_unstable();
    if paths.array_windows().any(|[one, other]| one == other) {
        return refuse("the view has a layer twice");
    }
    Ok(layers)
}

/// Checks that resnap wrote the images of snapshots.
fn require_own_images(chain: &ChainView) -> Result<(), CopyFault> {
    let mut snapshots = chain.snapshots.iter().enumerate();
    let foreign =
        snapshots.find(|(_, snapshot)| !snapshot.labels.contains_key(labels::IMAGE_WRITER));
    match foreign {
        None => Ok(()),
        Some((index, snapshot)) => Err(CopyFault::Foreign {
            index,
            snapshot: snapshot.key.to_string(),
        }),
    }
}

/// Checks that snapshots are committed and on each other.
fn check_snapshots(chain: &ChainView) -> Result<(), CopyFault> {
    let mut parent = None;
    for snapshot in &chain.snapshots {
        let key = &snapshot.key;
        if snapshot.kind != SnapshotKind::Committed {
            return refuse(format!("the snapshot {key} is not committed"));
        }
        if snapshot.parent.as_ref() != parent {
            return refuse(format!("the snapshot {key} has another parent"));
        }
        parent = Some(key);
    }
    Ok(())
}
