// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The blocks of trees.

use resnap_erofs::{ErofsReader, ReadAt};
use resnap_verity::BlockSize;

/// Returns the size of the blocks of an image's tree. A device has no smaller blocks than its tree, and an
/// image must not have smaller ones than its device.
pub(crate) fn tree_block<R: ReadAt>(image: &ErofsReader<R>) -> BlockSize {
    match image.block_size() < BlockSize::B4096.bytes() {
        true => BlockSize::B512,
        false => BlockSize::B4096,
    }
}
