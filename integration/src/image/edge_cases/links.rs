// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Hard and symbolic links. A hard link to a lower layer's file is in the refused rows.

use std::io;

use super::super::tar_entry::Entry;
use super::case::{Case, within};

pub(super) const CASES: &[Case] = &[
    Case::new("hard links", || {
        within(
            "t/hard",
            [
                Entry::dir("dir"),
                Entry::file("a", "one inode")
                    .owner(1000, 1000)
                    .xattr("user.a", "1"),
                Entry::hardlink("b", "a").owner(1000, 1000),
                Entry::hardlink("dir/c", "b").owner(1000, 1000),
                Entry::file("of-lower", "to be replaced"),
                Entry::hardlink("stays", "of-lower"),
                Entry::file("kept", "to lose a name"),
                Entry::hardlink("lost", "kept"),
            ],
        )
    }),
    Case::new("hard links to what is no file", || {
        within(
            "t/hard-special",
            [
                Entry::symlink("symlink", "nowhere"),
                Entry::hardlink("symlink-2", "symlink"),
                Entry::fifo("fifo"),
                Entry::hardlink("fifo-2", "fifo"),
                Entry::char_device("null", 1, 3),
                Entry::hardlink("null-2", "null"),
            ],
        )
    }),
    Case::new(
        "a hard link that states other metadata than its file",
        || {
            within(
                "t/hard-metadata",
                [
                    Entry::file("a", "a")
                        .mode(0o600)
                        .owner(1000, 1000)
                        .mtime(1_000_000_000),
                    Entry::hardlink("b", "a").mode(0o644).owner(2000, 2000),
                ],
            )
        },
    ),
    Case::new("a hard link whose target is replaced in the layer", || {
        within(
            "t/hard-replaced",
            [
                Entry::file("a", "old"),
                Entry::hardlink("b", "a"),
                Entry::file("a", "new"),
            ],
        )
    }),
    Case::new("a hard link in the place of a file", || {
        within(
            "t/hard-over",
            [
                Entry::file("a", "a"),
                Entry::file("b", "b"),
                Entry::hardlink("b", "a"),
            ],
        )
    }),
    Case::new(
        "hard links of a lower layer, one name replaced and one deleted",
        || {
            within(
                "t/hard",
                [Entry::file("of-lower", "replaced"), Entry::whiteout("lost")],
            )
        },
    ),
    Case::new("symbolic links", || {
        within(
            "t/symlinks",
            [
                Entry::symlink("dangling", "nowhere"),
                Entry::symlink("itself", "itself"),
                Entry::symlink("absolute", "/etc/passwd"),
                Entry::symlink("out", "../../../../../etc/passwd"),
                Entry::symlink("slash", "../names/"),
                Entry::symlink("bytes", b"\xff\n "),
                Entry::symlink("long", "l".repeat(200) + "/" + &"m".repeat(200)),
                Entry::symlink("longest", "x/".repeat(1500)),
                Entry::symlink("long-gnu", "l".repeat(200)).gnu_names(),
            ],
        )
    }),
    Case::new(
        "a file through the layer's own symbolic link, relative",
        || through("t/through-relative", "real"),
    )
    .mkfs_fails("Could not format the device"),
    Case::new(
        "a file through the layer's own symbolic link, absolute",
        || through("t/through-absolute", "/t/through-absolute/real"),
    )
    .mkfs_fails("Could not format the device"),
    Case::new(
        "a file through the layer's own symbolic link, out of the root",
        || through("t/through-out", "../../../../t/through-out/real"),
    )
    .mkfs_fails("Could not format the device"),
    Case::new("directories for the next layer's symbolic links", || {
        within(
            "t/through-lower",
            [
                Entry::dir("real"),
                Entry::file("real/of-lower", "lower"),
                Entry::symlink("link", "real"),
            ],
        )
    }),
    Case::new("a file through a lower layer's symbolic link", || {
        within("t/through-lower", [Entry::file("link/of-upper", "upper")])
    }),
];

/// Returns a directory, a symbolic link `to` it, and a file whose path goes through the link.
fn through(dir: &str, to: &str) -> io::Result<Vec<u8>> {
    let link = Entry::symlink("link", to);
    within(
        dir,
        [
            Entry::dir("real"),
            link,
            Entry::file("link/file", "through"),
        ],
    )
}
