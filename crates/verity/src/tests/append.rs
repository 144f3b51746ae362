// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Trees that are appended.

use std::collections::HashSet;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::common::{SIZES, UUID, boundaries, contents, described, device, file, noise, work};
use crate::{BlockSize, Error, RootHash, Work, append};

#[test]
fn devices_are_as_described_at_every_boundary() {
    for block in SIZES {
        for blocks in boundaries(block, 64 << 20) {
            let data = noise(blocks * block.len());
            let (root, bytes) = described(&data, block.len());
            let (file, appended) = device(&data, block, None);
            assert_eq!(
                appended.root_hash,
                RootHash(root),
                "{blocks} blocks of {block:?}"
            );
            assert_eq!(appended.size, bytes.len() as u64);
            assert_eq!(
                appended.hash_offset,
                data.len().next_multiple_of(4096) as u64
            );
            assert!(contents(&file) == bytes, "{blocks} blocks of {block:?}");
        }
    }
}

#[test]
fn what_was_behind_the_data_is_replaced() {
    let data = noise(20 * 4096);
    let (_, expected) = described(&data, 4096);
    let rest = [data.clone(), vec![0xff; 100_000]].concat();
    let file = file(&rest);
    append(
        &file,
        data.len() as u64,
        BlockSize::B4096,
        UUID,
        None,
        work(),
    )
    .expect("a device");
    assert!(contents(&file) == expected);
}

#[test]
fn threads_do_not_change_the_bytes() {
    let data = noise(9 << 20);
    let (_, expected) = described(&data, 4096);
    for threads in [1, 2, 3, 8, 100] {
        let file = file(&data);
        let work = work().threads(NonZeroUsize::new(threads).expect("threads"));
        append(&file, data.len() as u64, BlockSize::B4096, UUID, None, work).expect("a device");
        assert!(contents(&file) == expected, "{threads} threads");
    }
}

#[test]
fn threads_work_at_once() {
    let data = noise(8 << 20);
    let file = file(&data);
    let seen = Mutex::new(HashSet::new());
    // Each thread waits for the others to come.
    let check = || {
        let seen = || seen.lock().expect("no panic");
        seen().insert(thread::current().id());
        let mut tries = 0..5000;
        while seen().len() < 3 && tries.next().is_some() {
            thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    let work = Work::new(&check).threads(NonZeroUsize::new(3).expect("threads"));
    append(&file, data.len() as u64, BlockSize::B4096, UUID, None, work).expect("a device");
    assert_eq!(seen.lock().expect("no panic").len(), 3);
}

#[test]
fn sizes_that_cannot_be_devices_are_refused() {
    for (size, block) in [
        (0, BlockSize::B4096),
        (4095, BlockSize::B4096),
        (513, BlockSize::B512),
        (!4095, BlockSize::B4096),
        (i64::MAX as u64 & !511, BlockSize::B512),
    ] {
        let file = file(&[]);
        let error = append(&file, size, block, UUID, None, work()).expect_err("no device");
        assert!(matches!(error, Error::Size { .. }), "{error:?}");
        assert!(contents(&file).is_empty());
    }
    let file = file(&[1; 4096]);
    let error =
        append(&file, 8192, BlockSize::B4096, UUID, None, work()).expect_err("a short file");
    assert!(matches!(
        error,
        Error::Short {
            size: 4096,
            expected: 8192
        }
    ));
    assert_eq!(contents(&file), [1; 4096]);
}

#[test]
fn the_check_stops_it_and_leaves_no_superblock() {
    let data = noise(8 << 20);
    for threads in [1, 4] {
        let file = file(&data);
        let calls = AtomicUsize::new(0);
        let check = || match calls.fetch_add(1, Ordering::Relaxed) {
            0..3 => Ok(()),
            _ => Err(io::Error::other("enough").into()),
        };
        let work = Work::new(&check).threads(NonZeroUsize::new(threads).expect("threads"));
        let error = append(&file, data.len() as u64, BlockSize::B512, UUID, None, work)
            .expect_err("stopped");
        assert!(
            matches!(&error, Error::Stopped(_)) && error.to_string() == "enough",
            "{error:?}"
        );
        assert!(calls.load(Ordering::Relaxed) < 3 + 2 * threads);
        let mut superblock = [1; 512];
        file.read_exact_at(&mut superblock, data.len() as u64)
            .expect("read");
        assert_eq!(superblock, [0; 512]);
    }
}
