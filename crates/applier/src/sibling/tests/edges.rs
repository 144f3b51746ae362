// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Files, directories and markers of all kinds.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use resnap_layer::testing::{Metadata, Tar};
use resnap_layer::{Entry, EntryKind, EntrySource as _};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use crate::testing::copies::Chain;
use crate::testing::writing::extract;

/// `u::rwx,g::r-x,o::r-x`.
const LIST: &[u8] = b"\x02\0\0\0\
    \x01\0\x07\0\xff\xff\xff\xff\x04\0\x05\0\xff\xff\xff\xff\x20\0\x05\0\xff\xff\xff\xff";

pub(super) fn tar() -> Tar {
    Tar::new(Metadata {
        mode: 0o4751,
        uid: 7,
        gid: 8,
        mtime: 1000,
        device: (8, 0xf_ffff),
    })
}

/// Makes a directory look as if it were not stated.
pub(super) fn write_to(directory: &Path) {
    let path = directory.join("new");
    File::create(&path).unwrap();
    fs::remove_file(path).unwrap();
}

/// Returns the entries of a copy, with the data of each.
pub(super) fn all_entries(chain: &Chain, index: usize) -> Vec<(Entry, Vec<u8>)> {
    let all = chain.copy(index, |layer| {
        let mut all = Vec::new();
        while let Some(entry) = layer.next()? {
            let mut data = Vec::new();
            while let Some(piece) = layer.data()? {
                data.extend_from_slice(piece.bytes);
            }
            all.push((entry, data));
        }
        Ok(all)
    });
    all.unwrap()
}

/// Returns the entries of a copy: path, and whether it is a directory, a marker or a file.
pub(super) fn entries(chain: &Chain, index: usize) -> Vec<(String, &'static str)> {
    let mut entries = Vec::new();
    for (entry, _) in all_entries(chain, index) {
        let kind = match entry.kind {
            EntryKind::Directory => "directory",
            EntryKind::Whiteout => "whiteout",
            EntryKind::Opaque => "opaque",
            EntryKind::Hardlink(_) => "link",
            _ => "file",
        };
        entries.push((String::from_utf8(entry.path).unwrap(), kind));
    }
    entries
}

#[test]
#[ignore = "needs root: make test runs it"]
fn all_kinds_are_copied() {
    let mut chain = Chain::new(&std::env::temp_dir());
    let long = "long-".repeat(50);
    let far = format!("{long}/{long}/{long}/file");
    let time: &[u8] = b"-12345.000000001";
    let base = tar()
        .directory("d/")
        .file("d/file", "text")
        .hardlink("d/a-link", "d/file")
        .hardlink("z", "d/file")
        .symlink("d/soft", "/etc/passwd")
        .hardlink("d/soft2", "d/soft")
        .with(b'6', "d/fifo", b"", &[])
        .hardlink("d/fifo2", "d/fifo")
        .with(b'3', "d/character", b"", &[])
        .with(b'4', "d/block", b"", &[])
        .pax(&[("path", far.as_bytes())])
        .file("long", "x")
        .pax(&[("linkpath", "t".repeat(4000).as_bytes())])
        .symlink("soft-long", "")
        .pax(&[("uid", b"4294967294"), ("gid", b"3000000"), ("mtime", time)])
        .file("large-owner", "x")
        .pax(&[("mtime", b"-0.000000001")])
        .file("before", "x")
        .pax(&[("mtime", b"9999999999.999999999")])
        .directory("after/")
        .pax(&[
            ("SCHILY.xattr.user.x", b"a\0=\n\xff"),
            ("SCHILY.xattr.user.empty", b""),
            (
                "SCHILY.xattr.security.capability",
                b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            ),
        ])
        .file("attributes", "x")
        .pax(&[("SCHILY.xattr.system.posix_acl_default", LIST)])
        .directory("list/")
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.realsize", b"3000000001"),
        ])
        .file("sparse", {
            let mut data = b"2\n1048576\n1\n2000000000\n4096\n".to_vec();
            data.resize(512, 0);
            data.extend([b'x'; 4097]);
            data
        })
        .file("empty", "")
        .file("unstated/unstated/file", "");
    let upper = tar()
        .file(".wh.z", "")
        .file("d/.wh.nothing", "")
        .file("d/fifo/in", "now a directory")
        .file("list", "now a file")
        .file("unstated/.wh..wh..opq", "")
        .directory("after/")
        .file("after/.wh..wh..opq", "")
        .file(".wh..wh..wh.aufs", "");
    let top = tar().file(".wh..wh..opq", "").file("unstated/f", "x");
    for layer in [base, upper, top] {
        assert!(chain.add(&layer.bytes));
    }
    chain.check();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn names_are_bytes() {
    let mut chain = Chain::new(&std::env::temp_dir());
    let directory = chain.add_empty();
    for name in [&b"\xff\xfe"[..], b"a\nb", b" ", b"\\", b"caf\xe9"] {
        fs::write(directory.join(OsStr::from_bytes(name)), name).unwrap();
    }
    let mut names = Vec::new();
    for (entry, data) in all_entries(&chain, 0) {
        assert_eq!(data, entry.path);
        names.push(entry.path);
    }
    assert_eq!(names, [&b" "[..], b"\\", b"a\nb", b"caf\xe9", b"\xff\xfe"]);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn holes_cost_nothing() {
    let mut chain = Chain::new(&std::env::temp_dir());
    let directory = chain.add_empty();
    let file = File::create(directory.join("file")).unwrap();
    let extents = 3000;
    for at in 0..extents {
        file.write_all_at(b"x", at << 21).unwrap();
    }
    file.set_len(1 << 40).unwrap();
    File::create(directory.join("hole"))
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let size: usize = all_entries(&chain, 0)
        .iter()
        .map(|(_, data)| data.len())
        .sum();
    assert!(size as u64 <= extents * 4096, "{size}");
    let to = tempfile::tempdir().unwrap();
    chain
        .copy(0, |layer| extract(layer, to.path(), &[]))
        .unwrap();
    let copy = File::open(to.path().join("file")).unwrap();
    let metadata = copy.metadata().unwrap();
    assert_eq!(metadata.len(), 1 << 40);
    assert!(metadata.blocks() <= file.metadata().unwrap().blocks());
    let mut byte = [0];
    for at in 0..extents {
        copy.read_exact_at(&mut byte, at << 21).unwrap();
        assert_eq!(byte, *b"x");
    }
    assert_eq!(to.path().join("hole").metadata().unwrap().len(), 1 << 40);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn small_holes_are_filled_if_there_are_too_many() {
    let mut chain = Chain::new(&std::env::temp_dir());
    let directory = chain.add_empty();
    let file = File::create(directory.join("file")).unwrap();
    for at in 0..70_000 {
        file.write_all_at(b"x", at << 14).unwrap();
    }
    let to = tempfile::tempdir().unwrap();
    chain
        .copy(0, |layer| extract(layer, to.path(), &[]))
        .unwrap();
    let (mut one, mut other) = (Vec::new(), Vec::new());
    File::open(directory.join("file"))
        .unwrap()
        .read_to_end(&mut one)
        .unwrap();
    File::open(to.path().join("file"))
        .unwrap()
        .read_to_end(&mut other)
        .unwrap();
    assert!(one == other);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn directories_that_only_have_children_are_not_stated() {
    let mut chain = Chain::new(&std::env::temp_dir());
    let base = tar().directory("a/").directory("a/b/").directory("list/");
    assert!(chain.add(&base.bytes));
    let upper = tar()
        .file("a/b/file", "x")
        .file("a/c/file", "x")
        .directory("own/");
    assert!(chain.add(&upper.bytes));
    // As containerd leaves them.
    for path in ["", "a", "a/b", "a/c"] {
        write_to(&chain.layers[1].join(path));
    }
    let expected = [
        ("a/b/file", "file"),
        ("a/c/file", "file"),
        ("own", "directory"),
    ];
    let found = entries(&chain, 1);
    let found: Vec<_> = found
        .iter()
        .map(|(path, kind)| (&path[..], *kind))
        .collect();
    assert_eq!(found, expected);
    // Their times are those below, as from the blob.
    let differences = chain.differences().unwrap();
    assert!(differences.starts_with("layer 1"), "{differences}");
    for path in ["", "a", "a/b", "a/c"] {
        let directory = File::open(chain.layers[1].join(path)).unwrap();
        let below = fs::metadata(chain.layers[0].join(path));
        let time = below.map_or(std::time::UNIX_EPOCH, |below| below.modified().unwrap());
        directory.set_modified(time).unwrap();
    }
    chain.check();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn empty_directories_exist() {
    let mut chain = Chain::new(&std::env::temp_dir());
    let directory = chain.add_empty();
    fs::create_dir(directory.join("empty")).unwrap();
    fs::create_dir(directory.join("sockets")).unwrap();
    std::os::unix::net::UnixListener::bind(directory.join("sockets/socket")).unwrap();
    assert_eq!(
        entries(&chain, 0),
        [
            ("empty".to_owned(), "directory"),
            ("sockets".to_owned(), "directory"),
        ]
    );
}

#[test]
#[ignore = "needs root: make test runs it"]
fn inherited_lists_are_copied() {
    let mut chain = Chain::new(&std::env::temp_dir());
    let directory = chain.add_empty();
    let list = directory.join("list");
    fs::create_dir(&list).unwrap();
    lsetxattr(&list, "system.posix_acl_default", LIST, XattrFlags::empty()).unwrap();
    // They inherit it.
    fs::create_dir(list.join("in")).unwrap();
    fs::write(list.join("in/file"), "x").unwrap();
    fs::set_permissions(list.join("in/file"), fs::Permissions::from_mode(0o640)).unwrap();
    for path in ["list/in", "list", ""] {
        let directory = File::open(directory.join(path)).unwrap();
        directory.set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    chain.check();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn layers_made_by_a_mount_are_copied() {
    let mut chain = Chain::new(&std::env::temp_dir());
    assert!(
        chain.add(
            &tar()
                .directory("d/")
                .file("d/file", "x")
                .file("gone", "")
                .bytes
        )
    );
    let directory = chain.add_empty();
    fs::create_dir(directory.join("d")).unwrap();
    std::os::unix::fs::chown(directory.join("d"), Some(7), Some(8)).unwrap();
    fs::set_permissions(directory.join("d"), fs::Permissions::from_mode(0o4751)).unwrap();
    for (name, value) in [("origin", b"x"), ("impure", b"y"), ("opaque", b"y")] {
        let name = format!("trusted.overlay.{name}");
        lsetxattr(directory.join("d"), name, value, XattrFlags::empty()).unwrap();
    }
    lsetxattr(
        directory.join("d"),
        "trusted.other",
        b"x",
        XattrFlags::empty(),
    )
    .unwrap();
    // overlayfs links its whiteouts to each other.
    let gone = directory.join("gone");
    mknodat(CWD, &gone, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    fs::hard_link(&gone, directory.join("gone2")).unwrap();
    let found = entries(&chain, 1);
    let found: Vec<_> = found
        .iter()
        .map(|(path, kind)| (&path[..], *kind))
        .collect();
    assert_eq!(
        found,
        [("gone", "whiteout"), ("gone2", "whiteout"), ("d", "opaque")]
    );
}
