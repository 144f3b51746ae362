// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Devices that are verified.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;

use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

use super::common::{SIZES, UUID, boundaries, contents, device, noise, work};
use crate::{Appended, BlockSize, Error, Place, Superblock, SuperblockError, verify};

fn whole(file: &File, appended: &Appended) -> Result<Superblock, Error> {
    verify(file, appended.hash_offset, &appended.root_hash, .., work())
}

/// Changes a byte for the time of a call.
fn flipped<T>(file: &File, at: u64, call: impl FnOnce() -> T) -> T {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x40], at).expect("write");
    let result = call();
    file.write_all_at(&byte, at).expect("write");
    result
}

#[test]
fn devices_are_accepted_at_every_boundary() {
    for block in SIZES {
        for blocks in boundaries(block, 4 << 20) {
            let (file, appended) = device(&noise(blocks * block.len()), block, None);
            let superblock = whole(&file, &appended).expect("accepted");
            assert_eq!(superblock, Superblock::new(block, blocks as u64, UUID));
        }
    }
}

/// Says what must be found if the byte at `at` of a device is another one.
fn expected(appended: &Appended, block: BlockSize, blocks: u64, at: u64) -> String {
    let bytes = block.bytes();
    let data = blocks * bytes;
    let in_superblock = at.wrapping_sub(appended.hash_offset);
    match at {
        _ if at < data => format!("data block {}", at / bytes),
        _ if at < appended.hash_offset => format!("padding {at}"),
        _ if in_superblock < 512 => match in_superblock {
            16..32 => "uuid".to_owned(),
            // The salt is hashed before every block.
            88..120 => "top".to_owned(),
            _ => "superblock".to_owned(),
        },
        _ if in_superblock < bytes => format!("padding {at}"),
        _ => {
            let mut levels = Vec::new();
            let mut count = blocks;
            while count > 1 {
                count = count.div_ceil(bytes / 32);
                levels.push(count);
            }
            let mut start = appended.hash_offset + bytes;
            for (level, count) in levels.iter().enumerate().rev() {
                if at < start + count * bytes {
                    return format!("hash block {} of level {level}", (at - start) / bytes);
                }
                start += count * bytes;
            }
            unreachable!("{at} is behind the device")
        }
    }
}

fn assert_found(file: &File, appended: &Appended, block: BlockSize, blocks: u64, at: u64) {
    let expected = expected(appended, block, blocks, at);
    let result = flipped(file, at, || whole(file, appended));
    let found = match &result {
        Ok(superblock) if superblock.uuid != UUID => "uuid".to_owned(),
        Err(Error::Corrupt(place)) => place.to_string(),
        Err(Error::Padding(at)) => format!("padding {at}"),
        Err(Error::Superblock { .. }) => "superblock".to_owned(),
        other => panic!("byte {at} of {blocks} blocks of {block:?}: {other:?}"),
    };
    let top = match Superblock::new(block, blocks, UUID).data_blocks {
        1 => "data block 0".to_owned(),
        _ => {
            let mut level = 0;
            while (blocks - 1) / (block.bytes() / 32_u64).pow(level + 1) > 0 {
                level += 1;
            }
            format!("hash block 0 of level {level}")
        }
    };
    let expected = if expected == "top" { top } else { expected };
    // A salt of another size is as a salt of other bytes.
    let is_size = (80..82).contains(&at.wrapping_sub(appended.hash_offset));
    assert!(
        found == expected || is_size,
        "byte {at} of {blocks} blocks of {block:?}: {found}, not {expected}"
    );
}

#[test]
fn one_changed_byte_anywhere_is_found() {
    for block in SIZES {
        // A single block; two levels that are full; one block more.
        let digests = block.digests();
        for blocks in [1, digests, digests + 1] {
            let (file, appended) = device(&noise((blocks * block.bytes()) as usize), block, None);
            let superblock = appended.hash_offset..appended.hash_offset + 512;
            for at in superblock.chain((0..appended.size).step_by(block.len() / 3)) {
                assert_found(&file, &appended, block, blocks, at);
            }
        }
    }
}

proptest! {
    #[test]
    fn a_changed_byte_of_a_large_device_is_found(at in any::<u64>()) {
        let block = BlockSize::B512;
        let blocks = 300;
        let (file, appended) = device(&noise(blocks * block.len()), block, None);
        assert_found(&file, &appended, block, blocks as u64, at % appended.size);
    }

    #[test]
    fn ranges_are_verified_and_no_more(start in 0..160_000_u64, length in 0..5000_u64, at in 0..153_600_u64) {
        let block = BlockSize::B512;
        let (file, appended) = device(&noise(300 * block.len()), block, None);
        let verify = || verify(&file, appended.hash_offset, &appended.root_hash, start..start + length, work());
        prop_assert!(verify().is_ok());
        let result = flipped(&file, at, verify);
        let within = at / 512 * 512 < start + length && start < (at / 512 + 1) * 512;
        // An empty range has no blocks.
        prop_assert_eq!(result.is_err(), within && length > 0);
    }
}

#[test]
fn the_first_of_several_is_named() {
    let (file, appended) = device(&noise(16 << 20), BlockSize::B4096, None);
    for block in [4000, 2500, 700, 699] {
        file.write_all_at(b"changed", block * 4096).expect("write");
        for threads in [1, 4] {
            let work = work().threads(NonZeroUsize::new(threads).expect("threads"));
            let root = &appended.root_hash;
            let error = verify(&file, appended.hash_offset, root, .., work).expect_err("changed");
            assert!(
                matches!(error, Error::Corrupt(Place::Data(found)) if found == block),
                "{error:?}"
            );
        }
    }
    assert_eq!(
        whole(&file, &appended).expect_err("changed").to_string(),
        "data block 699 does not match the root hash"
    );
}

/// The root hash does not cover the number of data blocks: with fewer, the kernel's device would end early.
#[test]
fn fewer_data_blocks_are_found() {
    for block in SIZES {
        let (file, appended) = device(&noise(9 * 8 * block.len()), block, None);
        let mut bytes = contents(&file);
        // The same tree behind fewer blocks.
        let tree = bytes.split_off(appended.hash_offset as usize);
        bytes.truncate(8 * 8 * block.len());
        let offset = bytes.len() as u64;
        bytes.extend_from_slice(&tree);
        let shorter = super::common::file(&bytes);
        let superblock = Superblock::new(block, 8 * 8, UUID).encode();
        shorter.write_all_at(&superblock, offset).expect("write");
        let result = verify(&shorter, offset, &appended.root_hash, .., work());
        let error = result.expect_err("shorter");
        let source = SuperblockError::FewerThanDigests(64);
        assert!(
            matches!(&error, Error::Superblock { source: found, .. } if *found == source),
            "{error:?}"
        );
    }
}

#[test]
fn another_root_hash_is_named_at_the_top() {
    let (file, mut appended) = device(&noise(200 * 4096), BlockSize::B4096, None);
    appended.root_hash.0[31] ^= 1;
    let error = whole(&file, &appended).expect_err("another root hash");
    let top = Place::Hash { level: 1, block: 0 };
    assert!(
        matches!(error, Error::Corrupt(place) if place == top),
        "{error:?}"
    );
}
