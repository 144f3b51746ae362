// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Extraction to a directory, of layers of all kinds. As root, as resnap runs.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;

use resnap_layer::{Layer, Limits};
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::pipeline::Stop;

mod costs;
mod lower;
mod random;

/// An archive under construction.
#[derive(Default)]
struct Tape(Vec<u8>);

impl Tape {
    fn add(mut self, kind: u8, path: &str, link: &str, data: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(kind));
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(0o640);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1000);
        header.set_size(data.len() as u64);
        if kind == b'3' {
            header.set_device_major(1).unwrap();
            header.set_device_minor(3).unwrap();
        }
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, data: &str) -> Self {
        self.add(b'0', path, "", data.as_bytes())
    }

    fn dir(self, path: &str) -> Self {
        self.add(b'5', path, "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.add(b'2', path, target, b"")
    }

    fn hardlink(self, path: &str, target: &str) -> Self {
        self.add(b'1', path, target, b"")
    }
}

/// A directory to extract to, in one that must stay as it is.
struct Bed {
    outer: TempDir,
}

impl Bed {
    fn new() -> Self {
        let outer = tempfile::tempdir().unwrap();
        fs::create_dir(outer.path().join("root")).unwrap();
        fs::write(outer.path().join("secret"), "secret").unwrap();
        Self { outer }
    }

    fn root(&self) -> std::path::PathBuf {
        self.outer.path().join("root")
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.root().join(path)
    }

    fn extract(&self, style: Style, tape: &[u8], lower: &[&Path]) -> Result<(), Error> {
        let mut layer = Layer::new(tape, Limits::default());
        let (_alive, stop) = watch::channel(false);
        let mut extraction = Extraction::new(&self.root(), style, false, Stop(stop))?;
        extraction.add(&mut layer)?;
        layer.finish()?;
        let lower: Vec<_> = lower.iter().map(|path| path.to_path_buf()).collect();
        extraction.finish(&Lower::open(&lower).unwrap())
    }

    fn upper(&self, tape: Tape) -> Result<(), Error> {
        self.extract(Style::Upper, &tape.0, &[])
    }

    /// Nothing outside the root has changed.
    fn is_intact(&self) {
        let names: Vec<_> = fs::read_dir(self.outer.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert_eq!(
            fs::read(self.outer.path().join("secret")).unwrap(),
            b"secret"
        );
        assert_eq!(
            fs::metadata(self.outer.path().join("secret"))
                .unwrap()
                .nlink(),
            1
        );
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    inode::get(&fs::File::open(path).unwrap(), name.as_bytes()).unwrap()
}

#[test]
fn entries_become_what_they_say() {
    let bed = Bed::new();
    let tape = Tape::default()
        .dir("d/")
        .file("d/file", "text")
        .hardlink("d/hard", "d/file")
        .symlink("d/soft", "/etc/passwd")
        .add(b'6', "d/fifo", "", b"")
        .add(b'3', "d/null", "", b"")
        .file("d/.wh.gone", "")
        .file("d/sub/.wh..wh..opq", "");
    bed.upper(tape).unwrap();
    let file = fs::metadata(bed.at("d/file")).unwrap();
    assert_eq!(fs::read(bed.at("d/hard")).unwrap(), b"text");
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o7777),
        (7, 8, 0o640)
    );
    assert_eq!((file.mtime(), file.nlink()), (1000, 2));
    let dir = fs::metadata(bed.at("d")).unwrap();
    assert_eq!(
        (dir.uid(), dir.mtime(), dir.mode() & 0o7777),
        (7, 1000, 0o640)
    );
    let soft = fs::symlink_metadata(bed.at("d/soft")).unwrap();
    assert_eq!((soft.uid(), soft.mtime()), (7, 1000));
    assert!(
        fs::metadata(bed.at("d/fifo"))
            .unwrap()
            .file_type()
            .is_fifo()
    );
    let null = fs::metadata(bed.at("d/null")).unwrap();
    assert_eq!(
        (null.rdev(), null.mode() & 0o7777),
        (rustix::fs::makedev(1, 3), 0o640)
    );
    let gone = fs::metadata(bed.at("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = xattr(&bed.at("d/sub"), "trusted.overlay.opaque");
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]));
    let unstated = fs::metadata(bed.at("d/sub")).unwrap();
    assert_eq!((unstated.mtime(), unstated.mode() & 0o7777), (0, 0o755));
}

#[test]
fn the_last_of_a_name_wins() {
    let bed = Bed::new();
    let tape = Tape::default()
        .file("a", "1")
        .file("a", "2")
        .file("d/x/y/z", "")
        .file("d", "now a file")
        .file("f", "")
        .dir("f/")
        .file("f/in", "")
        // What is deleted below is not what this layer has.
        .file("w/.wh.kept", "")
        .file("w/kept", "kept")
        .file("w/dir/in", "")
        .file("w/.wh.dir", "")
        .file("w/.wh.later", "")
        .file("w/later/in", "");
    bed.upper(tape).unwrap();
    assert_eq!(fs::read(bed.at("a")).unwrap(), b"2");
    assert_eq!(fs::read(bed.at("d")).unwrap(), b"now a file");
    assert!(bed.at("f/in").is_file() && bed.at("w/kept").is_file());
    for dir in ["w/dir", "w/later"] {
        assert!(bed.at(dir).join("in").is_file());
        assert!(
            xattr(&bed.at(dir), "trusted.overlay.opaque").is_some(),
            "{dir}"
        );
    }
}

#[test]
fn copies_lose_what_layers_delete() {
    let bed = Bed::new();
    for path in ["gone/x", "emptied/x", "mixed/old/x", "kept/x"] {
        fs::create_dir_all(bed.at(path)).unwrap();
    }
    let time = fs::metadata(bed.at("kept")).unwrap().mtime_nsec();
    let tape = Tape::default()
        .file(".wh.gone", "")
        .file("emptied/new", "")
        .file("emptied/.wh..wh..opq", "")
        .file("mixed/new/file", "")
        .file(".wh.mixed", "")
        .file("kept/y", "")
        .hardlink("kept/z", "kept/y");
    bed.extract(Style::Copy, &tape.0, &[]).unwrap();
    assert!(!bed.at("gone").exists() && !bed.at("emptied/x").exists());
    assert!(bed.at("emptied/new").exists());
    assert!(bed.at("mixed/new/file").exists() && !bed.at("mixed/old").exists());
    assert_eq!(fs::metadata(bed.at("kept")).unwrap().mtime_nsec(), time);
    assert!(bed.at("kept/x").exists() && bed.at("kept/z").exists());
}

#[test]
fn bases_have_no_whiteouts_and_lose_what_they_delete() {
    let bed = Bed::new();
    let tape = Tape::default()
        .file("d/.wh.x", "")
        .file("d/.wh..wh..opq", "")
        .file("w", "")
        .file(".wh.w", "")
        .file("e/old", "")
        .file(".wh.e", "")
        .file("e/new", "")
        .file(".wh.after", "")
        .file("after", "");
    bed.extract(Style::Base, &tape.0, &[]).unwrap();
    assert_eq!(fs::read_dir(bed.at("d")).unwrap().count(), 0);
    assert_eq!(xattr(&bed.at("d"), "trusted.overlay.opaque"), None);
    assert!(!bed.at("w").exists() && !bed.at("e/old").exists());
    assert!(bed.at("e/new").exists() && bed.at("after").exists());
}

#[test]
fn a_deleted_directory_of_whiteouts_is_gone() {
    let orders = [
        ["d/.wh.x", "d/s/.wh.y", ".wh.d"],
        ["d/.wh.x", ".wh.d", "d/s/.wh.y"],
        [".wh.d", "d/s/.wh.y", "d/.wh.x"],
        [".wh.d", "d/.wh..wh..opq", "d/.wh.x"],
    ];
    for order in orders {
        for (style, has_lower) in [
            (Style::Upper, true),
            (Style::Copy, true),
            (Style::Copy, false),
        ] {
            let (bed, lower) = (Bed::new(), Bed::new());
            let below = if style == Style::Copy { &bed } else { &lower };
            if has_lower {
                fs::create_dir_all(below.at("d/s")).unwrap();
                fs::write(below.at("d/x"), "").unwrap();
            }
            let tape = order
                .iter()
                .fold(Tape::default(), |tape, path| tape.file(path, ""));
            bed.extract(style, &tape.0, &[&lower.root()]).unwrap();
            let found = fs::symlink_metadata(bed.at("d"));
            match style {
                Style::Upper => assert!(found.unwrap().file_type().is_char_device(), "{order:?}"),
                _ => assert!(found.is_err(), "{order:?} {has_lower}"),
            }
        }
    }
}

#[test]
fn a_deleted_directory_with_something_stays() {
    let bed = Bed::new();
    let tape = Tape::default()
        .file("d/s/.wh.y", "")
        .file(".wh.d", "")
        .file("d/f", "")
        .file("e/.wh.x", "")
        .file(".wh.e", "")
        .dir("e/");
    bed.upper(tape).unwrap();
    assert!(bed.at("d/f").is_file() && bed.at("e").is_dir());
    let hollow = fs::symlink_metadata(bed.at("d/s")).unwrap();
    assert!(hollow.file_type().is_char_device());
    for dir in ["d", "e"] {
        let opaque = xattr(&bed.at(dir), "trusted.overlay.opaque");
        assert!(opaque.is_some(), "{dir}");
    }
}

#[test]
fn a_hard_link_changes_what_it_names() {
    let bed = Bed::new();
    let mut tape = Tape::default().file("file", "text");
    let mut header = tar::Header::new_ustar();
    header.set_path("hard").unwrap();
    header.set_link_name("file").unwrap();
    header.set_entry_type(tar::EntryType::Link);
    header.set_mode(0o4711);
    header.set_uid(70);
    header.set_gid(80);
    header.set_mtime(5);
    header.set_size(0);
    header.set_cksum();
    tape.0.extend(header.as_bytes());
    bed.upper(tape).unwrap();
    let file = fs::metadata(bed.at("file")).unwrap();
    let found = (file.mode() & 0o7777, file.uid(), file.gid(), file.mtime());
    assert_eq!(found, (0o4711, 70, 80, 5));
}

#[test]
fn what_was_replaced_does_not_come_back_in_a_copy() {
    for (tape, is_taken) in [
        (Tape::default().file("d", "").dir("d/"), false),
        (Tape::default().dir("d/").symlink("d", "x").dir("d/"), false),
        (
            Tape::default().file("d", "").file(".wh.d", "").dir("d/"),
            true,
        ),
        (Tape::default().file("new", "").dir("new/"), true),
        (
            Tape::default().dir("new/").file("new", "").dir("new/"),
            true,
        ),
    ] {
        let bed = Bed::new();
        fs::create_dir_all(bed.at("d/below")).unwrap();
        let extracted = bed.extract(Style::Copy, &tape.0, &[]);
        match is_taken {
            true => extracted.unwrap(),
            false => assert!(matches!(
                extracted,
                Err(Error::Entry {
                    fault: Fault::Replaced,
                    ..
                })
            )),
        }
    }
}

#[test]
fn nothing_leaves_the_root() {
    let tapes: [(&str, Tape); 9] = [
        (
            "dots",
            Tape::default()
                .file("../../secret", "x")
                .file("a/../../../secret", "x"),
        ),
        ("absolute", Tape::default().file("/secret", "x")),
        (
            "a link up",
            Tape::default().symlink("up", "..").file("up/secret", "x"),
        ),
        (
            "an absolute link",
            Tape::default().symlink("abs", "/").file("abs/secret", "x"),
        ),
        (
            "a chain",
            Tape::default()
                .symlink("a", "../../..")
                .symlink("b", "a/a")
                .file("b/secret", "x"),
        ),
        (
            "a swap",
            Tape::default()
                .dir("d/")
                .file("d/one", "x")
                .symlink("d", "..")
                .file("d/secret", "x"),
        ),
        (
            "a link in the file's place",
            Tape::default().symlink("f", "../secret").file("f", "x"),
        ),
        (
            "a hard link",
            Tape::default().hardlink("h", "../secret").file("h", "x"),
        ),
        (
            "a hard link through a link",
            Tape::default()
                .symlink("up", "..")
                .hardlink("h", "up/secret")
                .file("h", "x"),
        ),
    ];
    for (what, tape) in tapes {
        for style in [Style::Upper, Style::Base, Style::Copy] {
            let bed = Bed::new();
            // An error is as good.
            let _ = bed.extract(style, &tape.0, &[]);
            assert_eq!(
                fs::read(bed.outer.path().join("secret")).unwrap(),
                b"secret",
                "{what}"
            );
            bed.is_intact();
        }
    }
}

#[test]
fn existing_links_of_a_copy_are_inside_it() {
    let bed = Bed::new();
    symlink("../..", bed.at("out")).unwrap();
    symlink(bed.outer.path(), bed.at("abs")).unwrap();
    let tape = Tape::default()
        .file("out/secret", "x")
        .file("abs/secret", "x");
    bed.extract(Style::Copy, &tape.0, &[]).unwrap();
    bed.is_intact();
    assert_eq!(fs::read(bed.at("secret")).unwrap(), b"x");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (what, tape) in [
        (
            "a file as a parent",
            Tape::default().file("f", "").file("f/x", ""),
        ),
        (
            "links in a ring",
            Tape::default()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", ""),
        ),
        (
            "a hard link to nothing",
            Tape::default().hardlink("h", "nothing"),
        ),
        (
            "a hard link to a directory",
            Tape::default().dir("d/").hardlink("h", "d"),
        ),
        (
            "a hard link to a whiteout",
            Tape::default().file(".wh.w", "").hardlink("h", "w"),
        ),
        ("a hard link to itself", Tape::default().hardlink("h", "h")),
        (
            "a hard link from a directory to itself",
            Tape::default().dir("d/").hardlink("d", "d"),
        ),
    ] {
        assert!(Bed::new().upper(tape).is_err(), "{what}");
    }
}

#[test]
fn torn_and_flipped_layers_end() {
    let tape = Tape::default()
        .dir("d/")
        .file("d/file", &"x".repeat(3000))
        .symlink("l", "d")
        .file("l/through", "y")
        .hardlink("h", "d/file")
        .file(".wh.gone", "");
    for end in (0..tape.0.len()).step_by(512) {
        let bed = Bed::new();
        let _ = bed.extract(Style::Upper, &tape.0[..end], &[]);
        bed.is_intact();
    }
    let mut seed = 1u64;
    for _ in 0..300 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let mut torn = tape.0.clone();
        let at = usize::try_from(seed % (torn.len() as u64)).unwrap();
        torn[at] ^= 1 << (seed >> 60 & 7);
        let bed = Bed::new();
        let _ = bed.extract(Style::Upper, &torn, &[]);
        bed.is_intact();
    }
}

#[test]
fn trees_deeper_than_descriptors_last_are_removed() {
    let bed = Bed::new();
    let mut at = rustix::fs::open(bed.root(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
        rustix::fs::mkdirat(&at, "1", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let tape = Tape::default().file(".wh.d", "");
    bed.extract(Style::Copy, &tape.0, &[]).unwrap();
    assert!(!bed.at("d").exists());
}

#[test]
fn whiteouts_are_remembered() {
    let bed = Bed::new();
    let tape = Tape::default()
        .file(".wh.a", "")
        .file("a", "")
        .dir("a/")
        .file("b", "")
        .file(".wh.b", "")
        .dir("b/")
        .dir("c/")
        .file(".wh.c", "")
        .symlink("c", "a")
        .file(".wh.d", "")
        .file("d/in", "")
        .file("d", "")
        .dir("d/")
        .file("e/.wh.in", "")
        .file("e", "")
        .dir("e/")
        .dir("e/in")
        .symlink("f", "nowhere")
        .file("f", "")
        .dir("f/");
    bed.upper(tape).unwrap();
    assert!(bed.at("c").is_symlink());
    for (path, want) in [
        ("a", true),
        ("b", true),
        ("d", true),
        // It went with what it was in.
        ("e/in", false),
        ("f", false),
    ] {
        let opaque = xattr(&bed.at(path), "trusted.overlay.opaque");
        assert_eq!(opaque.is_some(), want, "{path}");
    }
}

#[test]
fn a_device_that_is_a_whiteout_is_not_listed() {
    let mut header = tar::Header::new_ustar();
    header.set_path("d/device").unwrap();
    header.set_entry_type(tar::EntryType::Char);
    header.set_mode(0o640);
    header.set_size(0);
    header.set_cksum();
    for style in [Style::Upper, Style::Base] {
        let bed = Bed::new();
        bed.extract(style, header.as_bytes(), &[]).unwrap();
        // Without it overlayfs shows a device where nothing lies below.
        let origin = xattr(&bed.at("d"), "trusted.overlay.origin");
        assert_eq!(origin.as_deref(), Some(&b""[..]), "{style:?}");
    }
    let bed = Bed::new();
    let link = Tape(header.as_bytes().to_vec()).hardlink("e/link", "d/device");
    bed.extract(Style::Base, &link.0, &[]).unwrap();
    let origin = xattr(&bed.at("e"), "trusted.overlay.origin");
    assert_eq!(origin.as_deref(), Some(&b""[..]));
}

#[test]
fn attributes_of_others_stay() {
    let bed = Bed::new();
    fs::create_dir(bed.at("d")).unwrap();
    let dir = fs::File::open(bed.at("d")).unwrap();
    let acl = [2, 0, 0, 0, 1, 0, 7, 0, 255, 255, 255, 255, 4, 0, 5, 0];
    let acl = [&acl[..], &[255, 255, 255, 255, 0x20, 0, 5, 0], &[255; 4]].concat();
    let names = [
        ("security.SMACK64", &b"host"[..], true),
        ("trusted.host", b"host", true),
        ("user.layer", b"layer", false),
        ("user.overlay.opaque", b"y", false),
        ("system.posix_acl_default", &acl, false),
    ];
    for (name, value, _) in names {
        inode::set(&dir, name, value).unwrap();
    }
    let tape = Tape::default().dir("d/");
    bed.extract(Style::Copy, &tape.0, &[]).unwrap();
    for (name, _, stays) in names {
        assert_eq!(xattr(&bed.at("d"), name).is_some(), stays, "{name}");
    }
}

#[test]
fn all_in_a_copy_that_is_deleted_goes() {
    let bed = Bed::new();
    fs::create_dir_all(bed.at("d/a/b/c")).unwrap();
    fs::write(bed.at("d/a/old"), "").unwrap();
    fs::write(bed.at("d/a/b/c/old"), "").unwrap();
    fs::write(bed.at("old"), "").unwrap();
    // Nobody has noted `d/a` and `d/a/b` when they are deleted.
    let tape = Tape::default()
        .file("d/a/b/c/new", "")
        .file("d/.wh..wh..opq", "")
        .file(".wh..wh..opq", "");
    bed.extract(Style::Copy, &tape.0, &[]).unwrap();
    assert!(bed.at("d/a/b/c/new").exists());
    assert!(!bed.at("d/a/old").exists() && !bed.at("d/a/b/c/old").exists());
    // Of the root the marker means nothing, as for an overlay.
    assert!(bed.at("old").exists());
}
