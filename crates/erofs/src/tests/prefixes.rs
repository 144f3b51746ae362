// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! An image's own prefixes of extended attributes, as `mkfs.erofs --xattr-prefix` writes them.

use super::common::*;
use crate::{ErofsReader, ImageError};

const SUPER: usize = 1024;

/// `user.long.`, one with an unknown prefix, and `trusted.other.`.
const TABLE: &[u8] = b"\x06\0\x01long.\x02\0\x77x\x07\0\x04other.\0\0\0";

/// Returns an image whose files `0` to `3` have an attribute `abc` with the prefix of that number. The
/// file `table` has these bytes.
fn sample(table: &[u8]) -> Vec<u8> {
    let mut items: Vec<Item> = (0..4)
        .map(|index| Item {
            xattrs: vec![("user.abc".to_owned(), vec![b'0' + index])],
            ..file(&index.to_string(), b"")
        })
        .collect();
    items.push(file("table", table));
    let mut image = write(&layer(&items)).unwrap();
    for index in 0..4 {
        let entry = [3, 1, 1, 0, b'a', b'b', b'c', b'0' + index];
        let found = image.windows(8).position(|bytes| bytes == entry).unwrap();
        image[found + 1] = 0x80 | index;
    }
    image[SUPER + 80] |= 0x40;
    image[SUPER + 91] = 3;
    image
}

fn in_inode(table: &[u8]) -> Vec<u8> {
    let mut image = sample(table);
    let id = find(&ErofsReader::open(image.clone()).unwrap(), "table").id;
    image[SUPER + 96..][..8].copy_from_slice(&id.to_le_bytes());
    image
}

fn check(image: Vec<u8>) {
    let image = ErofsReader::open(image).unwrap();
    for (path, expected) in [
        ("0", Some("user.long.abc")),
        ("1", None),
        ("2", Some("trusted.other.abc")),
        ("3", None),
    ] {
        assert_eq!(names(&image, path), Vec::from_iter(expected), "{path}");
    }
}

#[test]
fn in_an_inode() {
    check(in_inode(TABLE));
}

#[test]
fn in_no_inode() {
    let mut image = sample(b"");
    image[512..][..TABLE.len()].copy_from_slice(TABLE);
    image[SUPER + 92] = 128;
    check(image.clone());
    // An inode for fragments, which is ignored.
    image[SUPER + 96] = 77;
    image[SUPER + 8] |= 0x10;
    check(image);
}

#[test]
fn malformed_prefixes_are_refused() {
    for table in [&TABLE[..8], b"\0\0\0\0", b"\x01\x01\x01\0", b""] {
        let image = ErofsReader::open(in_inode(table)).unwrap();
        let error = image.xattrs(&find(&image, "0")).unwrap_err();
        let what = "prefix of extended attributes";
        assert!(
            matches!(&error, ImageError::Corrupt { what: found, .. } if *found == what),
            "{table:?}: {error:?}"
        );
    }
}
