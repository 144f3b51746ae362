// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Merged layers.

use std::cell::Cell;

use super::common::*;
use crate::{ErofsReader, Stack};
use resnap_layer::Metadata;
use resnap_layer::testing::typeflag;

const OPAQUE: &str = "trusted.overlay.opaque";
const ORIGIN: &str = "trusted.overlay.origin";

#[test]
fn whiteouts() {
    let image = image(&[
        file("a/.wh.gone", b""),
        file("b/.wh..wh..opq", b""),
        item(typeflag::CHARACTER, "c/device"),
    ]);
    assert_eq!(paths(&image), ["a", "a/gone", "b", "c", "c/device"]);
    let whiteout = find(&image, "a/gone");
    assert!(whiteout.is_whiteout() && whiteout.mode == 0o20000);
    assert!(find(&image, "c/device").is_whiteout());
    assert_eq!(names(&image, "a"), [ORIGIN]);
    assert_eq!(names(&image, "c"), [ORIGIN]);
    assert_eq!(xattrs(&image, "b"), [(OPAQUE.to_owned(), b"y".to_vec())]);
    assert_eq!(names(&image, ""), [""; 0]);
}

#[test]
fn a_whiteout_hides_lower_layers_only() {
    let image = image(&[
        file(".wh.before", b""),
        directory("before", 0o755),
        directory("after", 0o755),
        file("after/child", b""),
        file(".wh.after", b""),
        file(".wh.implicit", b""),
        file("implicit/child", b""),
        file(".wh.file", b""),
        file("file", b"data"),
        file("later", b"data"),
        file(".wh.later", b""),
    ]);
    assert_eq!(
        paths(&image),
        [
            "after",
            "after/child",
            "before",
            "file",
            "implicit",
            "implicit/child",
            "later"
        ]
    );
    for path in ["before", "after", "implicit"] {
        assert_eq!(names(&image, path), [OPAQUE], "{path}");
    }
    assert_eq!(data(&image, "later"), b"data");
    assert_eq!(names(&image, ""), [""; 0]);
}

#[test]
fn a_whiteout_stays_with_its_name() {
    let image = image(&[
        file(".wh.a", b""),
        file("a", b""),
        directory("a", 0o755),
        directory("b", 0o755),
        file(".wh.b", b""),
        file("b", b""),
        file("b", b""),
        directory("b", 0o755),
        file("c", b""),
        file(".wh.c", b""),
        directory("c", 0o755),
        file(".wh.d", b""),
        file("f", b""),
        link(typeflag::HARD_LINK, "d", "f"),
        directory("d", 0o755),
        file("e", b""),
        directory("e", 0o755),
    ]);
    for path in ["a", "b", "c", "d"] {
        assert_eq!(names(&image, path), [OPAQUE], "{path}");
    }
    assert_eq!(names(&image, "e"), [""; 0]);
}

fn images(layers: &[&[Item]]) -> Vec<ErofsReader<Vec<u8>>> {
    let mut images: Vec<ErofsReader<Vec<u8>>> = Vec::new();
    for items in layers {
        images.insert(0, image(items));
    }
    images
}

#[test]
fn stacks_show_the_same_as_overlayfs() {
    let mut images = images(&[
        &[
            directory("./", 0o711),
            directory("a", 0o700),
            directory("a/b", 0o701),
            directory("a/b/c", 0o702),
            directory("deleted", 0o700),
            directory("hidden", 0o700),
            directory("hidden/below", 0o700),
            directory("replaced/below", 0o700),
        ],
        &[
            directory("a", 0o750),
            file("a/other", b""),
            file(".wh.deleted", b""),
            directory("hidden", 0o751),
            file("hidden/.wh..wh..opq", b""),
            file("replaced", b""),
        ],
        &[file("z", b"")],
    ]);
    images.remove(0);
    let mut stack = Stack::new(images);
    let expected = [
        ("", Some(0o755)),
        ("a", Some(0o750)),
        ("a/b", Some(0o701)),
        ("a/b/c", Some(0o702)),
        ("a/other", None),
        ("deleted", None),
        ("hidden", Some(0o751)),
        ("hidden/below", None),
        ("replaced/below", None),
        ("missing", None),
        ("missing/below", None),
        ("a/bc", None),
        ("a/b/", Some(0o701)),
        ("/a/b", Some(0o701)),
    ];
    // Earlier lookups do not change the result.
    for (before, _) in expected {
        for (path, mode) in expected {
            stack.directory(before.as_bytes()).unwrap();
            let found = stack.directory(path.as_bytes()).unwrap();
            assert_eq!(found.map(|found| found.mode), mode, "{before}, {path}");
        }
    }
}

/// An image that counts its reads.
struct Counted<'a>(Vec<u8>, &'a Cell<usize>);

impl crate::ReadAt for Counted<'_> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        self.1.set(self.1.get() + 1);
        self.0.read_exact_at(buffer, offset)
    }
}

#[test]
fn directories_are_looked_up_once() {
    let paths = ["a", "b"].map(|name| [name; 300].join("/"));
    let lower = write(&layer(&paths.each_ref().map(|path| directory(path, 0o755)))).unwrap();
    // Deep paths in two directories in turns, half of them existing.
    let new = (0..100).map(|index| file(&format!("{}/{index}/file", paths[index % 2]), b""));
    let upper = layer(&new.collect::<Vec<_>>());
    let count = Cell::new(0);
    let open = || ErofsReader::open(Counted(lower.clone(), &count)).unwrap();
    let mut stack = Stack::new(vec![open(), open(), open()]);
    write_on(&upper, &mut stack).unwrap();
    // The lookup of a name and its metadata take some reads in each image.
    let directories = 2 * 300 + 100;
    assert!(count.get() < 3 * 8 * directories, "{}", count.get());
}

/// Lower layers that fail after some lookups.
struct Slow(usize);

impl crate::Lower for Slow {
    fn directory(
        &mut self,
        _: &[u8],
    ) -> Result<Option<Metadata>, Box<dyn std::error::Error + Send + Sync>> {
        self.0 += 1;
        match self.0 {
            5 => Err("it took too long".into()),
            _ => Ok(None),
        }
    }
}

#[test]
fn lower_layers_can_stop_the_writer() {
    let upper = layer(&[file("a/b/c/d/e/f/file", b"")]);
    let mut slow = Slow(0);
    let error = write_on(&upper, &mut slow).unwrap_err();
    assert_eq!(error.to_string(), "look up \"a/b/c/d\" in the lower layers");
    assert_eq!(slow.0, 5);
}

#[test]
fn directories_that_a_layer_does_not_state() {
    let lower = Item {
        uid: 7,
        mtime: "5.5".to_owned(),
        xattrs: vec![("user.a".to_owned(), b"value".to_vec())],
        ..directory("a", 0o2750)
    };
    let base = image(&[
        directory("./", 0o700),
        lower,
        directory("a/b", 0o711),
        directory("gone", 0o700),
        directory("gone/x", 0o700),
        directory("opaque", 0o710),
        directory("opaque/x", 0o700),
        directory("stated", 0o700),
    ]);
    let upper = layer(&[
        file("a/b/c/file", b""),
        file(".wh.gone", b""),
        file("gone/x/file", b""),
        file("opaque/x/file", b""),
        file("opaque/.wh..wh..opq", b""),
        file("stated/file", b""),
        directory("stated", 0o777),
    ]);
    let image = ErofsReader::open(write_on(&upper, &mut Stack::new(vec![base])).unwrap()).unwrap();
    let metadata = |path| image.metadata(&find(&image, path)).unwrap();
    let a = metadata("a");
    assert_eq!((a.mode, a.uid, a.gid), (0o2750, 7, 7));
    assert_eq!((a.mtime.seconds, a.mtime.nanoseconds), (5, 500_000_000));
    assert_eq!(
        xattrs(&image, "a"),
        [("user.a".to_owned(), b"value".to_vec())]
    );
    for (path, mode) in [
        ("", 0o700),
        ("a/b", 0o711),
        ("gone", 0o755),
        ("gone/x", 0o755),
        ("opaque", 0o710),
        ("opaque/x", 0o755),
        ("stated", 0o777),
    ] {
        assert_eq!(metadata(path).mode, mode, "{path}");
    }
    let implicit = Metadata {
        mode: 0o755,
        ..Metadata::default()
    };
    assert_eq!(metadata("a/b/c"), implicit);
}
