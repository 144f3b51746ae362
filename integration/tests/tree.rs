// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The comparer sees one planted difference of every field, and none in an equal copy.
//! Owners, devices and trusted attributes need root; without it these tests fail and say so.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, lchown, symlink};
use std::path::Path;

use resnap_integration::tree::{self, Field, Tree, compare};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use tempfile::TempDir;

/// A change to the right tree, and what must be seen of it.
type Case = (Field, &'static [u8], fn(&Path));

const CASES: [Case; 15] = [
    (Field::Presence, b"added", |at| {
        fs::write(at.join("added"), "").unwrap()
    }),
    (Field::Presence, b"dir/file", |at| {
        fs::remove_file(at.join("dir/file")).unwrap()
    }),
    (Field::Kind, b"link", |at| {
        fs::remove_file(at.join("link")).unwrap();
        fs::write(at.join("link"), "dir").unwrap();
    }),
    (Field::Mode, b"dir", |at| mode(&at.join("dir"), 0o1755)),
    (Field::Mode, b".", |at| mode(at, 0o700)),
    (Field::Uid, b"link", |at| {
        lchown(at.join("link"), Some(7), None).unwrap()
    }),
    (Field::Gid, b"file", |at| {
        chown(at.join("file"), None, Some(7)).unwrap()
    }),
    (Field::Size, b"file", |at| {
        fs::write(at.join("file"), "other content").unwrap()
    }),
    (Field::Content, b"file", |at| {
        fs::write(at.join("file"), "CONTENT").unwrap()
    }),
    (Field::Target, b"link", |at| {
        fs::remove_file(at.join("link")).unwrap();
        symlink("file", at.join("link")).unwrap();
    }),
    (Field::Device, b"null", |at| {
        fs::remove_file(at.join("null")).unwrap();
        node(&at.join("null"), FileType::CharacterDevice, 5);
    }),
    (Field::Mtime, b"pipe", |at| touch(&at.join("pipe"), 1)),
    (Field::Xattr, b"file", |at| {
        xattr(&at.join("file"), "user.a", b"2")
    }),
    (Field::Xattr, b"link", |at| {
        xattr(&at.join("link"), "trusted.a", b"1")
    }),
    (Field::Links, b"one", |at| {
        fs::remove_file(at.join("two")).unwrap();
        fs::write(at.join("two"), "one and two").unwrap();
    }),
];

#[test]
fn every_field_is_compared() {
    for (field, path, change) in CASES {
        let (left, right) = (sample(), sample());
        change(right.path());
        settle(right.path(), field == Field::Mtime);
        let found = compare(&read(left.path()), &read(right.path()));
        let shown: Vec<_> = found.iter().map(ToString::to_string).collect();
        let hit = |found: &&resnap_integration::tree::Difference| {
            found.field == field && found.path == path
        };
        assert_eq!(found.iter().filter(hit).count(), 1, "{field:?}: {shown:#?}");
        // A change of length changes the content too, and a lost link is lost for both names.
        let also = match field {
            Field::Size | Field::Links => 1,
            _ => 0,
        };
        assert_eq!(found.len(), 1 + also, "{field:?}: {shown:#?}");
    }
}

#[test]
fn an_equal_copy_has_no_difference() {
    let (left, right) = (sample(), sample());
    let tree = read(left.path());
    assert_eq!(compare(&tree, &read(right.path())), []);
    assert_eq!(tree.nodes.len(), 10);
    assert_eq!(tree.nodes[&b"one"[..]].links, [b"two"]);
    assert_eq!(
        tree.nodes[&b"odd\n\xff"[..]].mtime,
        (1_000_000_000, 123_456_789)
    );
}

#[test]
fn overlayfs_own_attributes_do_not_count() {
    let (left, right) = (sample(), sample());
    xattr(&right.path().join("dir"), "trusted.overlay.opaque", b"y");
    assert_eq!(compare(&read(left.path()), &read(right.path())), []);
}

#[test]
fn a_mount_point_is_an_error() {
    let dir = sample();
    let at = dir.path().join("dir");
    // Seen by the whole machine, so it goes before anything is asserted.
    rustix::mount::mount(
        "none",
        &at,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    let error = tree::read(dir.path()).unwrap_err();
    rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH).unwrap();
    let error = format!("{error:#}");
    assert!(
        error.contains("cannot read dir: another file system is mounted here"),
        "{error}"
    );
}

/// Returns a tree with one of everything, each time the same.
fn sample() -> TempDir {
    assert!(
        rustix::process::geteuid().is_root(),
        "these tests make devices: run them as root"
    );
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path();
    mode(at, 0o755);
    fs::create_dir(at.join("dir")).unwrap();
    fs::write(at.join("dir/file"), "in a directory").unwrap();
    fs::write(at.join("file"), "content").unwrap();
    chown(at.join("file"), Some(1000), Some(1000)).unwrap();
    xattr(&at.join("file"), "user.a", b"1");
    symlink("dir", at.join("link")).unwrap();
    fs::write(at.join("one"), "one and two").unwrap();
    fs::hard_link(at.join("one"), at.join("two")).unwrap();
    node(&at.join("null"), FileType::CharacterDevice, 3);
    node(&at.join("pipe"), FileType::Fifo, 0);
    fs::write(at.join(std::ffi::OsStr::from_bytes(b"odd\n\xff")), "").unwrap();
    settle(at, false);
    dir
}

/// Gives everything the same modification time, but for the pipe if it was touched.
fn settle(at: &Path, touched: bool) {
    for path in [at.to_owned(), at.join("dir")] {
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            if !(touched && entry.file_name() == "pipe") {
                touch(&entry.path(), 123_456_789);
            }
        }
        touch(&path, 123_456_789);
    }
}

fn touch(path: &Path, nanos: i64) {
    let time = rustix::fs::Timespec {
        tv_sec: 1_000_000_000,
        tv_nsec: nanos,
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn node(path: &Path, kind: FileType, minor: u32) {
    mknodat(
        CWD,
        path,
        kind,
        Mode::from_raw_mode(0o644),
        makedev(1, minor),
    )
    .unwrap();
}

fn xattr(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn read(path: &Path) -> Tree {
    tree::read(path).unwrap()
}
