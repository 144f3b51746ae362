// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One type in the place of another, over layers and within one.

use super::super::tar_entry::{Entry, pack};
use super::case::{Case, within};

pub(super) const CASES: &[Case] = &[
    Case::new("what the next layers replace", || {
        within(
            "t/replaced",
            [
                Entry::file("file-by-dir", "file"),
                Entry::file("file-by-symlink", "file"),
                Entry::file("file-by-file", "a longer content of the lower layer"),
                Entry::file("file-by-fifo", "file"),
                Entry::dir("dir-by-file"),
                Entry::file("dir-by-file/x", "x"),
                Entry::dir("dir-by-symlink"),
                Entry::file("dir-by-symlink/x", "x"),
                Entry::dir("dir-by-dir").mode(0o700),
                Entry::file("dir-by-dir/x", "x"),
                Entry::symlink("symlink-by-dir", "dir-by-dir"),
                Entry::symlink("symlink-by-file", "file-by-file"),
                Entry::char_device("device-by-file", 1, 3),
            ],
        )
    }),
    Case::new("files by other types", || {
        within(
            "t/replaced",
            [
                Entry::dir("file-by-dir"),
                Entry::file("file-by-dir/x", "x"),
                Entry::symlink("file-by-symlink", "file-by-file"),
                Entry::file("file-by-file", "short").mode(0o600),
                Entry::fifo("file-by-fifo"),
            ],
        )
    }),
    Case::new("directories by other types", || {
        within(
            "t/replaced",
            [
                Entry::file("dir-by-file", "file"),
                Entry::symlink("dir-by-symlink", "dir-by-dir"),
                Entry::dir("dir-by-dir").mode(0o750),
                Entry::file("dir-by-dir/y", "y"),
            ],
        )
    }),
    Case::new("symbolic links and devices by other types", || {
        within(
            "t/replaced",
            [
                Entry::dir("symlink-by-dir"),
                Entry::file("symlink-by-dir/x", "x"),
                Entry::file("symlink-by-file", "file"),
                Entry::file("device-by-file", "file"),
            ],
        )
    }),
    Case::new("and back again", || {
        within(
            "t/replaced",
            [
                Entry::file("file-by-dir", "a file again"),
                Entry::dir("dir-by-file"),
                Entry::file("dir-by-file/z", "z"),
                Entry::dir("dir-by-symlink"),
                Entry::file("dir-by-symlink/z", "z"),
            ],
        )
    }),
    Case::new("entries of one name", || {
        within(
            "t/duplicates",
            [
                Entry::file("file", "first")
                    .mode(0o600)
                    .xattr("user.first", "1"),
                Entry::file("file", "second").mode(0o644),
                Entry::file("file-then-dir", "file"),
                Entry::dir("file-then-dir"),
                Entry::file("file-then-dir/x", "x"),
                Entry::dir("dir-then-file"),
                Entry::file("dir-then-file", "file"),
                Entry::symlink("symlink-then-file", "file"),
                Entry::file("symlink-then-file", "not through the link"),
                Entry::dir("target").mode(0o700),
                Entry::symlink("symlink-then-dir", "target"),
                Entry::dir("symlink-then-dir").mode(0o755),
                Entry::file("symlink-then-dir/x", "x"),
                Entry::file("file-then-symlink", "file"),
                Entry::symlink("file-then-symlink", "file"),
            ],
        )
    }),
    Case::new("a file for the next layer's path", || {
        within("t/below-file", [Entry::file("file", "a file")])
    }),
    Case::new("a path below a lower layer's file", || {
        within("t/below-file", [Entry::file("file/x", "below")])
    }),
    Case::new("real programs replaced", || {
        pack(&[
            Entry::dir("usr"),
            Entry::dir("usr/bin"),
            Entry::symlink("usr/bin/ls", "busybox"),
            Entry::dir("etc"),
            Entry::file("etc/debian_version", "edge cases\n"),
        ])
    }),
];
