// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers with very many entries take little memory.

use std::fs;

use flate2::write::GzEncoder;
use resnap_core::Scope;

use crate::bed::{Bed, GZIP, elsewhere};

/// Returns the peak memory of this process, in MiB.
pub(crate) fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.unwrap().split_whitespace().next().unwrap();
    number.parse::<u64>().unwrap() >> 10
}

/// Returns a layer of a million empty files in a thousand directories.
fn million() -> Vec<u8> {
    let encoder = GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = tar::Builder::new(encoder);
    let mut header = tar::Header::new_ustar();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    for number in 0..1_000_000 {
        let path = format!("d{}/file-{number}", number / 1000);
        builder.append_data(&mut header, path, &[][..]).unwrap();
    }
    builder.into_inner().unwrap().finish().unwrap()
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
