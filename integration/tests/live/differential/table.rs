// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Differences from containerd's differ on `overlayfs` that are made on purpose, and behaviour that is the same:
//! each row is held against a containerd.

use resnap_integration::image::Entry;
use resnap_integration::tree::Field;

use super::tars::Tars;

/// A few layers that show one thing.
pub(crate) struct Row {
    pub(crate) what: &'static str,
    /// Why resnap does so.
    pub(crate) why: &'static str,
    pub(crate) layers: fn() -> Tars,
    pub(crate) containerd: ContainerdResult,
    pub(crate) resnap: ResnapResult,
    pub(crate) native: Native,
}

/// The expected result of containerd.
pub(crate) enum ContainerdResult {
    /// The same, or what resnap refuses.
    Takes,
    /// It refuses the last layer with this error.
    Refuses(&'static str),
    /// Its tree differs in this, but for the root's time.
    Differs(&'static [(&'static str, Field)]),
    /// It lists these names, which do not exist.
    Lists(&'static [&'static str]),
}

/// The expected result of resnap.
pub(crate) enum ResnapResult {
    /// There are these paths.
    Has(&'static [&'static str]),
    /// It refuses the last layer with this error.
    Refuses(&'static str),
}

/// The result of resnap in a full copy.
pub(crate) enum Native {
    /// The same.
    Same,
    /// It refuses the last layer with this error.
    Refuses(&'static str),
    /// The same as containerd there: it follows symbolic links of lower layers.
    Follows,
}

use ContainerdResult::{Differs, Lists, Refuses, Takes};
use Native::{Follows, Same};
use ResnapResult::Has;

const SPEC: &str = "image spec: whiteouts are about lower layers, wherever they stand";
const ONE_SIDED: &str = "an honest layer, and a tree that no containerd has otherwise";

const fn row(
    what: &'static str,
    why: &'static str,
    layers: fn() -> Tars,
    containerd: ContainerdResult,
    resnap: ResnapResult,
) -> Row {
    Row {
        what,
        why,
        layers,
        containerd,
        resnap,
        native: Same,
    }
}

impl Row {
    const fn on_native(mut self, native: Native) -> Self {
        self.native = native;
        self
    }
}

fn whiteout(path: &str) -> Entry {
    Entry::whiteout(path)
}

fn file(path: &str) -> Entry {
    Entry::file(path, "")
}

/// Version 2, then `u::rwx,g::r-x,o::r-x`.
const LIST: &[u8] = b"\x02\0\0\0\
    \x01\0\x07\0\xff\xff\xff\xff\x04\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";

/// Returns a directory `d` with a file `d/x`.
fn below() -> Vec<Entry> {
    vec![Entry::dir("d"), file("d/x")]
}

pub(crate) const ROWS: &[Row] = &[
    row(
        "whiteouts in a directory, and then its own",
        "umoci and kaniko write it",
        || {
            vec![
                below(),
                vec![whiteout("d/x"), whiteout("d/y"), whiteout("d")],
            ]
        },
        Refuses("file exists"),
        Has(&[]),
    ),
    row(
        "the whiteout of a directory, and then those in it",
        "umoci and kaniko write it",
        || {
            vec![
                below(),
                vec![whiteout("d"), whiteout("d/s/x"), whiteout("d/y")],
            ]
        },
        Refuses("not a directory"),
        Has(&[]),
    ),
    row(
        "the whiteout of a directory between those in it",
        "umoci and kaniko write it",
        || {
            vec![
                below(),
                vec![whiteout("d/x"), whiteout("d"), whiteout("d/y")],
            ]
        },
        Refuses("file exists"),
        Has(&[]),
    ),
    row(
        "a whiteout in a directory that no other layer has",
        "there is nothing of that name",
        || vec![vec![file("a")], vec![Entry::dir("d"), whiteout("d/x")]],
        Lists(&["d/x"]),
        Has(&["a", "d"]),
    ),
    row(
        "a whiteout beside an opaque marker",
        "there is nothing of that name",
        || {
            vec![
                below(),
                vec![Entry::dir("d"), Entry::opaque("d"), whiteout("d/x")],
            ]
        },
        Lists(&["d/x"]),
        Has(&["d"]),
    ),
    row(
        "a whiteout and a directory of one name",
        SPEC,
        || vec![below(), vec![whiteout("d"), Entry::dir("d"), file("d/y")]],
        Differs(&[("d/x", Field::Presence)]),
        Has(&["d", "d/y"]),
    ),
    row(
        "a file and then its whiteout",
        SPEC,
        || vec![vec![file("a")], vec![file("w"), whiteout("w")]],
        Refuses("file exists"),
        Has(&["a", "w"]),
    ),
    row(
        "a whiteout twice",
        SPEC,
        || {
            vec![
                vec![file("a"), file("w")],
                vec![whiteout("w"), whiteout("w")],
            ]
        },
        Refuses("file exists"),
        Has(&["a"]),
    ),
    row(
        "a file and then its whiteout in the lowest layer",
        "nothing lies below, so it can only mean the file",
        || vec![vec![file("a"), file("w"), whiteout("w")]],
        Takes,
        Has(&["a"]),
    ),
    row(
        "an opaque marker in the lowest layer after what is in a directory that is not stated",
        "a marker is about lower layers; containerd forgets that it made the directory",
        || vec![vec![file("d/s/x"), Entry::opaque("d")]],
        Differs(&[
            ("d", Field::Mtime),
            ("d/s", Field::Presence),
            ("d/s/x", Field::Presence),
        ]),
        Has(&["d", "d/s", "d/s/x"]),
    ),
    row(
        "a file and then a directory of one name, with one below",
        "as containerd",
        || vec![below(), vec![file("d"), Entry::dir("d"), file("d/y")]],
        Takes,
        Has(&["d", "d/x", "d/y"]),
    )
    .on_native(Native::Refuses("would show again")),
    row(
        "a whiteout through a symbolic link of its layer",
        "its time is that of below: the time of unpacking is of this node",
        || {
            let lower = vec![Entry::dir("b"), file("b/f"), file("b/g")];
            vec![lower, vec![Entry::symlink("a", "b"), whiteout("a/f")]]
        },
        Differs(&[("b", Field::Mtime)]),
        Has(&["a", "b", "b/g"]),
    ),
    row(
        "an opaque marker of the root",
        "an overlay knows none, and no snapshotter is to show another tree",
        || {
            let lower = vec![Entry::dir("d").mode(0o711), file("x")];
            vec![lower, vec![Entry::opaque("."), file("d/y")]]
        },
        // The time of unpacking.
        Differs(&[("d", Field::Mtime)]),
        Has(&["d", "d/y", "x"]),
    ),
    row(
        "a hard link with another mode and owner",
        "as containerd",
        || {
            let link = Entry::hardlink("b", "a").mode(0o4755).owner(7, 8).mtime(9);
            vec![vec![
                file("a").xattr("user.a", "1"),
                link.xattr("user.b", "2"),
            ]]
        },
        Takes,
        Has(&["a", "b"]),
    ),
    row(
        "a hard link to itself",
        "GNU tar takes it",
        || vec![vec![file("a"), Entry::hardlink("a", "a")]],
        Refuses("no such file or directory"),
        Has(&["a"]),
    ),
    row(
        "a hard link through ..",
        "its target depends on who reads it",
        || {
            vec![vec![
                Entry::dir("d"),
                file("a"),
                Entry::hardlink("b", "d/../a"),
            ]]
        },
        Takes,
        ResnapResult::Refuses("through `..`"),
    ),
    row(
        "a sparse file of the old GNU type",
        ONE_SIDED,
        || vec![vec![Entry::new(b'S', "sparse").gnu_names()]],
        Refuses("unhandled tar header type"),
        Has(&["sparse"]),
    ),
    row(
        "the root's own entry",
        "the image says so, and other tools heed it",
        || vec![vec![Entry::dir("./").mode(0o700).owner(7, 8), file("a")]],
        Differs(&[(".", Field::Mode), (".", Field::Uid), (".", Field::Gid)]),
        Has(&["a"]),
    ),
    row(
        "a time before 1970",
        "the file system has it",
        || vec![vec![file("a").mtime(-1000)]],
        Differs(&[("a", Field::Mtime)]),
        Has(&["a"]),
    ),
    row(
        "the time of a directory that is neither stated nor below",
        "1970: the time of unpacking is of this node",
        || vec![vec![file("d/x")]],
        Differs(&[("d", Field::Mtime)]),
        Has(&["d", "d/x"]),
    ),
    row(
        "the time of a directory that something else replaces",
        "each thing has the time that is stated of it",
        || vec![vec![Entry::dir("d").mtime(5), file("d").mtime(7)]],
        Differs(&[("d", Field::Mtime)]),
        Has(&["d"]),
    ),
    row(
        "attributes of a directory that is stated twice",
        "the last entry says all",
        || {
            let states = ["user.a", "user.b"].map(|name| Entry::dir("d").xattr(name, "1"));
            vec![states.to_vec()]
        },
        Differs(&[("d", Field::Xattr)]),
        Has(&["d"]),
    ),
    row(
        "a directory that is not stated in one with a set-group-ID bit",
        "root's, as all that is neither stated nor below: whether the bit is set by then is by chance",
        || {
            vec![vec![
                Entry::dir("d").mode(0o2755).owner(0, 9),
                file("d/s/x"),
            ]]
        },
        Differs(&[("d/s", Field::Gid), ("d/s", Field::Mtime)]),
        Has(&["d", "d/s", "d/s/x"]),
    ),
    row(
        "a directory that is not stated in the place of a lower symbolic link",
        "it is new; containerd gives it the metadata of what the link leads to",
        || {
            let lower = vec![
                Entry::dir("b").mode(0o711).owner(7, 8),
                Entry::symlink("a", "b"),
            ];
            vec![lower, vec![file("a/x")]]
        },
        Differs(&[
            ("a", Field::Mode),
            ("a", Field::Uid),
            ("a", Field::Gid),
            ("a", Field::Mtime),
        ]),
        Has(&["a", "a/x", "b"]),
    )
    .on_native(Follows),
    row(
        "a directory that is not stated, where the lower one is hidden",
        "it is new; containerd gives it the metadata of the hidden one",
        || {
            let lower = vec![Entry::dir("d"), Entry::dir("d/s").mode(0o711)];
            let opaque = vec![Entry::dir("d"), Entry::opaque("d")];
            vec![lower, opaque, vec![file("d/s/x")]]
        },
        Differs(&[
            ("d/s", Field::Mode),
            ("d/s", Field::Mtime),
            ("d", Field::Mtime),
        ]),
        Has(&["d", "d/s", "d/s/x"]),
    ),
    row(
        "a directory in the place of a lower symbolic link that leads nowhere",
        ONE_SIDED,
        || vec![vec![Entry::symlink("a", "a")], vec![file("a/x")]],
        Refuses("too many links"),
        Has(&["a", "a/x"]),
    )
    .on_native(Native::Refuses("symbolic links")),
    row(
        "a file in a directory with a default access control list",
        "only files made there would inherit it; an EROFS image has no such thing",
        || {
            let dir = Entry::dir("d").xattr("system.posix_acl_default", LIST);
            vec![vec![dir, file("d/x")]]
        },
        Takes,
        ResnapResult::Refuses("default access control list"),
    ),
];
