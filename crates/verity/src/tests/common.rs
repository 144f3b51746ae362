// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Devices for tests, and the format written down once more.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use sha2::{Digest as _, Sha256};

use crate::{Appended, BlockSize, BoxedError, Leaves, Work, append};

/// A file that `testdata/make.sh` made.
macro_rules! made {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/", $name))
    };
}
pub(super) use made;

pub(super) const UUID: [u8; 16] = *b"0123456789abcdef";

pub(super) const SIZES: [BlockSize; 2] = [BlockSize::B512, BlockSize::B4096];

/// A check that lets everything pass.
pub(super) fn go_on() -> Result<(), BoxedError> {
    Ok(())
}

pub(super) fn work() -> Work<'static> {
    Work::new(&go_on)
}

/// Returns different bytes for each place.
pub(super) fn noise(count: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

pub(super) fn file(bytes: &[u8]) -> File {
    let file = tempfile::tempfile().expect("a file");
    file.write_all_at(bytes, 0).expect("write");
    file
}

pub(super) fn contents(file: &File) -> Vec<u8> {
    let length = file.metadata().expect("metadata").len();
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0).expect("read");
    bytes
}

/// Returns a file with a device of `data`.
pub(super) fn device(data: &[u8], block: BlockSize, leaves: Option<&Leaves>) -> (File, Appended) {
    let file = file(data);
    let appended = append(&file, data.len() as u64, block, UUID, leaves, work());
    (file, appended.expect("a device"))
}

/// Returns the root hash and the file of a device as the format describes them.
pub(super) fn described(data: &[u8], block: usize) -> ([u8; 32], Vec<u8>) {
    let (root, tree) = tree(data, block);
    let mut file = data.to_vec();
    file.resize(data.len().next_multiple_of(4096), 0);
    file.extend_from_slice(b"verity\0\0\x01\0\0\0\x01\0\0\0");
    file.extend_from_slice(&UUID);
    file.extend_from_slice(b"sha256");
    file.resize(file.len() + 26, 0);
    file.extend_from_slice(&(block as u32).to_le_bytes());
    file.extend_from_slice(&(block as u32).to_le_bytes());
    file.extend_from_slice(&((data.len() / block) as u64).to_le_bytes());
    file.extend_from_slice(&[32, 0]);
    file.resize(file.len() + 512 - 82 + block - 512, 0);
    file.extend_from_slice(&tree);
    (root, file)
}

/// Returns the digest of the blocks and the tree that leads to it.
fn tree(blocks: &[u8], block: usize) -> ([u8; 32], Vec<u8>) {
    let digest = |block| {
        let hash = Sha256::new().chain_update([0; 32]).chain_update(block);
        <[u8; 32]>::from(hash.finalize())
    };
    if blocks.len() == block {
        return (digest(blocks), Vec::new());
    }
    let mut level: Vec<u8> = blocks.chunks(block).flat_map(digest).collect();
    level.resize(level.len().next_multiple_of(block), 0);
    let (root, mut above) = tree(&level, block);
    above.extend_from_slice(&level);
    (root, above)
}

/// Returns numbers of blocks at which the tree gets a block or a level more, up to devices of `limit` bytes.
pub(super) fn boundaries(block: BlockSize, limit: usize) -> Vec<usize> {
    let digests = block.digests() as usize;
    let mut found = vec![1, 2, 3];
    let mut boundary = digests;
    while boundary * block.len() <= limit {
        found.extend([boundary - 1, boundary, boundary + 1]);
        boundary *= digests;
    }
    found
}
