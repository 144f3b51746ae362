// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Contents, types of entries, and archives that end early or late.

use std::io;

use super::super::tar_entry::{Entry, pack};
use super::case::{Case, all_within, noise, within};

pub(super) const CASES: &[Case] = &[
    Case::new("sizes at the edges of blocks", || {
        let sizes = [0, 1, 511, 512, 513, 4095, 4096, 4097, 65_536, 1 << 20];
        let files = sizes.map(|size| Entry::file(format!("{size:07}"), noise(size)));
        within("t/sizes", files)
    }),
    Case::new("a large file", || {
        within("t/large", [Entry::file("file", noise(4 << 20))])
    }),
    Case::new("zeros", || {
        within("t/zeros", [Entry::file("file", vec![0; 3 << 20])])
    }),
    Case::new("2 000 files in a directory", || {
        let files =
            (0..2000).map(|index| Entry::file(format!("file-{index:04}"), index.to_string()));
        all_within("t/many", files.collect())
    }),
    Case::new("an empty layer", || pack(&[])),
    Case::new("a layer of no bytes", || Ok(Vec::new())).mkfs_fails("failed to read header block"),
    Case::new("no trailer", || {
        let mut tar = within("t/trailer", [Entry::file("none", "none")])?;
        tar.truncate(tar.len() - 1024);
        Ok(tar)
    })
    .mkfs_fails("failed to read header block"),
    Case::new("a trailer of one block", || {
        let mut tar = within("t/trailer", [Entry::file("one", "one")])?;
        tar.truncate(tar.len() - 512);
        Ok(tar)
    })
    .mkfs_fails("failed to read header block"),
    Case::new("zeros up to a record", || {
        let mut tar = within("t/trailer", [Entry::file("record", "record")])?;
        tar.resize(tar.len().next_multiple_of(10_240), 0);
        Ok(tar)
    }),
    Case::new("bytes after the trailer", || {
        let mut tar = within("t/trailer", [Entry::file("bytes", "bytes")])?;
        tar.extend(b"not a header");
        tar.extend(pack(&[Entry::file(
            "t/trailer/after-the-end",
            "not there",
        )])?);
        Ok(tar)
    }),
    Case::new("devices and pipes", || {
        within(
            "t/devices",
            [
                Entry::char_device("null", 1, 3).mode(0o666),
                Entry::char_device("large", 4095, 0xf_ffff)
                    .mode(0o600)
                    .owner(1000, 1000),
                Entry::block_device("loop", 7, 0).mode(0o660).owner(0, 6),
                Entry::fifo("fifo").mode(0o622),
            ],
        )
    }),
    Case::new("entries of the old types", || {
        within(
            "t/old",
            [
                Entry::new(b'\0', "file").mode(0o640),
                Entry::new(b'\0', "dir/").mode(0o750),
                Entry::file("dir/file", "in an old directory"),
                with_data(Entry::new(b'\0', "with-content"), b"old content"),
            ],
        )
    }),
    Case::new("a global header", || {
        let mut global = Entry::new(b'g', "pax_global_header");
        global.data = b"52 comment=0123456789abcdef0123456789abcdef01234567\n".to_vec();
        pack(&[
            global,
            Entry::dir("t"),
            Entry::dir("t/global"),
            Entry::file("t/global/file", "g"),
        ])
    }),
    Case::new("a sparse file by PAX 1.0", sparse),
    Case::new("a sparse file by PAX 0.1", || {
        let file = Entry::file("GNUSparseFile.2/file", "datadata")
            .pax("GNU.sparse.size", "1048576")
            .pax("GNU.sparse.numblocks", "2")
            .pax("GNU.sparse.map", "0,4,4096,4")
            .pax("GNU.sparse.name", "t/sparse-0.1/file");
        within("t/sparse-0.1", [file])
    }),
    Case::new("an unknown PAX record", || {
        within(
            "t/unknown",
            [Entry::file("file", "known")
                .pax("VENDOR.word", "x")
                .pax("comment", "y")],
        )
    }),
];

fn with_data(mut entry: Entry, data: &[u8]) -> Entry {
    entry.data = data.to_vec();
    entry
}

/// 1 MiB with 512 bytes at the begin and 512 at the end: the map is the begin of the content.
fn sparse() -> io::Result<Vec<u8>> {
    let mut content = b"2\n0\n512\n1048064\n512\n".to_vec();
    content.resize(512, 0);
    content.extend([b'a'; 512]);
    content.extend([b'z'; 512]);
    let file = Entry::file("GNUSparseFile.1/file", content)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "t/sparse/file")
        .pax("GNU.sparse.realsize", "1048576");
    within("t/sparse", [file])
}
