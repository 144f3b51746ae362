// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The table of what a directory does not tell. Each test names its row.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::time::UNIX_EPOCH;

use resnap_layer::EntryKind;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use super::edges::{all_entries, tar, write_to};
use crate::testing::copies::Chain;
use crate::testing::writing::extract;

/// Returns the entries of a copy of the top layer, each as a text.
fn copied(chain: &Chain) -> Vec<String> {
    let entries = all_entries(chain, chain.layers.len() - 1).into_iter();
    let text = |(entry, data): (resnap_layer::Entry, Vec<u8>)| {
        let path = String::from_utf8(entry.path).unwrap();
        let (mode, seconds) = (entry.metadata.mode, entry.metadata.mtime.seconds);
        let show = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        match entry.kind {
            EntryKind::File(_) => format!("{path}={}", show(data)),
            EntryKind::Directory => format!("{path}/ {mode:o} {seconds}"),
            EntryKind::Hardlink(target) => format!("{path}->{}", show(target)),
            EntryKind::Whiteout => format!("-{path}"),
            EntryKind::Opaque => format!("{path}/ opaque"),
            other => panic!("{other:?}"),
        }
    };
    // The root is an entry if resnap wrote the snapshot.
    entries
        .map(text)
        .filter(|text| !text.starts_with('/'))
        .collect()
}

/// Checks that the table has a row, and what a copy of the top layer has.
fn row(row: &str, chain: &Chain, expected: &[&str]) {
    let table = include_str!("../../sibling.rs");
    assert!(table.contains(&format!("\n//! | {row} | ")), "{row}");
    assert_eq!(copied(chain), expected, "{row}");
}

fn chain(layers: &[resnap_layer::testing::Tar]) -> Chain {
    let mut chain = Chain::new(&std::env::temp_dir());
    for layer in layers {
        assert!(chain.add(&layer.bytes));
    }
    chain
}

#[test]
#[ignore = "needs root: make test runs it"]
fn entries_of_files() {
    let layer = tar().file("b", "1").file("a", "2").file("b", "3");
    let name = "the order of entries, several entries of one path";
    row(name, &chain(&[layer]), &["a=2", "b=3"]);

    let layer = tar().file("b", "1").hardlink("a", "b");
    let name = "which name of a file is the entry, and which are hard links to it";
    row(name, &chain(&[layer]), &["a=1", "b->a"]);

    let mode = [(100, &b"0000600\0"[..])];
    let layer = tar().file("a", "1").pax(&[("linkpath", b"a")]);
    let layer = layer.with(b'1', "b", b"", &mode);
    let linked = chain(&[layer]);
    let name = "owner and mode that a hard link's own entry has";
    row(name, &linked, &["a=1", "b->a"]);
    let modes = all_entries(&linked, 0).into_iter().skip(1);
    let modes = modes.map(|(entry, _)| entry.metadata.mode);
    assert_eq!(modes.collect::<Vec<_>>(), [0o600, 0o600]);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn entries_of_directories() {
    let base = tar().directory("a/");
    let stated = tar().directory("a/").file("a/file", "");
    let bed = chain(&[base, stated]);
    // As if the entry had the time of unpacking.
    write_to(&bed.layers[1].join("a"));
    let name = "an entry of a directory, with a time between Prepare and its last change, and mode, owner and attributes as below";
    row(name, &bed, &["a/file="]);

    let bed = chain(&[tar().directory("a/"), tar().file("a/file", "")]);
    let name = "no entry of a directory, if resnap wrote the snapshot";
    row(name, &bed, &["a/ 4751 1000", "a/file="]);

    let bed = chain(&[tar().directory("./").file("file", "")]);
    write_to(&bed.layers[0]);
    let root = File::open(&bed.layers[0]).unwrap();
    root.set_permissions(fs::Permissions::from_mode(0o755))
        .unwrap();
    std::os::unix::fs::fchown(&root, Some(0), Some(0)).unwrap();
    let name = "an entry of a directory that whoever wrote the snapshot skipped: containerd does so for the root";
    row(name, &bed, &["file="]);
    assert!(
        all_entries(&bed, 0)
            .iter()
            .all(|(entry, _)| !entry.path.is_empty())
    );
}

#[test]
#[ignore = "needs root: make test runs it"]
fn markers() {
    let base = || tar().directory("a/").file("a/old", "").file("b", "");
    let both = tar().file(".wh.b", "").file("b", "new");
    let name = "a whiteout, and then an entry of the same path";
    row(name, &chain(&[base(), both]), &["b=new"]);

    let mut bed = chain(&[base()]);
    let device = bed.add_empty().join("b");
    mknodat(CWD, &device, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    row("a device 0:0", &bed, &["-b"]);

    let name = "a whiteout in the lowest layer";
    let nothing = || tar().file(".wh.nothing", "");
    row(name, &chain(&[nothing()]), &[]);
    row(name, &chain(&[base(), nothing()]), &["-nothing"]);

    let mut bed = Chain::new(&std::env::temp_dir());
    bed.add_empty();
    row("files that whoever wrote the snapshot left out", &bed, &[]);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn times_data_and_attributes() {
    let bed = chain(&[tar().file("file", "x")]);
    let file = File::open(bed.layers[0].join("file")).unwrap();
    file.set_times(
        fs::FileTimes::new()
            .set_accessed(UNIX_EPOCH)
            .set_modified(UNIX_EPOCH + std::time::Duration::from_secs(5)),
    )
    .unwrap();
    row("times of access", &bed, &["file=x"]);
    let to = tempfile::tempdir().unwrap();
    bed.copy(0, |layer| extract(layer, to.path(), &[])).unwrap();
    let stat = to.path().join("file").metadata().unwrap();
    assert_eq!((stat.atime(), stat.mtime()), (5, 5));

    let mut bed = Chain::new(&std::env::temp_dir());
    let sparse = File::create(bed.add_empty().join("file")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    sparse.write_all_at(b"x", 1 << 20).unwrap();
    row(
        "holes, or zeros",
        &bed,
        &[&format!("file=x{}", "\0".repeat(4095))],
    );

    let bed = chain(&[tar().file("file", "")]);
    let path = bed.layers[0].join("file");
    lsetxattr(&path, "trusted.x", b"x", XattrFlags::empty()).unwrap();
    lsetxattr(&path, "user.x", b"x", XattrFlags::empty()).unwrap();
    let name = "attributes other than `security.capability`, `system.posix_acl_*`, `user.*`";
    row(name, &bed, &["file="]);
    let entries = all_entries(&bed, 0);
    let xattrs = entries.iter().flat_map(|(entry, _)| &entry.metadata.xattrs);
    let names: Vec<_> = xattrs.map(|xattr| &xattr.name[..]).collect();
    assert_eq!(names, [b"user.x"]);
    // Of "attributes, and times, that the snapshot's file system does not have", and of inherited access
    // control lists (`inherited_lists_are_copied`), there is nothing else to see in the entries.
}
