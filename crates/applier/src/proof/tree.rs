// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The dm-verity trees of images.

use std::fs::File;

use resnap_core::Digest;
use resnap_erofs::{ErofsReader, ReadAt};
use resnap_verity::{BlockSize, Leaves, Sidecar, Work};

use crate::error::{Error, IoContext as _};
use crate::guard::Guard;

/// Returns the UUID of the dm-verity tree of a layer, by the digest of its blob. A layer gets the same tree on every
/// node.
pub fn tree_uuid(blob: &Digest) -> [u8; 16] {
    let name = format!("dm-verity:blobs/{blob}");
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, name.as_bytes()).into_bytes()
}

/// Returns the size of the blocks of an image's tree. A device has no smaller blocks than its tree, and an
/// image must not have smaller ones than its device.
pub(crate) fn tree_block<R: ReadAt>(image: &ErofsReader<R>) -> BlockSize {
    match image.block_size() < BlockSize::B4096.bytes() {
        true => BlockSize::B512,
        false => BlockSize::B4096,
    }
}

/// Writes the tree of an image behind its first `size` bytes, and flushes the file to disk.
pub(crate) fn append(
    file: &File,
    (size, block): (u64, BlockSize),
    leaves: Option<&Leaves>,
    blob: &Digest,
    guard: &Guard,
) -> Result<Sidecar, Error> {
    let size = size.next_multiple_of(block.bytes());
    // Removes what is behind the image, and fills its last block with zeros.
    for length in [
        file.metadata()
            .context("look at the image")?
            .len()
            .min(size),
        size,
    ] {
        file.set_len(length).context("resize the image")?;
    }
    let check = || Ok(guard.step()?);
    let appended = resnap_verity::append(
        file,
        size,
        block,
        tree_uuid(blob),
        leaves,
        Work::new(&check),
    )?;
    file.sync_all().context("flush the image")?;
    Ok(Sidecar::new(appended.root_hash, appended.hash_offset))
}
