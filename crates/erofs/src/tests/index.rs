// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Indexes of tars, alone, before their tar, and with it as a device.

use std::io::Cursor;

use super::common::*;
use crate::{ErofsReader, ImageError, Memory, NoLower, Writer, joined_size};
use resnap_layer::testing::{Tar, typeflag};
use resnap_layer::{Entry, EntryKind, EntrySource, File, Metadata, Piece};

/// Returns the image of an index before its tar.
fn joined(tar: &[u8]) -> ErofsReader<Vec<u8>> {
    ErofsReader::open(write_joined(tar).unwrap()).unwrap()
}

#[test]
fn data_stays_in_the_tar() {
    let large: Vec<u8> = (0..300_000_u32).map(|n| n as u8).collect();
    let items = [
        file("large", &large),
        directory("d", 0o700),
        file("d/small", b"text"),
        file("d/empty", b""),
        file("d/block", &[1; 512]),
        link(typeflag::HARD_LINK, "hard", "d/small"),
        link(typeflag::SYMLINK, "long", &"x/".repeat(2000)),
        Item {
            xattrs: (0..9)
                .map(|n| (format!("user.{n}"), vec![n; 300]))
                .collect(),
            ..file("attributes", b"data")
        },
        file("replaced", b"before"),
        file("replaced", b"after"),
    ];
    let tar = layer(&items);
    let index = index_on(&tar, &mut NoLower).unwrap();
    assert!(
        index.len() < 20_000 && index.len().is_multiple_of(4096),
        "{}",
        index.len()
    );

    let alone = ErofsReader::open(index.clone()).unwrap();
    assert_eq!((alone.size(), alone.devices()), (index.len() as u64, 1));
    let node = find(&alone, "large");
    assert!(matches!(
        alone.read(&node, 0, &mut [0; 10]),
        Err(ImageError::Read { .. })
    ));

    let apart = alone.with_devices(vec![tar.clone()]).unwrap();
    let flat = joined(&tar);
    let full = image(&items);
    for image in [&apart, &flat] {
        assert_eq!(paths(image), paths(&full));
        for (path, node) in tree(&full) {
            let other = find(image, &path);
            assert_eq!(
                image.metadata(&other).unwrap(),
                full.metadata(&node).unwrap()
            );
            // A directory is longer, the more of its blocks are not full.
            if !node.is_directory() {
                assert_eq!((other.size, other.links), (node.size, node.links), "{path}");
                assert_eq!(data(image, &path), data(&full, &path), "{path}");
            }
        }
    }
    let node = find(&flat, "large");
    let at = flat.position(&node).unwrap() as usize;
    assert_eq!(write_joined(&tar).unwrap()[at..at + large.len()], large);
    let elsewhere = apart.position(&find(&apart, "large"));
    assert!(matches!(elsewhere, Err(ImageError::Unsupported(_))));
}

#[test]
fn devices_must_be_as_many_as_the_image_has() {
    let tar = layer(&[file("a", b"1")]);
    let index = index_on(&tar, &mut NoLower).unwrap();
    for (image, given) in [(write(&tar).unwrap(), 1), (index.clone(), 0), (index, 2)] {
        let image = ErofsReader::open(image).unwrap();
        let count = image.devices();
        let error = image.with_devices(vec![tar.clone(); given]).unwrap_err();
        let message =
            format!("the EROFS image has data on {count} other devices, and {given} are given");
        assert_eq!(error.to_string(), message);
    }
}

#[test]
fn data_is_found_behind_headers_of_all_forms() {
    let long = format!("{}/file", "directory/".repeat(30));
    let size = |size: &str| [("size", size.as_bytes().to_vec())];
    let pax = size("3");
    let pax: Vec<_> = pax.iter().map(|(key, value)| (*key, &value[..])).collect();
    let tar = Tar::default()
        .with(b'L', "././@LongLink", long.as_bytes(), &[])
        .file("short", b"by GNU")
        .pax(&[("path", b"by-pax")])
        .file("other", [8; 1000])
        .pax(&pax)
        // The size in its own header is another.
        .with(
            typeflag::REGULAR,
            "sized",
            b"abc",
            &[(124, b"00000000000\0")],
        )
        .file("last", b"end")
        .end();
    let image = joined(&tar);
    for (path, expected) in [
        (&long[..], &b"by GNU"[..]),
        ("by-pax", &[8; 1000]),
        ("sized", b"abc"),
        ("last", b"end"),
    ] {
        assert_eq!(data(&image, path), expected, "{path}");
    }
}

#[test]
fn sparse_files_are_in_the_index() {
    // The data of both extents is one run in the tar, and none of it is aligned in the file.
    let map: &[(&str, &[u8])] = &[
        ("GNU.sparse.major", b"0"),
        ("GNU.sparse.minor", b"1"),
        ("GNU.sparse.size", b"1000000"),
        ("GNU.sparse.numblocks", b"2"),
        ("GNU.sparse.map", b"100,3,900000,2"),
        ("GNU.sparse.name", b"sparse"),
    ];
    let tar = Tar::default()
        .file("before", b"1")
        .pax(map)
        .file("x", b"abcde")
        .file("after", b"2")
        .end();
    let image = joined(&tar);
    let mut expected = vec![0; 1_000_000];
    expected[100..103].copy_from_slice(b"abc");
    expected[900_000..900_002].copy_from_slice(b"de");
    assert_eq!(data(&image, "sparse"), expected);
    assert_eq!(data(&image, "before"), b"1");
    assert_eq!(data(&image, "after"), b"2");
}

#[test]
fn the_last_data_may_lack_its_padding() {
    let mut tar = Tar::default().file("a", [5; 700]).bytes;
    tar.truncate(512 + 700);
    assert_eq!(data(&joined(&tar), "a"), [5; 700]);
}

#[test]
fn equal_layers_give_equal_indexes() {
    let tar = layer(&[
        file("a/b", b"1"),
        directory("c", 0o755),
        file("c/.wh.d", b""),
    ]);
    let index = index_on(&tar, &mut NoLower).unwrap();
    assert_eq!(index, index_on(&tar, &mut NoLower).unwrap());
    assert_eq!(joined_size(8192, 4097), 16_384);
    assert_eq!(joined_size(u64::MAX, 1), u64::MAX);
}

/// A layer with one file, whose data is far behind the start of its tar.
struct Far {
    offset: u64,
    size: Option<u64>,
}

impl EntrySource for Far {
    fn next(&mut self) -> Result<Option<Entry>, resnap_layer::Error> {
        Ok(self.size.take().map(|size| Entry {
            path: b"a/far".to_vec(),
            kind: EntryKind::File(File {
                size,
                extents: None,
            }),
            metadata: Metadata::default(),
        }))
    }

    fn tar_offset(&self) -> Option<u64> {
        Some(self.offset)
    }

    fn data(&mut self) -> Result<Option<Piece<'_>>, resnap_layer::Error> {
        Ok(None)
    }
}

#[test]
fn tars_are_limited() {
    let end = 2_u64 << 40;
    for (offset, size, refused) in [
        (end - 512 * 100, 512, None),
        (1 << 40, (1 << 40) - 512 * 100, None),
        (end - 512, 1, Some("add \"a/far\" to the EROFS image")),
        (512, end, Some("add \"a/far\" to the EROFS image")),
        // The index itself takes addresses, too.
        (end - 512 * 4, 512, Some("write the EROFS image")),
    ] {
        let target = Cursor::new(Vec::new());
        let writer = Writer::new(target, Box::new(Memory::new(1 << 20))).unwrap();
        let mut writer = writer.index();
        let size = Some(size);
        let added = writer.add(&mut Far { offset, size });
        let written = added.and_then(|()| writer.finish(&mut NoLower, [0; 16]));
        assert_eq!(
            written.as_ref().err().map(ToString::to_string).as_deref(),
            refused
        );
        match written {
            Err(error) => {
                let cause = std::error::Error::source(&error).unwrap().to_string();
                assert_eq!(cause, "more than 4294967295 blocks of 512 bytes");
            }
            Ok((index, _)) => {
                let image = ErofsReader::open(index.into_inner()).unwrap();
                let node = find(&image, "a/far");
                assert_eq!(Some(node.size), size);
                let ImageError::Read { offset: at, .. } =
                    image.read(&node, node.size - 1, &mut [0]).unwrap_err()
                else {
                    unreachable!()
                };
                assert_eq!(at, image.size() + offset + node.size - 1);
            }
        }
    }
}
