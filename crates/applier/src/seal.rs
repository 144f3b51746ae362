// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Proofs for layers that are committed already, and may be mounted meanwhile.
//!
//! An image stays as it is, and gets a tree behind it. If the publisher has signed another one, an index and
//! the layer's tar, that takes its place, if it has the same files: mounts that exist keep the old one.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use resnap_core::media_type;
use resnap_core::{Descriptor, Digest, LayerToSeal, Proof, Scope, TarIndex};
use tokio::runtime::Handle;

use crate::error::{Error, IoContext as _};
use crate::guard::Guard;
use crate::pace::Pace;
use crate::pipeline::{Work, require_diff_id, run};
use crate::proof::{self, write_indexed};
use crate::shared::Shared;
use crate::sibling::{FileData, Item, snapshot_of_image, walk_image};
use crate::source;
use crate::verify::shown;

/// Bytes that are compared at once.
const PIECE: usize = 256 * 1024;

/// Gives a committed layer its proof.
pub(crate) async fn seal(
    shared: &Arc<Shared>,
    scope: &Scope,
    layer: LayerToSeal<'_>,
) -> Result<Proof, Error> {
    let LayerToSeal {
        chain,
        index,
        descriptor,
        diff_id,
        signed,
    } = layer;
    let root = shared.root(&chain.snapshotter).await?;
    let content_root = shared.content_root().await?;
    let (chain, blob, diff_id) = (chain.clone(), descriptor.clone(), diff_id.0.clone());
    let (on, scope, runtime) = (Arc::clone(shared), scope.clone(), Handle::current());
    let work = move |guard: &Guard| {
        let snapshot = snapshot_of_image(&chain, &root, index);
        let snapshot = snapshot.map_err(|fault| Error::Unproven(fault.to_string()))?;
        proof::lock(&snapshot)?;
        let signed = signed.as_deref();
        let Some((signed, index)) = signed.and_then(|root| Some((root, root.index.as_ref()?)))
        else {
            return proof::seal(&snapshot, &blob, signed, guard);
        };
        let mut options = chain.mounts.iter().flat_map(|mount| &mount.options);
        if options.any(|option| option.starts_with("device=")) {
            return Err(Error::Unproven(
                "its image is mounted as a device of another one".to_owned(),
            ));
        }
        if let Some(proof) = proof::signed_tree(&snapshot, signed, guard)? {
            return Ok(proof);
        }
        let replacement = Replacement {
            shared: &on,
            scope: &scope,
            content_root: content_root.as_deref(),
            runtime: &runtime,
            blob: &blob,
            diff_id: &diff_id,
            guard,
        };
        let write = |file: &File| replacement.write(file, index);
        let check = |old: File, new: File| require_same_files(old, new, guard);
        proof::replace(&snapshot, &blob, signed, (write, check), guard)
    };
    shared.guarded(work).await
}

/// An image that takes the place of another one.
struct Replacement<'a> {
    shared: &'a Shared,
    scope: &'a Scope,
    content_root: Option<&'a Path>,
    runtime: &'a Handle,
    blob: &'a Descriptor,
    diff_id: &'a Digest,
    guard: &'a Guard,
}

impl Replacement<'_> {
    /// Writes the index and the layer's tar, and returns their size.
    fn write(&self, file: &File, index: &TarIndex) -> Result<u64, Error> {
        let kind = &self.blob.media_type;
        let (_, compression) = media_type::layer(kind)
            .ok_or_else(|| Error::Unsupported(format!("layers of type {kind}")))?;
        let pace = Pace::new(None, self.guard.clone());
        let work = Work {
            index: 0,
            compression,
            limit: self.shared.settings.limit(self.blob),
            guard: self.guard.clone(),
            monitor: Arc::new(pace.monitor()),
        };
        let (bytes, blob) = (self.open(&index.blob)?, self.open(self.blob)?);
        let (size, applied) = run(blob, &work, |tar| {
            write_indexed(file, bytes, index, tar, self.guard)
        })?;
        require_diff_id(applied, self.diff_id)?;
        Ok(size)
    }

    fn open(&self, blob: &Descriptor) -> Result<source::Source, Error> {
        let (content, root) = (&*self.shared.content, self.content_root);
        let opened = source::open(content, root, self.scope, blob, self.guard);
        Ok(self.runtime.block_on(opened)?)
    }
}

/// Checks that two images have the same files.
fn require_same_files(old: File, new: File, guard: &Guard) -> Result<(), Error> {
    let mut old = walk_image(Arc::new(old), "of the layer", guard)?;
    let mut new = walk_image(Arc::new(new), "of the publisher", guard)?;
    loop {
        let next = (old.next(), new.next());
        let (old, new) = match next {
            (Ok(old), Ok(new)) => (old, new),
            (Err(error), _) | (_, Err(error)) => {
                return Err(io::Error::from(error)).context("compare the files of the images");
            }
        };
        let (old, new) = match (old, new) {
            (None, None) => return Ok(()),
            (Some(old), Some(new)) if is_same(&old, &new, guard)? => continue,
            (old, new) => (old, new),
        };
        let path = [old, new].into_iter().flatten().map(|item| item.entry.path);
        let path = path.min().unwrap_or_default();
        return Err(Error::Unproven(format!(
            "the image that its publisher has signed has other files: {} differs",
            shown(&path)
        )));
    }
}

fn is_same(old: &Item, new: &Item, guard: &Guard) -> Result<bool, Error> {
    match (&old.data, &new.data) {
        _ if old.entry != new.entry => Ok(false),
        (None, None) => Ok(true),
        (Some(old), Some(new)) if old.size == new.size => {
            let same = has_same_data(old, new, guard);
            same.context("compare the files of the images")
        }
        _ => Ok(false),
    }
}

/// Compares two files of the same size.
fn has_same_data(old: &FileData, new: &FileData, guard: &Guard) -> io::Result<bool> {
    let (mut one, mut other) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    while at < old.size {
        guard.step().map_err(crate::error::StreamError::Stopped)?;
        let length = usize::try_from(old.size - at).map_or(PIECE, |left| left.min(PIECE));
        let (one, other) = (one.get_mut(..length), other.get_mut(..length));
        let (one, other) = (one.unwrap_or_default(), other.unwrap_or_default());
        old.read_exact(at, one)?;
        new.read_exact(at, other)?;
        if one != other {
            return Ok(false);
        }
        at += length as u64;
    }
    Ok(true)
}
