// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers with very many entries take little memory.

use std::fs;
use std::io::Write as _;

use flate2::write::GzEncoder;
use resnap_core::Scope;
use resnap_layer::testing::Tar;

use crate::bed::{Bed, GZIP, METADATA, elsewhere};

/// Returns the peak memory of this process, in MiB.
pub(crate) fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse::<u64>().unwrap() >> 10
}

/// Returns a layer of a million empty files in a thousand directories.
fn million() -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    // One entry at a time: the archive in memory would count towards the peak.
    for number in 0..1_000_000 {
        let path = format!("d{}/file-{number}", number / 1000);
        let entry = Tar::new(METADATA).file(path, "");
        encoder.write_all(&entry.bytes).unwrap();
    }
    encoder.write_all(&Tar::default().end()).unwrap();
    encoder.finish().unwrap()
}

fn takes_less(is_image: bool, most: u64) {
    let bed = Bed::new();
    let layer = bed.layer(GZIP, million());
    let (snapshot, mounts) = bed.prepare(&[], &[]);
    if is_image {
        fs::write(bed.fs(snapshot).with_file_name(".erofslayer"), "").unwrap();
    }
    let before = peak();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let batch = bed.batch(&[layer]);
        let scope = Scope::new("default");
        batch.apply(&scope, 0, &mounts).await.unwrap();
        batch.end().await;
    });
    assert!(bed.left().is_empty());
    let took = peak() - before;
    assert!(took < most, "{took} MiB");
    let place = match is_image {
        true => bed.fs(snapshot).with_file_name("layer.erofs"),
        false => bed.fs(snapshot).join("d999/file-999999"),
    };
    assert!(place.exists());
}

#[test]
#[ignore = "takes a minute"]
fn a_million_files() {
    if !elsewhere("many::a_million_files", &["--mount"]) {
        takes_less(false, 32);
    }
}

#[test]
#[ignore = "takes a minute"]
fn a_million_inodes() {
    if !elsewhere("many::a_million_inodes", &["--mount"]) {
        takes_less(true, 256);
    }
}
