// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Modes, owners, times and extended attributes, and who states them.

use super::super::tar_entry::{Entry, pack};
use super::case::{Case, within};

/// `CAP_NET_BIND_SERVICE` effective and permitted, revision 2, as the kernel stores it.
const CAPABILITY: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// `user::rw-,user:1000:r--,group::r--,mask::r--,other::---`, as the kernel stores it.
const ACL: &[u8] = b"\x02\0\0\0\
    \x01\0\x06\0\xff\xff\xff\xff\
    \x02\0\x04\0\xe8\x03\0\0\
    \x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x04\0\xff\xff\xff\xff\
    \x20\0\0\0\xff\xff\xff\xff";

pub(super) const CASES: &[Case] = &[
    Case::new("modes", || {
        within(
            "t/modes",
            [
                Entry::file("setuid", "u").mode(0o4755),
                Entry::file("setgid", "g").mode(0o2755),
                Entry::file("setuid-of-1000", "o")
                    .mode(0o6711)
                    .owner(1000, 1000),
                Entry::file("none", "n").mode(0),
                Entry::file("all", "a").mode(0o7777),
                Entry::file("with-type-bits", "t").mode(0o10_0644),
                Entry::dir("sticky").mode(0o1777),
                Entry::dir("setgid-dir").mode(0o2770),
                Entry::file("setgid-dir/inherits-nothing", "").mode(0o600),
                Entry::dir("closed").mode(0),
                Entry::file("closed/file", "c"),
            ],
        )
    }),
    Case::new("owners", || {
        within(
            "t/owners",
            [
                Entry::file("nobody", "").owner(65_534, 65_534),
                Entry::file("octal-max", "").owner(0o777_7777, 0o777_7777),
                Entry::file("base-256", "").owner(0o1000_0000, 1 << 31),
                Entry::file("u32-max", "").owner((1 << 32) - 2, (1 << 32) - 2),
                Entry::file("pax", "")
                    .owner(1, 2)
                    .pax("uid", "3000000")
                    .pax("gid", "4000000"),
                Entry::symlink("symlink", "nobody").owner(1000, 1001),
                Entry::dir("dir").owner(1000, 1001),
                Entry::fifo("fifo").owner(1000, 1001),
            ],
        )
    }),
    Case::new("times", || {
        within(
            "t/times",
            [
                Entry::file("nanoseconds", "").pax("mtime", "1700000000.123456789"),
                Entry::file("one-digit", "").pax("mtime", "1700000000.5"),
                Entry::file("all-three", "")
                    .pax("atime", "1600000000.1")
                    .pax("ctime", "1650000000.2")
                    .pax("mtime", "1700000000.3"),
                Entry::file("epoch", "").mtime(0),
                Entry::file("in-2242", "").mtime(0o777_7777_7777),
                Entry::symlink("symlink", "epoch").mtime(1_000_000_000),
                Entry::fifo("fifo").mtime(1_000_000_000),
            ],
        )
    }),
    Case::new("a time before 1970", || {
        within("t/before-1970", [Entry::file("file", "").mtime(-1)])
    })
    .mkfs_fails("invalid tar"),
    Case::new("a time before 1970 by PAX", || {
        within(
            "t/before-1970",
            [Entry::file("pax", "").pax("mtime", "-1.5")],
        )
    }),
    Case::new("times of directories with later content", || {
        within(
            "t/dir-times",
            [
                Entry::dir("a").mtime(1_000_000_000),
                Entry::dir("a/b").pax("mtime", "1100000000.25"),
                Entry::file("a/b/late", "late"),
                Entry::file("a/later", "later"),
            ],
        )
    }),
    Case::new("extended attributes", || {
        within(
            "t/xattrs",
            [
                Entry::file("user", "")
                    .xattr("user.a", "1")
                    .xattr("user.b.c", "2"),
                Entry::file("bytes", "").xattr("user.bytes", b"\0\n=\xff\0"),
                Entry::file("empty", "").xattr("user.empty", ""),
                Entry::file("large", "").xattr("user.large", vec![b'x'; 2000]),
                Entry::file("name=with=equals", "").xattr("user.plain", "a=b=c"),
                Entry::file("capability", "")
                    .mode(0o755)
                    .xattr("security.capability", CAPABILITY),
                Entry::file("acl", "")
                    .mode(0o640)
                    .xattr("system.posix_acl_access", ACL),
                Entry::dir("dir").xattr("user.dir", "d"),
                Entry::symlink("symlink", "dir").xattr("security.test", "1"),
                Entry::dir("dir-acl")
                    .mode(0o740)
                    .xattr("system.posix_acl_default", ACL),
            ],
        )
    }),
    Case::new("extended attributes that Linux does not take", || {
        within(
            "t/xattrs-not-taken",
            [
                Entry::file("unknown-namespace", "").xattr("vendor.a", "1"),
                Entry::symlink("user-on-symlink", "x").xattr("user.a", "1"),
                Entry::char_device("user-on-device", 1, 3).xattr("user.a", "1"),
            ],
        )
    }),
    Case::new("trusted attributes", || {
        within(
            "t/trusted",
            [
                Entry::file("file", "").xattr("trusted.mine", "1"),
                Entry::dir("dir").xattr("trusted.overlay.opaque", "y"),
            ],
        )
    }),
    Case::new("a directory to be restated, and one not to be", || {
        within(
            "t/restated",
            [
                Entry::dir("yes")
                    .mode(0o700)
                    .owner(1000, 1000)
                    .xattr("user.lower", "1"),
                Entry::file("yes/x", "x"),
                Entry::dir("no")
                    .mode(0o700)
                    .owner(1000, 1000)
                    .xattr("user.lower", "1"),
                Entry::dir("no/nor-this")
                    .mode(0o2750)
                    .owner(1001, 1002)
                    .mtime(1_000_000_000),
                Entry::file("no/x", "x"),
            ],
        )
    }),
    Case::new("a directory restated with other metadata", || {
        within(
            "t/restated",
            [
                Entry::dir("yes")
                    .mode(0o755)
                    .owner(2000, 2000)
                    .xattr("user.upper", "2"),
                Entry::file("yes/y", "y"),
            ],
        )
    }),
    Case::new(
        "files in directories of lower layers that are not stated",
        || {
            pack(&[
                Entry::file("t/restated/no/y", "y"),
                Entry::file("t/restated/no/nor-this/y", "y"),
            ])
        },
    ),
    Case::new("a directory stated after its content", || {
        within(
            "t/late",
            [
                Entry::file("dir/file", "file"),
                Entry::dir("dir")
                    .mode(0o750)
                    .owner(1000, 1000)
                    .mtime(1_000_000_000),
            ],
        )
    }),
    Case::new("a directory stated twice", || {
        within(
            "t/twice",
            [
                Entry::dir("dir")
                    .mode(0o700)
                    .owner(1000, 1000)
                    .xattr("user.first", "1"),
                Entry::file("dir/file", "file"),
                Entry::dir("dir")
                    .mode(0o755)
                    .owner(2000, 2000)
                    .xattr("user.second", "2"),
            ],
        )
    }),
];

/// Goes on top: what overlayfs shows of the root is the topmost layer's.
pub(super) const ROOT: &[Case] = &[Case::new("the metadata of the root", || {
    pack(&[Entry::dir("./")
        .mode(0o711)
        .mtime(1_000_000_000)
        .xattr("user.root", "1")])
})];
