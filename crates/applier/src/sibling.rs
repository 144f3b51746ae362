// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Copies of layers from the committed snapshots of `overlayfs`, and of `erofs` if resnap wrote them.
//!
//! ```text
//! view -> snapshots/N/fs of each layer          -> a walk -> entries -> as from a blob
//!      -> snapshots/N/layer.erofs of each layer ->
//! ```
//!
//! A layer's directory has nearly all that its blob has: files with their holes, links, devices, times, the
//! attributes that are copied ([`metadata`]); its image has all of it. So one thread walks through it, and its
//! entries are written as those of a blob are, to each kind of target ([`reading`]). The diff ID cannot be
//! computed.
//!
//! Images are read without a mount. Those of `mkfs.erofs` lack some of what a layer has, so each snapshot must
//! have the label of an image that resnap wrote ([`resnap_core::labels::IMAGE_WRITER`]).
//!
//! # What a directory does not tell
//!
//! | of the blob | in the copy |
//! |---|---|
//! | the order of entries, several entries of one path | one entry a path, ordered |
//! | which name of a file is the entry, and which are hard links to it | the first in the walk |
//! | owner and mode that a hard link's own entry has | those of the file |
//! | an entry of a directory, with a time between Prepare and its last change, and mode, owner and attributes as below | none: it gets the time it has below |
//! | no entry of a directory, if resnap wrote the snapshot | an entry with the metadata below, and so of the same result; in `native` it replaces a symbolic link of a layer below |
//! | an entry of a directory that whoever wrote the snapshot skipped: containerd does so for the root | none |
//! | a whiteout, and then an entry of the same path | what the snapshot has: containerd lets the content below show again |
//! | a device 0:0 | a whiteout |
//! | a whiteout in the lowest layer | left out, as from blobs; in other layers it stays, also where nothing is below |
//! | files that whoever wrote the snapshot left out | left out |
//! | times of access | those of modification, as from blobs |
//! | holes, or zeros | whatever the file system has; holes of less than 4 KiB are zeros |
//! | attributes other than `security.capability`, `system.posix_acl_*`, `user.*` | left out |
//! | attributes, and times, that the snapshot's file system does not have | what it has instead |
//! | a default access control list on a directory with files | copied, with what the files have inherited; from blobs the layer is refused |
//!
//! Sockets are left out: no blob has them.
//!
//! # What is refused
//!
//! - Chains of other snapshotters, images of other programs, and views of other forms ([`view`]).
//! - A chain that was made without its parents: containerd 2.2.2 and later do so in CreateContainer. A
//!   directory that a layer does not state has mode 0755 and owner 0:0 then, and hides the directory below
//!   ([`stated`]).
//! - Attributes of overlayfs that change what a mount shows: `redirect`, `metacopy`, `whiteout`, an `opaque`
//!   other than `y`, all that are not known, and `user.overlay.*`.
//! - Names of files that a layer cannot have.
//!
//! Before the first layer is copied, the directories of all layers are looked at that layers below have, too: only
//! they tell that a chain was made without its parents. What else is refused is found when its layer is copied.
//!
//! # Hostile directories
//!
//! An image has named what is in the directories and images. Each directory is opened by its path below the
//! snapshot's, without following symbolic links; a file is opened if its directory lists it as regular, without
//! waiting, and looked at again. The number of files, the length of paths and of attributes are those of a
//! layer ([`resnap_layer::Limits`]), and names are in the memory of the layer. Nothing is read of another file
//! system that is mounted there.

pub(crate) use chain::{snapshot_of_image, snapshots_of_images};
pub(crate) use data::FileData;
#[cfg(any(test, feature = "testing"))]
pub(crate) use entries::Entries;
pub(crate) use item::Item;
pub(crate) use reading::CopiedLayer;
pub(crate) use walk::Walk;

mod below;
mod chain;
mod chunk;
mod data;
mod directory_walk;
mod entries;
mod fault;
mod image_walk;
mod item;
mod layers;
mod links;
mod listing;
mod metadata;
mod place;
mod position;
mod reading;
mod stated;
mod view;
mod walk;
mod window;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use resnap_core::{ChainView, Inspection, LayerCopy};

use self::chain::Layers;
use self::directory_walk::DirectoryWalk;
use self::image_walk::ImageWalk;
use self::layers::LayerImage;
use crate::copy_fault::CopyFault;
use crate::error::{Error, IoContext as _, StreamError};
use crate::guard::Guard;
use crate::shared::Shared;
use crate::user_namespace::is_user_namespace;

/// Returns whether layers of a snapshotter can be copied.
pub(crate) fn can_copy_from(snapshotter: &str) -> bool {
    chain::form(snapshotter).is_ok()
}

/// Returns the directory of a chain's snapshotter.
pub(crate) async fn root(shared: &Shared, snapshotter: &str) -> Result<PathBuf, Error> {
    chain::form(snapshotter)?;
    let root = shared.root(snapshotter).await;
    root.map_err(|error| match error {
        Error::Unsupported(reason) => CopyFault::Chain(reason).into(),
        error => error,
    })
}

/// Opens a layer. `root` is the directory of the chain's snapshotter.
pub(crate) fn open(
    copy: &LayerCopy,
    root: &Path,
    blob_size: u64,
    guard: &Guard,
) -> Result<CopiedLayer, Error> {
    let chain = open_chain(&copy.chain, root, chain::open)?;
    let walk = Walk::new(&chain, copy.index, guard.clone())?;
    Ok(CopiedLayer::new(walk, blob_size))
}

/// Checks that the layers of a chain can be copied.
pub(crate) async fn inspect(
    shared: &Shared,
    chain: &ChainView,
    layers: Range<usize>,
    inspection: Inspection,
) -> Result<(), Error> {
    let root = root(shared, &chain.snapshotter).await?;
    let chain = chain.clone();
    let inspect = match inspection {
        Inspection::Full => inspect_all,
        _ => inspect_parents,
    };
    let inspect = move |guard: &Guard| inspect(&chain, root, layers, guard);
    shared.guarded(inspect).await
}

/// Looks at the directories of layers that layers below have, too.
fn inspect_parents(
    chain: &ChainView,
    root: PathBuf,
    layers: Range<usize>,
    guard: &Guard,
) -> Result<(), Error> {
    let chain = open_chain(chain, &root, chain::open)?;
    // Whoever wrote an image had its parents.
    let Layers::Directories(chain) = chain else {
        return Ok(());
    };
    for index in layers {
        let walk = DirectoryWalk::new(&chain, index, guard.clone())?;
        let inspected = walk.inspect().map_err(std::io::Error::from);
        inspected.context("read the snapshot")?;
    }
    Ok(())
}

/// Walks through a committed layer as it is, whoever wrote it. `root` is the directory of the chain's
/// snapshotter.
pub(crate) fn walk_committed(
    chain: &ChainView,
    index: usize,
    root: &Path,
    guard: &Guard,
) -> Result<Walk, CopyFault> {
    let chain = open_chain(chain, root, chain::open_any)?;
    Ok(Walk::new(&chain, index, guard.clone())?.plain())
}

/// Walks through an image that is in no snapshot, as it is.
pub(crate) fn walk_image(file: Arc<File>, name: &str, guard: &Guard) -> Result<Walk, CopyFault> {
    let name = name.to_owned();
    let walk = ImageWalk::new(&[LayerImage { file, name }], 0, guard.clone())?;
    Ok(Walk::Image(Box::new(walk)).plain())
}

/// Looks at all of layers, except for the data of files.
fn inspect_all(
    chain: &ChainView,
    root: PathBuf,
    layers: Range<usize>,
    guard: &Guard,
) -> Result<(), Error> {
    let chain = open_chain(chain, &root, chain::open)?;
    for index in layers {
        let mut walk = Walk::new(&chain, index, guard.clone())?;
        let mut inspect = || {
            while walk.next()?.is_some() {}
            Ok(())
        };
        let inspected = inspect().map_err(|error: StreamError| std::io::Error::from(error));
        inspected.context("read the snapshot")?;
    }
    Ok(())
}

fn open_chain(
    chain: &ChainView,
    root: &Path,
    open: fn(&ChainView, &Path) -> Result<Layers, CopyFault>,
) -> Result<Layers, CopyFault> {
    match is_user_namespace() {
        true => Err(CopyFault::UserNamespace),
        false => open(chain, root),
    }
}
