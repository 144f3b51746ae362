// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Chains that are refused.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, symlink};

use resnap_core::{Kind, error_chain};
use resnap_layer::EntrySource as _;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, mknodat};

use super::edges::tar;
use crate::error::Error;
use crate::sibling::{Entries, chain, inspect_parents};
use crate::testing::copies::Chain;

fn chain() -> Chain {
    let mut chain = Chain::new(&std::env::temp_dir());
    assert!(chain.add(&tar().directory("a/").file("a/file", "x").bytes));
    assert!(chain.add(&tar().file("a/other", "x").bytes));
    chain
}

fn guard() -> crate::guard::Guard {
    tokio_util::sync::CancellationToken::new().into()
}

/// Reads all entries of a copy.
fn read(layer: &mut Entries<'_>) -> Result<(), Error> {
    while layer.next()?.is_some() {
        while layer.data()?.is_some() {}
    }
    Ok(())
}

/// Returns the error of copying a layer.
fn not_copied(chain: &Chain, index: usize) -> String {
    let error = chain.copy(index, read).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    error_chain(&error)
}

/// Returns the error of inspecting all layers of a chain that was made without its parents.
fn refused(chain: &Chain) -> String {
    let layers = 0..chain.layers.len();
    let error =
        inspect_parents(&chain.view(), chain.root().to_path_buf(), layers, &guard()).unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{error}");
    error_chain(&error)
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_chain_without_its_parents_is_refused() {
    for change in ["mode", "owner", "attribute"] {
        let mut chain = Chain::new(&std::env::temp_dir());
        let stated = match change {
            "mode" => tar().with(
                b'5',
                "a/",
                b"",
                &[
                    (100, b"0000700\0"),
                    (108, b"0000000\0"),
                    (116, b"0000000\0"),
                ],
            ),
            "owner" => tar().with(b'5', "a/", b"", &[(100, b"0000755\0")]),
            _ => tar().pax(&[("SCHILY.xattr.user.x", b"y")]).with(
                b'5',
                "a/",
                b"",
                &[
                    (100, b"0000755\0"),
                    (108, b"0000000\0"),
                    (116, b"0000000\0"),
                ],
            ),
        };
        assert!(chain.add(&stated.bytes));
        // Not there in the layer between.
        assert!(chain.add(&tar().file("b", "x").bytes));
        // As containerd does without the parents.
        let directory = chain.add_empty();
        fs::create_dir(directory.join("a")).unwrap();
        fs::write(directory.join("a/file"), "x").unwrap();
        let said = refused(&chain);
        assert!(
            said.contains("layer 2 (snapshot snapshot 2), \"a\"")
                && said.contains("without its parents"),
            "{said}"
        );
        // Hidden by the layer between.
        let whiteout = chain.layers[1].join("a");
        mknodat(CWD, &whiteout, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
        inspect_parents(&chain.view(), chain.root().to_path_buf(), 0..3, &guard()).unwrap();
        // With an entry of its own.
        fs::remove_file(whiteout).unwrap();
        let stated = File::open(directory.join("a")).unwrap();
        stated.set_modified(std::time::UNIX_EPOCH).unwrap();
        inspect_parents(&chain.view(), chain.root().to_path_buf(), 0..3, &guard()).unwrap();
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_hidden_parent_does_not_count() {
    let mut chain = Chain::new(&std::env::temp_dir());
    assert!(chain.add(&tar().directory("a/").directory("a/b/").bytes));
    let directory = chain.add_empty();
    fs::create_dir_all(directory.join("a/b")).unwrap();
    fs::write(directory.join("a/b/file"), "x").unwrap();
    let a = directory.join("a");
    lsetxattr(&a, "trusted.overlay.opaque", b"y", XattrFlags::empty()).unwrap();
    assert!(refused(&chain).contains("\"a\""));
    File::open(&a)
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    inspect_parents(&chain.view(), chain.root().to_path_buf(), 0..2, &guard()).unwrap();
    // Now `a/b` below shows.
    rustix::fs::lremovexattr(&a, "trusted.overlay.opaque").unwrap();
    assert!(refused(&chain).contains("\"a/b\""));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn attributes_of_overlayfs_are_refused() {
    for (path, name, value) in [
        ("a", "trusted.overlay.redirect", &b"/b"[..]),
        ("a", "trusted.overlay.opaque", b"x"),
        ("a", "trusted.overlay.opaque", b""),
        ("a", "trusted.overlay.whiteouts", b"y"),
        ("a", "trusted.overlay.overlay.opaque", b"y"),
        ("a", "user.overlay.opaque", b"y"),
        ("a/other", "trusted.overlay.metacopy", b""),
        ("a/other", "trusted.overlay.whiteout", b""),
        ("a/other", "user.overlay.origin", b""),
        ("", "trusted.overlay.redirect", b"/b"),
    ] {
        let chain = chain();
        let at = chain.layers[1].join(path);
        lsetxattr(&at, name, value, XattrFlags::empty()).unwrap();
        let said = not_copied(&chain, 1);
        assert!(
            said.contains(name) && said.contains(&format!("\"{path}\"")),
            "{said}"
        );
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn only_directories_that_are_below_too_are_inspected() {
    let mut chain = Chain::new(&std::env::temp_dir());
    assert!(chain.add(&tar().directory("a/").bytes));
    let entries = tar().directory("a/").directory("a/new/").directory("new/");
    assert!(chain.add(&entries.bytes));
    for (path, is_inspected) in [("new", false), ("a/new", false), ("a", true)] {
        let (at, name) = (chain.layers[1].join(path), "trusted.overlay.redirect");
        lsetxattr(&at, name, b"/b", XattrFlags::empty()).unwrap();
        let root = chain.root().to_path_buf();
        let inspected = inspect_parents(&chain.view(), root, 0..2, &guard());
        assert_eq!(inspected.is_err(), is_inspected, "{path}");
        // Its copy is refused in any case.
        assert!(not_copied(&chain, 1).contains(name), "{path}");
        rustix::fs::lremovexattr(&at, name).unwrap();
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn names_of_markers_are_refused() {
    for name in [".wh.x", ".wh..wh..opq"] {
        let chain = chain();
        fs::write(chain.layers[1].join("a").join(name), "x").unwrap();
        let said = not_copied(&chain, 1);
        assert!(said.contains("no layer can have"), "{said}");
    }
    // A whiteout that would be an opaque marker.
    let chain = chain();
    let path = chain.layers[1].join("a/.wh..opq");
    mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
    assert!(not_copied(&chain, 1).contains("no layer can have"));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn views_of_other_forms_are_refused() {
    let bed = chain();
    let (view, root) = (bed.view(), bed.root());
    assert!(chain::open(&view, root).is_ok());
    let elsewhere = tempfile::tempdir().unwrap();
    let lower = bed
        .layers
        .iter()
        .rev()
        .map(|path| path.display().to_string());
    let [top, base] = [0, 1].map(|at| lower.clone().nth(at).unwrap());
    let outside = format!("lowerdir={}:{base}", elsewhere.path().display());
    let up = format!(
        "lowerdir={}/../2/fs:{base}",
        root.join("snapshots/1").display()
    );
    for (options, said) in [
        (
            vec![format!("lowerdir={top}:{base},userxattr")],
            "userxattr",
        ),
        (
            vec![
                format!("lowerdir={top}:{base}"),
                "redirect_dir=on".to_owned(),
            ],
            "redirect_dir=on",
        ),
        (
            vec![format!("lowerdir={top}:{base}"), "metacopy=on".to_owned()],
            "metacopy=on",
        ),
        (
            vec![format!("lowerdir={top}:{base}"), "uidmap=0:1:2".to_owned()],
            "uidmap",
        ),
        (
            vec![format!("lowerdir={top}:{base}"), format!("upperdir={top}")],
            "upperdir",
        ),
        (vec![format!("lowerdir={top}")], "1 layers"),
        (vec![format!("lowerdir={top}:{top}")], "twice"),
        (vec![format!("lowerdir={top}:{base}:{base}")], "3 layers"),
        (vec![format!("lowerdir={top}::{base}")], "3 layers"),
        (vec![format!("lowerdir={top}\\:{base}")], "can be read"),
        (vec![], "can be read"),
        (vec![outside], "is not a snapshot"),
        (vec![up], "is not a snapshot"),
        (
            vec![format!(
                "lowerdir={}:{base}",
                root.join("snapshots/2").display()
            )],
            "is not a snapshot",
        ),
        (
            vec![format!(
                "lowerdir={}:{base}",
                root.join("snapshots/2/work").display()
            )],
            "is not a snapshot",
        ),
    ] {
        let mut view = view.clone();
        view.mounts[0].options = options;
        let error = chain::open(&view, root).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains(said), "{error}");
    }
    let mut two = view.clone();
    two.mounts.push(two.mounts[0].clone());
    let mut kind = view.clone();
    kind.mounts[0].kind = "erofs".to_owned();
    let mut parent = view.clone();
    parent.snapshots[1].parent = None;
    let mut active = view.clone();
    active.snapshots[1].kind = resnap_core::SnapshotKind::Active;
    for view in [two, kind, parent, active] {
        let error = chain::open(&view, root).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
    }
    let mut other = view.clone();
    other.snapshotter = "native".to_owned();
    let error = chain::open(&other, root).unwrap_err();
    assert_eq!(error.kind(), Kind::Unimplemented);
    assert!(error.to_string().contains("native"));
    // The root may be reached through a link.
    let link = elsewhere.path().join("link");
    symlink(root, &link).unwrap();
    assert!(chain::open(&view, &link).is_ok());
    // Nothing in it may be one.
    let snapshot = root.join("snapshots/2");
    fs::rename(snapshot.join("fs"), elsewhere.path().join("fs")).unwrap();
    symlink(elsewhere.path().join("fs"), snapshot.join("fs")).unwrap();
    assert!(chain::open(&view, root).is_err());
    fs::remove_file(snapshot.join("fs")).unwrap();
    fs::rename(elsewhere.path().join("fs"), snapshot.join("fs")).unwrap();
    assert!(chain::open(&view, root).is_ok());
    fs::rename(&snapshot, elsewhere.path().join("2")).unwrap();
    symlink(elsewhere.path().join("2"), &snapshot).unwrap();
    assert!(chain::open(&view, root).is_err());
    fs::remove_file(&snapshot).unwrap();
    fs::rename(elsewhere.path().join("2"), &snapshot).unwrap();
    std::os::unix::fs::chown(&snapshot, Some(1), None).unwrap();
    let error = chain::open(&view, root).unwrap_err();
    assert!(error.to_string().contains("another user"), "{error}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn files_that_change_are_errors() {
    let bed = chain();
    let path = bed.layers[1].join("a/other");
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(&[0; 1 << 20], 0).unwrap();
    let copied = bed.copy(1, |layer| {
        while layer.next()?.is_some() {
            if layer.data()?.is_some() {
                file.set_len(1 << 19).unwrap();
            }
            while layer.data()?.is_some() {}
        }
        Ok(())
    });
    let said = error_chain(&copied.unwrap_err());
    assert!(
        said.contains("has changed") && said.contains("a/other"),
        "{said}"
    );
}
