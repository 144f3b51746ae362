// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Whiteouts and opaque directories.

use super::super::tar_entry::{Entry, pack};
use super::case::{Case, within};

pub(super) const CASES: &[Case] = &[
    Case::new("what the next layers delete", || {
        within(
            "t/deleted",
            [
                Entry::file("file", "file"),
                Entry::dir("dir"),
                Entry::dir("dir/sub"),
                Entry::file("dir/sub/x", "x"),
                Entry::symlink("symlink", "file"),
                Entry::fifo("fifo"),
                Entry::file("-odd\n\"", "odd"),
                Entry::dir("kept").mode(0o750).owner(1000, 1000),
                Entry::file("kept/x", "x"),
                Entry::file("kept/y", "y"),
                Entry::file("by-device", "deleted by a device 0:0"),
                Entry::file("remade", "old"),
                Entry::dir("remade-dir"),
                Entry::file("remade-dir/lower", "lower"),
            ],
        )
    }),
    Case::new("a file deleted", || {
        within("t/deleted", [Entry::whiteout("file")])
    }),
    Case::new("a directory deleted", || {
        within("t/deleted", [Entry::whiteout("dir")])
    }),
    Case::new("other types and odd names deleted", || {
        within(
            "t/deleted",
            [
                Entry::whiteout("symlink"),
                Entry::whiteout("fifo").mode(0o777).owner(1000, 1000),
                Entry::whiteout("-odd\n\""),
            ],
        )
    }),
    Case::new("a whiteout in a directory that is not stated", || {
        pack(&[Entry::whiteout("t/deleted/kept/x")])
    }),
    Case::new("what is not there deleted", || {
        within(
            "t/deleted",
            [Entry::whiteout("never"), Entry::whiteout("file")],
        )
    }),
    Case::new("what is deleted made again", || {
        within(
            "t/deleted",
            [
                Entry::file("file", "again"),
                Entry::dir("dir"),
                Entry::file("dir/new", "new"),
            ],
        )
    }),
    Case::new("a whiteout and a file of its name", || {
        within(
            "t/deleted",
            [Entry::whiteout("remade"), Entry::file("remade", "new")],
        )
    }),
    Case::new("a whiteout and a directory of its name", || {
        within(
            "t/deleted",
            [
                Entry::whiteout("remade-dir"),
                Entry::dir("remade-dir"),
                Entry::file("remade-dir/upper", "upper"),
            ],
        )
    }),
    Case::new("a device 0:0", || {
        within("t/deleted", [Entry::char_device("by-device", 0, 0)])
    }),
    Case::new("a whiteout with a content", || {
        let mut whiteout = Entry::whiteout("kept/y").mtime(0);
        whiteout.data = b"ignored".to_vec();
        within(
            "t/deleted",
            [Entry::dir("kept").mode(0o750).owner(1000, 1000), whiteout],
        )
    }),
    Case::new("directories for opaque markers", || {
        let dirs = [
            "before",
            "after",
            "only",
            "unstated",
            "outer",
            "outer/inner",
            "plain",
        ];
        let files = dirs.map(|dir| Entry::file(format!("{dir}/lower"), "lower"));
        let all: Vec<_> = dirs.map(Entry::dir).into_iter().chain(files).collect();
        super::case::all_within("t/opaque", all)
    }),
    Case::new("an opaque marker before the content", || {
        within(
            "t/opaque",
            [
                Entry::dir("before"),
                Entry::opaque("before"),
                Entry::file("before/upper", "upper"),
            ],
        )
    }),
    Case::new("an opaque marker after the content", || {
        within(
            "t/opaque",
            [
                Entry::dir("after"),
                Entry::file("after/upper", "upper"),
                Entry::opaque("after"),
            ],
        )
    }),
    Case::new("an opaque marker alone", || {
        within(
            "t/opaque",
            [
                Entry::dir("only"),
                Entry::opaque("only"),
                Entry::opaque("only"),
            ],
        )
    }),
    Case::new("an opaque marker in a directory that is not stated", || {
        pack(&[Entry::opaque("t/opaque/unstated")])
    }),
    Case::new("opaque markers in each other", || {
        within(
            "t/opaque",
            [
                Entry::dir("outer"),
                Entry::opaque("outer"),
                Entry::dir("outer/inner"),
                Entry::opaque("outer/inner"),
                Entry::file("outer/inner/upper", "upper"),
            ],
        )
    }),
    Case::new("a file added to an opaque directory", || {
        within(
            "t/opaque",
            [
                Entry::dir("before"),
                Entry::file("before/later", "later"),
                Entry::dir("new-and-opaque"),
                Entry::opaque("new-and-opaque"),
            ],
        )
    }),
    Case::new(
        "whiteouts and markers in directories that no layer has",
        || {
            pack(&[
                Entry::whiteout("t/nowhere/deleted/x"),
                Entry::opaque("t/nowhere/opaque"),
            ])
        },
    ),
    Case::new("the notes of aufs", || {
        pack(&[
            Entry::dir(".wh..wh.plnk"),
            Entry::file(".wh..wh.plnk/1.2", "plnk"),
            Entry::dir(".wh..wh.orph"),
            Entry::file(".wh..wh.aufs", "aufs"),
        ])
    }),
    Case::new("an opaque marker at the root, which hides nothing", || {
        pack(&[Entry::file(".wh..wh..opq", "")])
    })
    .mkfs_fails("Not a directory"),
    Case::new("the documentation of the real base deleted", || {
        pack(&[
            Entry::dir("usr"),
            Entry::dir("usr/share"),
            Entry::whiteout("usr/share/doc"),
        ])
    }),
];
