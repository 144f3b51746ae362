// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images with the merged tree of several.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;

use proptest::prelude::*;
use resnap_layer::Metadata;
use resnap_layer::testing::{Tar, typeflag};

use super::common::*;
use super::random::items;
use crate::{ErofsReader, Error, Governor, Memory, Stack, merge};

/// Returns the images of layers, the lowest first, each written on those below.
pub(super) fn image_files(layers: &[Vec<Item>]) -> Vec<Vec<u8>> {
    let mut files: Vec<Vec<u8>> = Vec::new();
    for items in layers {
        let below = files
            .iter()
            .rev()
            .map(|file| ErofsReader::open(file.clone()));
        let mut below = Stack::new(below.collect::<Result<_, _>>().unwrap());
        files.push(write_on(&layer(items), &mut below).unwrap());
    }
    files
}

fn images(layers: &[Vec<Item>]) -> Vec<ErofsReader<Vec<u8>>> {
    let files = image_files(layers).into_iter();
    files.map(|file| ErofsReader::open(file).unwrap()).collect()
}

fn merged_with(
    images: Vec<ErofsReader<Vec<u8>>>,
    governor: Box<dyn Governor>,
) -> Result<Vec<u8>, Error> {
    let target = Cursor::new(Vec::new());
    let (target, summary) = merge(images, target, governor, *b"0123456789abcdef")?;
    let image = target.into_inner();
    assert_eq!(image.len() as u64, summary.size);
    assert_eq!(
        ErofsReader::open(&image[..]).unwrap().inodes(),
        summary.inodes
    );
    Ok(image)
}

pub(super) fn merged(images: Vec<ErofsReader<Vec<u8>>>) -> Vec<u8> {
    merged_with(images, Box::new(Memory::new(1 << 30))).unwrap()
}

fn merge_items(layers: &[Vec<Item>]) -> ErofsReader<Vec<u8>> {
    ErofsReader::open(merged(images(layers))).unwrap()
}

/// Returns the error of merging images, with all causes.
fn refusal(images: Vec<ErofsReader<Vec<u8>>>, governor: Box<dyn Governor>) -> String {
    let error = merged_with(images, governor).unwrap_err();
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |error| {
        error.source()
    });
    let causes: Vec<_> = causes.map(ToString::to_string).collect();
    causes.join(": ")
}

/// Layers with one of each kind, which hide each other in all ways.
pub(super) fn samples() -> [Vec<Item>; 3] {
    [
        vec![
            directory("./", 0o711),
            directory("a", 0o700),
            file("a/kept", b"lowest"),
            file("a/replaced", b"secret of the lowest"),
            file("a/deleted", b"secret of the lowest"),
            directory("hidden", 0o700),
            file("hidden/below", b"secret of the lowest"),
            directory("gone", 0o700),
            file("gone/below", b"secret of the lowest"),
            file("becomes-directory", b"secret of the lowest"),
            directory("becomes-file/sub", 0o700),
            directory("twice", 0o700),
            file("twice/lowest", b""),
            link(typeflag::SYMLINK, "link", "a/kept"),
            item(typeflag::FIFO, "fifo"),
            Item {
                device: (8, 300),
                ..item(typeflag::BLOCK, "block")
            },
        ],
        vec![
            Item {
                uid: 7,
                mtime: "5.5".to_owned(),
                xattrs: vec![("user.a".to_owned(), b"value".to_vec())],
                ..directory("a", 0o750)
            },
            file("a/replaced", b"middle"),
            file("a/.wh.deleted", b""),
            directory("hidden", 0o751),
            file("hidden/.wh..wh..opq", b""),
            file("hidden/new", b"middle"),
            file(".wh.gone", b""),
            directory("becomes-directory", 0o710),
            file("becomes-file", b"middle"),
            file("twice", b"between"),
        ],
        vec![
            file("a/b/top", b"top"),
            directory("gone", 0o705),
            directory("twice", 0o770),
            file("twice/top", b""),
        ],
    ]
}

#[test]
fn the_tree_is_that_of_an_overlay() {
    let image = merge_items(&samples());
    let expected = [
        "a",
        "a/b",
        "a/b/top",
        "a/kept",
        "a/replaced",
        "becomes-directory",
        "becomes-file",
        "block",
        "fifo",
        "gone",
        "hidden",
        "hidden/new",
        "link",
        "twice",
        "twice/top",
    ];
    assert_eq!(paths(&image), expected);
    for (path, expected) in [
        ("a/kept", "lowest"),
        ("a/replaced", "middle"),
        ("becomes-file", "middle"),
        ("a/b/top", "top"),
    ] {
        assert_eq!(data(&image, path), expected.as_bytes(), "{path}");
    }
    for (path, mode) in [
        ("", 0o711),
        ("a", 0o750),
        ("a/b", 0o755),
        ("becomes-directory", 0o710),
        ("gone", 0o705),
        ("hidden", 0o751),
        ("twice", 0o770),
    ] {
        assert_eq!(find(&image, path).mode & 0o7777, mode, "{path}");
    }
    let a = image.metadata(&find(&image, "a")).unwrap();
    assert_eq!(
        (a.uid, a.gid, a.mtime.seconds, a.mtime.nanoseconds),
        (7, 7, 5, 500_000_000)
    );
    assert_eq!(
        xattrs(&image, "a"),
        [("user.a".to_owned(), b"value".to_vec())]
    );
    assert_eq!(data(&image, "link"), b"a/kept");
    let numbers = |path| find(&image, path).device();
    assert_eq!(numbers("block"), Some(0x10_082c));
    assert_eq!(numbers("fifo"), None);
}

#[test]
fn nothing_of_hidden_files_is_left() {
    let secret = [b"secret".repeat(1000), vec![0; 9000], b"secret".to_vec()].concat();
    let layers = [
        vec![
            file("d/deleted", &secret),
            file("replaced", &secret),
            file("hidden/file", &secret),
            file("kept", b"data"),
        ],
        vec![
            file("d/.wh.deleted", b""),
            file("replaced", b""),
            directory("hidden", 0o700),
            file("hidden/.wh..wh..opq", b""),
        ],
    ];
    let image = merged(images(&layers));
    let found = |text: &[u8]| image.windows(text.len()).any(|bytes| bytes == text);
    assert!(found(b"data") && found(b"kept"));
    for text in ["secret", "deleted", "overlay"] {
        assert!(!found(text.as_bytes()), "{text}");
    }
    // One block of data, and one of metadata behind the header.
    assert_eq!(image.len(), 3 * 4096);
}

#[test]
fn names_of_an_inode_stay_so_where_they_are_left() {
    let image = merge_items(&[
        vec![
            file("a", b"data"),
            link(typeflag::HARD_LINK, "b", "a"),
            link(typeflag::HARD_LINK, "c", "a"),
            link(typeflag::HARD_LINK, "d/e", "a"),
            file("f", b"other"),
            link(typeflag::HARD_LINK, "g", "f"),
        ],
        vec![
            file(".wh.a", b""),
            file("c", b"data"),
            link(typeflag::HARD_LINK, "h", "c"),
            file(".wh.g", b""),
        ],
    ]);
    assert_eq!(paths(&image), ["b", "c", "d", "d/e", "f", "h"]);
    let node = |path| find(&image, path);
    assert_eq!(node("b"), node("d/e"));
    assert_eq!(node("c"), node("h"));
    assert!(node("b").id != node("c").id);
    for (path, links) in [("b", 2), ("c", 2), ("f", 1), ("d", 2), ("", 3)] {
        assert_eq!(node(path).links, links, "{path}");
    }
    assert_eq!(image.inodes(), 5);
}

#[test]
fn directories_may_have_lists_that_their_children_do_not_inherit() {
    let acl = ("system.posix_acl_default".to_owned(), vec![2, 0, 0, 0]);
    let layers = [
        vec![file("d/below", b"")],
        vec![Item {
            xattrs: vec![acl.clone()],
            ..directory("d", 0o755)
        }],
    ];
    let image = merge_items(&layers);
    assert_eq!(paths(&image), ["d", "d/below"]);
    assert_eq!(xattrs(&image, "d"), [acl]);
    assert_eq!(xattrs(&image, "d/below"), []);
}

#[test]
fn whiteouts_are_gone_in_the_lowest_layer_too() {
    let image = merge_items(&[vec![
        file("a/.wh.gone", b""),
        item(typeflag::CHARACTER, "a/device"),
    ]]);
    assert_eq!(paths(&image), ["a"]);
    assert_eq!(names(&image, "a"), [""; 0]);
    assert_eq!(paths(&merge_items(&[])), [""; 0]);
}

#[test]
fn equal_trees_give_equal_bytes() {
    let layers: Vec<Vec<Item>> = (0..3)
        .map(|number| {
            let files = (0..200).map(|index| {
                let index = index * (number + 1);
                file(&format!("d{}/{index}", index % 7), &vec![b'x'; index * 50])
            });
            files
                .chain([file("d3/.wh.3", b""), directory("d2", 0o700)])
                .collect()
        })
        .collect();
    let image = merged(images(&layers));
    assert!(image == merged(images(&layers)));
    // A merged image is one layer.
    let again = merged(vec![ErofsReader::open(image.clone()).unwrap()]);
    assert!(image == again);
    // Images in other forms: the index of a tar with the tar behind it, and as a device.
    let mut lower = Vec::new();
    let mut indexes = Vec::new();
    for items in &layers {
        let tar = layer(items);
        let mut below = Stack::new(lower.clone());
        let index = index_on(&tar, &mut below).unwrap();
        let index = ErofsReader::open(index).unwrap();
        let index = index.with_devices(vec![tar]).unwrap();
        lower.insert(0, index.clone());
        indexes.push(index);
    }
    assert!(image == merged(indexes));
}

#[test]
fn holes_stay_holes() {
    let map: &[(&str, &[u8])] = &[
        ("GNU.sparse.size", b"100000000000"),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.map", b"5000000,3"),
    ];
    // Of a hole in an image's file only the zeros are known.
    let zeros = [&[1; 5000][..], &vec![0; 3_000_000], &[2; 5000]].concat();
    let tar = Tar::default().file("zeros", &zeros).end();
    let mut image = ErofsReader::open(write(&tar).unwrap()).unwrap();
    let merged_zeros = ErofsReader::open(merged(vec![image.clone()])).unwrap();
    assert_eq!(data(&merged_zeros, "zeros"), zeros);
    let target = merge(
        vec![image],
        Sink::default(),
        Box::new(Memory::new(1 << 20)),
        [0; 16],
    );
    let written = target.unwrap().0.0;
    assert!(written < 40_000, "{written}");
    // Chunks without an address are not read.
    let tar = Tar::default().pax(map).file("sparse", "xyz").end();
    assert!(tar.len() < 10_000);
    let mut index = write_joined(&Tar::default().file("f", [7; 600]).end()).unwrap();
    let opened = ErofsReader::open(index.clone()).unwrap();
    let node = find(&opened, "f");
    let unit = (node.offset as usize + 64).next_multiple_of(8);
    assert_eq!(index[unit + 2], 1, "the number of the device");
    index[unit + 4..unit + 8].fill(0xff);
    // 4 GiB in a chunk of 2^31 blocks, which is not read.
    index[node.offset as usize + 8..][..8].copy_from_slice(&(1_u64 << 32).to_le_bytes());
    index[node.offset as usize + 16] = 0x20 | 31;
    image = ErofsReader::open(index).unwrap();
    let target = merge(
        vec![image],
        Sink::default(),
        Box::new(Memory::new(1 << 20)),
        [0; 16],
    );
    let (sink, summary) = target.unwrap();
    assert!(sink.0 < 20_000, "{}", sink.0);
    assert_eq!(summary.size, (1 << 32) + 2 * 4096);
}

/// Returns the image of items, in which bytes are replaced once.
fn changed(items: &[Item], from: &[u8], to: &[u8]) -> Vec<ErofsReader<Vec<u8>>> {
    let mut image = write(&layer(items)).unwrap();
    let at = image.windows(from.len()).position(|bytes| bytes == from);
    let at = at.expect("the bytes");
    image[at..at + to.len()].copy_from_slice(to);
    let top = write(&layer(&[file("top", b"")])).unwrap();
    [image, top]
        .map(|image| ErofsReader::open(image).unwrap())
        .into()
}

#[test]
fn hostile_images_are_refused() {
    let opaque = [file("d/.wh..wh..opq", b"")];
    let memory = || Box::new(Memory::new(1 << 26));
    let id = |image: &ErofsReader<Vec<u8>>, path| find(image, path).id.to_le_bytes();
    let nested = [directory("a/b", 0o755), file("a/c", b"")];
    let plain = image(&nested);
    let (root, b) = (id(&plain, ""), id(&plain, "a/b"));
    let long = [
        link(typeflag::SYMLINK, "l", &"x".repeat(4000)),
        file("f", b""),
    ];
    let size = |number: u64| number.to_le_bytes();
    for (images, reason) in [
        (
            changed(&opaque, b"overlay.opaque", b"overlay.metaco"),
            "add \"d\" to the EROFS image: the attribute \"trusted.overlay.metaco\" is not supported",
        ),
        (
            changed(&opaque, b"overlay.opaquey", b"overlay.opaquex"),
            "the attribute \"trusted.overlay.opaque\" is not supported",
        ),
        (
            changed(&nested, &[0xed, 0x41], &[0xed, 0x81]),
            "read the image of layer 1, counted from the lowest: malformed root directory at byte 4160",
        ),
        // A directory that contains the root.
        (
            changed(&nested, &b, &root),
            "more than 4095 bytes of a path",
        ),
        (
            changed(&[file("a", b""), file("b", b"")], b"...ab", b"...ba"),
            "add \"\" to the EROFS image: read the image of layer 1, counted from the lowest: \
             malformed order of names in a directory at byte 4160 of the EROFS image",
        ),
        (
            changed(&[file("a", b""), file("b", b"")], b"...ab", b"...aa"),
            "malformed order of names",
        ),
        (
            changed(&long, &size(4000), &size(5000)),
            "add \"l\" to the EROFS image: read the image of layer 1, counted from the lowest: malformed symbolic link",
        ),
        (
            changed(&[file("f", &[1; 300])], &size(300), &size(1 << 60)),
            "add \"f\" to the EROFS image: more than 4294967295 blocks of 4096 bytes",
        ),
        (
            changed(&[file("f", &[1; 300])], &size(300), &size(1 << 40)),
            "add \"f\" to the EROFS image: read the image of layer 1, counted from the lowest: read the EROFS image at",
        ),
    ] {
        let error = refusal(images, memory());
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn memory_and_patience_are_limited() {
    let items: Vec<Item> = (0..2000)
        .map(|index| file(&format!("d/{index}"), b""))
        .collect();
    let layers = images(&[items, vec![file("d/top", b"")]]);
    let error = refusal(layers.clone(), Box::new(Memory::new(20_000)));
    assert!(
        error.ends_with("more than 20000 bytes of memory"),
        "{error}"
    );
    merged_with(layers.clone(), Box::new(Memory::new(2000 * 150))).unwrap();
    // A link takes memory, and so does a directory until it is read.
    let links = (0..2000).map(|index| link(typeflag::HARD_LINK, &format!("l{index}"), "f"));
    let links: Vec<Item> = [file("f", b"")].into_iter().chain(links).collect();
    merged_with(images(&[links]), Box::new(Memory::new(2000 * 150))).unwrap();

    #[derive(Debug)]
    struct Cancelled(u32);
    impl Governor for Cancelled {
        fn take(&mut self, _: u64) -> Result<(), crate::Refusal> {
            Ok(())
        }
        fn entry(&mut self) -> Result<(), crate::Refusal> {
            self.0 = self.0.checked_sub(1).ok_or("it was cancelled")?;
            Ok(())
        }
    }
    let error = refusal(layers.clone(), Box::new(Cancelled(2001)));
    assert_eq!(error, "add \"d/top\" to the EROFS image: it was cancelled");
    merged_with(layers, Box::new(Cancelled(2002))).unwrap();
}

/// A file or directory, with its metadata and data, and the number of its layer and its node ID if it can have
/// several names.
type Shown = (u32, Metadata, Vec<u8>, Option<(usize, u64)>);

/// Applies the images to a tree, one after the other.
fn model(images: &[ErofsReader<Vec<u8>>]) -> BTreeMap<String, Shown> {
    let mut shown: BTreeMap<String, Shown> = BTreeMap::new();
    for (number, image) in images.iter().enumerate() {
        // Parents come before their children.
        for (path, node) in tree(image) {
            let below = if path.is_empty() {
                String::new()
            } else {
                format!("{path}/")
            };
            let mut metadata = image.metadata(&node).unwrap();
            let is_opaque = names(image, &path).contains(&"trusted.overlay.opaque".to_owned());
            metadata
                .xattrs
                .retain(|xattr| !xattr.name.starts_with(b"trusted."));
            let was_directory = shown
                .get(&path)
                .is_some_and(|old| old.0 & 0o170_000 == 0o40_000);
            if !node.is_directory() || !was_directory || (is_opaque && !path.is_empty()) {
                shown.retain(|other, _| *other == path || !other.starts_with(&below));
            }
            if node.is_whiteout() {
                shown.remove(&path);
                continue;
            }
            let (content, id) = match node.is_directory() {
                true => (Vec::new(), None),
                false => (data(image, &path), Some((number, node.id))),
            };
            shown.insert(path, (node.mode, metadata, content, id));
        }
    }
    shown
}

proptest! {
    #[test]
    fn random_images_merge_as_layers_are_applied(layers in prop::collection::vec(items(), 1..5)) {
        let right = layers.into_iter().filter(|items| write(&layer(items)).is_ok());
        let images = images(&right.collect::<Vec<_>>());
        let model = model(&images);
        let image = ErofsReader::open(merged(images)).unwrap();
        let found = tree(&image);
        let paths = |path: &String| (!path.is_empty()).then(|| path.clone());
        prop_assert_eq!(
            found.keys().filter_map(paths).collect::<Vec<_>>(),
            model.keys().filter_map(paths).collect::<Vec<_>>()
        );
        let mut ids = BTreeMap::new();
        for (path, (mode, metadata, content, id)) in &model {
            let node = &found[path];
            prop_assert_eq!((node.mode, &image.metadata(node).unwrap()), (*mode, metadata), "{}", path);
            let Some(id) = id else {
                continue;
            };
            prop_assert_eq!(&data(&image, path), content);
            prop_assert_eq!(*ids.entry(*id).or_insert(node.id), node.id, "{}", path);
            let links = model.values().filter(|other| other.3 == Some(*id)).count();
            prop_assert_eq!(node.links as usize, links, "{}", path);
        }
        let distinct: BTreeSet<_> = ids.values().collect();
        prop_assert_eq!(distinct.len(), ids.len());
    }
}
