// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Committed layers, compared with what proves them.
//!
//! ```text
//! snapshots/N/layer.erofs with a sidecar -> its dm-verity tree
//! any other image or directory           -> a walk ──┐
//! blob -> diff ID, an image without data -> a walk ──┴─> the differences
//! ```
//!
//! The blob is read once, and nothing of its data is kept: the writer of images gets a target that keeps digests
//! of blocks instead of data ([`skeleton`]), 32 bytes for 4096, and the rest of the image. All of it is in the
//! memory of a layer. The image's tree is then compared, in one pass, with that of the committed layer.
//!
//! # What is no difference
//!
//! - Times. containerd gives some directories the time of unpacking.
//! - The metadata of the root, and of directories that the layer does not state: whoever writes the layer takes
//!   them from below, or makes them up.
//! - What containerd's differ makes of unusual layers: attributes of all entries of one directory, and a
//!   directory that is not opaque where the layer has a whiteout of the same path.
//! - The mode of symbolic links, which Linux ignores.
//! - Attributes that a copy would leave out ([`crate::sibling`]): most belong to the host.
//! - Sockets, which no layer has. A walk leaves them out.

pub(crate) use item::shown;

mod blob;
mod content;
mod item;
mod merge;
mod observed;
mod order;
mod skeleton;

use std::path::Path;
use std::sync::Arc;

use resnap_core::{Integrity, LayerToVerify, Scope, Verified, labels};
use tokio::runtime::Handle;

use self::blob::BlobToCompare;
use crate::erofs;
use crate::error::Error;
use crate::guard::Guard;
use crate::pace::Pace;
use crate::proof::{self, Expected};
use crate::shared::Shared;
use crate::sibling::{self, snapshot_of_image};
use crate::source;

/// Compares a committed layer with its tree if it has one, or else with its blob.
pub(crate) async fn verify(
    shared: &Arc<Shared>,
    scope: &Scope,
    layer: &LayerToVerify,
) -> Result<Verified, Error> {
    let snapshotter = &layer.chain.snapshotter;
    if !sibling::can_copy_from(snapshotter) {
        let text =
            format!("the files of {snapshotter} are not known, only those of overlayfs and erofs");
        return Err(Error::Unverifiable(text));
    }
    let (root, content_root) = tokio::try_join!(shared.root(snapshotter), shared.content_root())?;
    let signed = layer.integrity == Integrity::Signed;
    let trust = signed.then(|| shared.trust().map(Arc::clone)).transpose()?;
    let (shared, scope, layer) = (Arc::clone(shared), scope.clone(), layer.clone());
    let runtime = Handle::current();
    let on = Arc::clone(&shared);
    let compare = move |guard: &Guard| {
        let pace = Pace::new(layer.rate, guard.clone());
        let is_image = layer.chain.snapshotter == erofs::SNAPSHOTTER;
        if is_image && let Some(verified) = by_tree(&layer, &root, trust.as_deref(), &pace)? {
            return Ok(verified);
        }
        let (content, blob) = (&*shared.content, &layer.descriptor);
        let opened = source::open(content, content_root.as_deref(), &scope, blob, guard);
        let source = runtime
            .block_on(opened)
            .map_err(|error| match error.is_not_found() {
                true => Error::NoEvidence(error),
                false => error.into(),
            })?;
        BlobToCompare {
            layer: &layer,
            limit: shared.settings.limit(blob),
            root: &root,
            pace: &pace,
        }
        .compare(source)
    };
    on.guarded(compare).await
}

/// Compares an image with its tree. Returns `None` if it has none.
fn by_tree(
    layer: &LayerToVerify,
    root: &Path,
    trust: Option<&resnap_verity::Trust>,
    pace: &Pace,
) -> Result<Option<Verified>, Error> {
    let snapshot = snapshot_of_image(&layer.chain, root, layer.index)?;
    let info = layer.chain.snapshots.get(layer.index);
    let root_hash = info.and_then(|info| info.labels.get(labels::ROOT_HASH));
    let expected = Expected {
        root_hash: root_hash.map(String::as_str),
        signers: trust,
    };
    proof::compare(&snapshot, expected, pace)
}
