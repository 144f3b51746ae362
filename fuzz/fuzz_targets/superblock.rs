// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Verifies arbitrary bytes as a device of dm-verity. The superblock is the last multiple of 512 bytes that starts
//! as one, and the root hash is that of its top block, so that what is below it is read. There must be no panic.
#![no_main]

use std::cell::RefCell;
use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;

use libfuzzer_sys::fuzz_target;
use resnap_verity::{RootHash, Superblock, Work, verify};
use sha2::{Digest as _, Sha256};

thread_local! {
    static FILE: RefCell<File> = RefCell::new(tempfile::tempfile().expect("a file"));
}

/// Returns the digest of what the superblock at `at` takes for the top block.
fn root_hash(bytes: &[u8], at: usize) -> Option<RootHash> {
    let encoded = bytes.get(at..)?.first_chunk()?;
    let superblock = Superblock::decode(encoded).ok()?;
    assert_eq!(superblock.encode(), *encoded);
    let block = superblock.block.bytes() as usize;
    let top = if superblock.data_blocks == 1 {
        0
    } else {
        at + block
    };
    let top = bytes.get(top..)?.get(..block)?;
    let hash = Sha256::new()
        .chain_update(superblock.salt())
        .chain_update(top);
    Some(RootHash(hash.finalize().into()))
}

fuzz_target!(|bytes: &[u8]| {
    let blocks = bytes.as_chunks::<512>().0;
    let at = blocks
        .iter()
        .rposition(|block| block.starts_with(b"verity"));
    let at = at.unwrap_or(8) * 512;
    let root = root_hash(bytes, at).unwrap_or(RootHash([0; 32]));
    FILE.with_borrow(|file| {
        file.set_len(0).expect("truncate");
        file.write_all_at(bytes, 0).expect("write");
        let check = || Ok(());
        let work = Work::new(&check).threads(NonZeroUsize::MIN);
        let _ = verify(file, at as u64, &root, .., work);
    });
});
