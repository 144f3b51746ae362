// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The expected differences between two unpackings of the images of edge cases.

use crate::tree::{Expected, Field};

/// The differences between any two unpacks of [`super::edge_cases`] by containerd's walking differ.
pub const EDGE_CASES_CLOCK: &[Expected] = &[
    clock("."),
    clock(".wh..wh.plnk"),
    clock("t"),
    clock("t/below-file/file"),
    clock("t/nowhere*"),
    clock("t/restated"),
    clock("t/restated/no"),
    clock("t/restated/no/nor-this"),
    clock("t/through-lower/link"),
    clock("t/unstated/*d"),
];

/// In what mkfs.erofs 1.8, run by containerd 2.1, differs from the walking differ on
/// [`super::edge_cases_mkfs`], besides [`EDGE_CASES_CLOCK`].
pub const EDGE_CASES_MKFS: &[Expected] = &[
    unstated(".wh..wh.plnk", Field::Mode),
    unstated("t", Field::Mode),
    unstated("t/nowhere*", Field::Mode),
    unstated("t/opaque/unstated", Field::Mode),
    unstated("t/opaque/unstated", Field::Mtime),
    unstated("t/restated*", Field::Mode),
    unstated("t/restated/no*", Field::Uid),
    unstated("t/restated/no*", Field::Gid),
    unstated("t/restated/no", Field::Xattr),
    fraction("t/before-1970/pax"),
    fraction("t/dir-times/a/b"),
    fraction("t/times/all-three"),
    fraction("t/times/one-digit"),
    link("t/hard-metadata/*", Field::Mode),
    link("t/hard-metadata/*", Field::Uid),
    link("t/hard-metadata/*", Field::Gid),
    link("t/hard-metadata/*", Field::Mtime),
    old("t/old/dir", Field::Mode),
    old("t/old/file", Field::Presence),
    old("t/old/with-content", Field::Presence),
    sparse("t/sparse*/GNUSparseFile*"),
    sparse("t/sparse*/file"),
    Expected {
        path: "t/trusted/file",
        field: Field::Xattr,
        reason: "mkfs.erofs keeps trusted attributes, the walking differ drops them",
    },
];

const fn clock(path: &'static str) -> Expected {
    let reason = "a directory that the layer does not state gets the time of its unpacking";
    Expected {
        path,
        field: Field::Mtime,
        reason,
    }
}

const fn unstated(path: &'static str, field: Field) -> Expected {
    let reason = "mkfs.erofs makes a directory that the layer does not state root's, mode 0777";
    Expected {
        path,
        field,
        reason,
    }
}

const fn fraction(path: &'static str) -> Expected {
    let reason = "mkfs.erofs reads the digits after the point as a number of nanoseconds";
    Expected {
        path,
        field: Field::Mtime,
        reason,
    }
}

const fn link(path: &'static str, field: Field) -> Expected {
    let reason = "the walking differ gives a file the metadata of its last hard link";
    Expected {
        path,
        field,
        reason,
    }
}

const fn old(path: &'static str, field: Field) -> Expected {
    let reason = "mkfs.erofs drops entries of type NUL";
    Expected {
        path,
        field,
        reason,
    }
}

const fn sparse(path: &'static str) -> Expected {
    let reason = "mkfs.erofs does not decode sparse files by PAX";
    Expected {
        path,
        field: Field::Presence,
        reason,
    }
}
