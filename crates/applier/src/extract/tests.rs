// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Extraction of layers of all kinds to a directory. The tests need root.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::Path;

use resnap_layer::testing::{Metadata, Tar};
use resnap_layer::{Layer, Limits};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::xattr;

mod costs;
mod lower;
mod random;

/// Returns an empty layer.
fn tar() -> Tar {
    Tar::new(Metadata {
        mode: 0o640,
        uid: 7,
        gid: 8,
        mtime: 1000,
        device: (1, 3),
    })
}

/// A directory to extract to, inside a directory that must not change.
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

    fn extract(&self, mode: WhiteoutMode, stream: &[u8], lower: &[&Path]) -> Result<(), Error> {
        let mut layer = Layer::new(stream, Limits::default());
        let cancellation = CancellationToken::new();
        let mut extraction =
            Extraction::new(&self.root(), mode, XattrNamespace::Trusted, cancellation)?;
        extraction.add(&mut layer)?;
        layer.finish()?;
        let lower: Vec<_> = lower.iter().map(|path| path.to_path_buf()).collect();
        extraction.finish(&LowerDirs::open(&lower).unwrap())
    }

    fn upper(&self, tar: Tar) -> Result<(), Error> {
        self.extract(WhiteoutMode::Upper, &tar.bytes, &[])
    }

    /// Checks that nothing outside the root has changed.
    fn check_intact(&self) {
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

/// Returns an extended attribute.
fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    xattr::get(&fs::File::open(path).unwrap(), name.as_bytes()).unwrap()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn entries_become_files() {
    let bed = Bed::new();
    let stream = tar()
        .directory("d/")
        .file("d/file", "text")
        .hardlink("d/hard", "d/file")
        .symlink("d/soft", "/etc/passwd")
        .with(b'6', "d/fifo", b"", &[])
        .with(b'3', "d/null", b"", &[])
        .file("d/.wh.gone", "")
        .file("d/sub/.wh..wh..opq", "");
    bed.upper(stream).unwrap();
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
    let opaque = attribute(&bed.at("d/sub"), "trusted.overlay.opaque");
    assert_eq!(opaque.as_deref(), Some(&b"y"[..]));
    let unstated = fs::metadata(bed.at("d/sub")).unwrap();
    assert_eq!((unstated.mtime(), unstated.mode() & 0o7777), (0, 0o755));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_last_entry_of_a_name_wins() {
    let bed = Bed::new();
    let stream = tar()
        .file("a", "1")
        .file("a", "2")
        .file("d/x/y/z", "")
        .file("d", "now a file")
        .file("f", "")
        .directory("f/")
        .file("f/in", "")
        // Whiteouts do not delete entries of the same layer.
        .file("w/.wh.kept", "")
        .file("w/kept", "kept")
        .file("w/dir/in", "")
        .file("w/.wh.dir", "")
        .file("w/.wh.later", "")
        .file("w/later/in", "");
    bed.upper(stream).unwrap();
    assert_eq!(fs::read(bed.at("a")).unwrap(), b"2");
    assert_eq!(fs::read(bed.at("d")).unwrap(), b"now a file");
    assert!(bed.at("f/in").is_file() && bed.at("w/kept").is_file());
    for dir in ["w/dir", "w/later"] {
        assert!(bed.at(dir).join("in").is_file());
        assert!(
            attribute(&bed.at(dir), "trusted.overlay.opaque").is_some(),
            "{dir}"
        );
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn deleted_files_are_removed_from_copies() {
    let bed = Bed::new();
    for path in ["gone/x", "emptied/x", "mixed/old/x", "kept/x"] {
        fs::create_dir_all(bed.at(path)).unwrap();
    }
    let time = fs::metadata(bed.at("kept")).unwrap().mtime_nsec();
    let stream = tar()
        .file(".wh.gone", "")
        .file("emptied/new", "")
        .file("emptied/.wh..wh..opq", "")
        .file("mixed/new/file", "")
        .file(".wh.mixed", "")
        .file("kept/y", "")
        .hardlink("kept/z", "kept/y");
    bed.extract(WhiteoutMode::Copy, &stream.bytes, &[]).unwrap();
    assert!(!bed.at("gone").exists() && !bed.at("emptied/x").exists());
    assert!(bed.at("emptied/new").exists());
    assert!(bed.at("mixed/new/file").exists() && !bed.at("mixed/old").exists());
    assert_eq!(fs::metadata(bed.at("kept")).unwrap().mtime_nsec(), time);
    assert!(bed.at("kept/x").exists() && bed.at("kept/z").exists());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn lowest_layers_have_no_whiteouts() {
    let bed = Bed::new();
    let stream = tar()
        .file("d/.wh.x", "")
        .file("d/.wh..wh..opq", "")
        .file("w", "")
        .file(".wh.w", "")
        .file("e/old", "")
        .file(".wh.e", "")
        .file("e/new", "")
        .file(".wh.after", "")
        .file("after", "");
    bed.extract(WhiteoutMode::Base, &stream.bytes, &[]).unwrap();
    assert_eq!(fs::read_dir(bed.at("d")).unwrap().count(), 0);
    assert_eq!(attribute(&bed.at("d"), "trusted.overlay.opaque"), None);
    assert!(!bed.at("w").exists() && !bed.at("e/old").exists());
    assert!(bed.at("e/new").exists() && bed.at("after").exists());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_deleted_directory_of_whiteouts_is_removed() {
    let orders = [
        ["d/.wh.x", "d/s/.wh.y", ".wh.d"],
        ["d/.wh.x", ".wh.d", "d/s/.wh.y"],
        [".wh.d", "d/s/.wh.y", "d/.wh.x"],
        [".wh.d", "d/.wh..wh..opq", "d/.wh.x"],
    ];
    for order in orders {
        for (mode, has_lower) in [
            (WhiteoutMode::Upper, true),
            (WhiteoutMode::Copy, true),
            (WhiteoutMode::Copy, false),
        ] {
            let (bed, lower) = (Bed::new(), Bed::new());
            let below = if mode == WhiteoutMode::Copy {
                &bed
            } else {
                &lower
            };
            if has_lower {
                fs::create_dir_all(below.at("d/s")).unwrap();
                fs::write(below.at("d/x"), "").unwrap();
            }
            let stream = order.iter().fold(tar(), |tar, path| tar.file(path, ""));
            bed.extract(mode, &stream.bytes, &[&lower.root()]).unwrap();
            let found = fs::symlink_metadata(bed.at("d"));
            match mode {
                WhiteoutMode::Upper => {
                    assert!(found.unwrap().file_type().is_char_device(), "{order:?}")
                }
                _ => assert_eq!(
                    found.unwrap_err().kind(),
                    ErrorKind::NotFound,
                    "{order:?} {has_lower}"
                ),
            }
        }
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_deleted_directory_with_content_stays() {
    let bed = Bed::new();
    let stream = tar()
        .file("d/s/.wh.y", "")
        .file(".wh.d", "")
        .file("d/f", "")
        .file("e/.wh.x", "")
        .file(".wh.e", "")
        .directory("e/");
    bed.upper(stream).unwrap();
    assert!(bed.at("d/f").is_file() && bed.at("e").is_dir());
    let hollow = fs::symlink_metadata(bed.at("d/s")).unwrap();
    assert!(hollow.file_type().is_char_device());
    for dir in ["d", "e"] {
        let opaque = attribute(&bed.at(dir), "trusted.overlay.opaque");
        assert!(opaque.is_some(), "{dir}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_hard_link_changes_the_metadata_of_its_target() {
    let bed = Bed::new();
    let mut stream = tar().file("file", "text");
    stream.metadata = Metadata {
        mode: 0o4711,
        uid: 70,
        gid: 80,
        mtime: 5,
        device: (0, 0),
    };
    bed.upper(stream.hardlink("hard", "file")).unwrap();
    let file = fs::metadata(bed.at("file")).unwrap();
    let found = (file.mode() & 0o7777, file.uid(), file.gid(), file.mtime());
    assert_eq!(found, (0o4711, 70, 80, 5));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn replaced_directories_do_not_come_back_in_copies() {
    for (stream, is_allowed) in [
        (tar().file("d", "").directory("d/"), false),
        (
            tar().directory("d/").symlink("d", "x").directory("d/"),
            false,
        ),
        (tar().file("d", "").file(".wh.d", "").directory("d/"), true),
        (tar().file("new", "").directory("new/"), true),
        (
            tar().directory("new/").file("new", "").directory("new/"),
            true,
        ),
    ] {
        let bed = Bed::new();
        fs::create_dir_all(bed.at("d/below")).unwrap();
        let extracted = bed.extract(WhiteoutMode::Copy, &stream.bytes, &[]);
        match is_allowed {
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
#[ignore = "needs root: make test runs it"]
fn nothing_leaves_the_root() {
    let layers: [(&str, Tar); 9] = [
        (
            "dots",
            tar()
                .file("../../secret", "x")
                .file("a/../../../secret", "x"),
        ),
        ("absolute", tar().file("/secret", "x")),
        (
            "a link up",
            tar().symlink("up", "..").file("up/secret", "x"),
        ),
        (
            "an absolute link",
            tar().symlink("abs", "/").file("abs/secret", "x"),
        ),
        (
            "a chain",
            tar()
                .symlink("a", "../../..")
                .symlink("b", "a/a")
                .file("b/secret", "x"),
        ),
        (
            "a swap",
            tar()
                .directory("d/")
                .file("d/one", "x")
                .symlink("d", "..")
                .file("d/secret", "x"),
        ),
        (
            "a link in the file's place",
            tar().symlink("f", "../secret").file("f", "x"),
        ),
        (
            "a hard link",
            tar().hardlink("h", "../secret").file("h", "x"),
        ),
        (
            "a hard link through a link",
            tar()
                .symlink("up", "..")
                .hardlink("h", "up/secret")
                .file("h", "x"),
        ),
    ];
    for (what, stream) in layers {
        for mode in [WhiteoutMode::Upper, WhiteoutMode::Base, WhiteoutMode::Copy] {
            let bed = Bed::new();
            // It may also be refused.
            let _ = bed.extract(mode, &stream.bytes, &[]);
            assert_eq!(
                fs::read(bed.outer.path().join("secret")).unwrap(),
                b"secret",
                "{what}"
            );
            bed.check_intact();
        }
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn existing_links_of_a_copy_are_inside_it() {
    let bed = Bed::new();
    symlink("../..", bed.at("out")).unwrap();
    symlink(bed.outer.path(), bed.at("abs")).unwrap();
    let stream = tar().file("out/secret", "x").file("abs/secret", "x");
    bed.extract(WhiteoutMode::Copy, &stream.bytes, &[]).unwrap();
    bed.check_intact();
    assert_eq!(fs::read(bed.at("secret")).unwrap(), b"x");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn impossible_entries_are_refused() {
    let no_target = |target: &str| Fault::NoTarget(target.into());
    for (what, stream, fault) in [
        (
            "a file as a parent",
            tar().file("f", "").file("f/x", ""),
            Fault::NotADirectory(b"f".to_vec()),
        ),
        (
            "links in a ring",
            tar().symlink("a", "b").symlink("b", "a").file("a/x", ""),
            Fault::Path(resnap_layer::resolve::Error::TooLong),
        ),
        (
            "a hard link to nothing",
            tar().hardlink("h", "nothing"),
            no_target("nothing"),
        ),
        (
            "a hard link to a directory",
            tar().directory("d/").hardlink("h", "d"),
            Fault::DirectoryTarget(b"d".to_vec()),
        ),
        (
            "a hard link to a whiteout",
            tar().file(".wh.w", "").hardlink("h", "w"),
            no_target("w"),
        ),
        (
            "a hard link to itself",
            tar().hardlink("h", "h"),
            no_target("h"),
        ),
        (
            "a hard link from a directory to itself",
            tar().directory("d/").hardlink("d", "d"),
            Fault::DirectoryTarget(b"d".to_vec()),
        ),
    ] {
        let error = Bed::new().upper(stream).unwrap_err();
        let Error::Entry { fault: found, .. } = &error else {
            panic!("{what}: {error:?}");
        };
        assert_eq!(format!("{found:?}"), format!("{fault:?}"), "{what}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn torn_and_flipped_layers_end() {
    let stream = tar()
        .directory("d/")
        .file("d/file", "x".repeat(3000))
        .symlink("l", "d")
        .file("l/through", "y")
        .hardlink("h", "d/file")
        .file(".wh.gone", "");
    for end in (0..stream.bytes.len()).step_by(512) {
        let bed = Bed::new();
        let _ = bed.extract(WhiteoutMode::Upper, &stream.bytes[..end], &[]);
        bed.check_intact();
    }
    let mut seed = 1u64;
    for _ in 0..300 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let mut torn = stream.bytes.clone();
        let at = usize::try_from(seed % (torn.len() as u64)).unwrap();
        torn[at] ^= 1 << (seed >> 60 & 7);
        let bed = Bed::new();
        let _ = bed.extract(WhiteoutMode::Upper, &torn, &[]);
        bed.check_intact();
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn trees_deeper_than_the_descriptor_limit_are_removed() {
    let bed = Bed::new();
    let mut at = rustix::fs::open(bed.root(), OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..3000 {
        rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
        rustix::fs::mkdirat(&at, "1", Mode::RWXU).unwrap();
        at = rustix::fs::openat(&at, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
    let stream = tar().file(".wh.d", "");
    bed.extract(WhiteoutMode::Copy, &stream.bytes, &[]).unwrap();
    assert!(!bed.at("d").exists());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn whiteouts_are_remembered() {
    let bed = Bed::new();
    let stream = tar()
        .file(".wh.a", "")
        .file("a", "")
        .directory("a/")
        .file("b", "")
        .file(".wh.b", "")
        .directory("b/")
        .directory("c/")
        .file(".wh.c", "")
        .symlink("c", "a")
        .file(".wh.d", "")
        .file("d/in", "")
        .file("d", "")
        .directory("d/")
        .file("e/.wh.in", "")
        .file("e", "")
        .directory("e/")
        .directory("e/in")
        .symlink("f", "nowhere")
        .file("f", "")
        .directory("f/");
    bed.upper(stream).unwrap();
    assert!(bed.at("c").is_symlink());
    for (path, want) in [
        ("a", true),
        ("b", true),
        ("d", true),
        // The whiteout was removed with its directory.
        ("e/in", false),
        ("f", false),
    ] {
        let opaque = attribute(&bed.at(path), "trusted.overlay.opaque");
        assert_eq!(opaque.is_some(), want, "{path}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_device_that_is_a_whiteout_is_not_listed() {
    let mut stream = tar();
    stream.metadata.device = (0, 0);
    let stream = stream.with(b'3', "d/device", b"", &[]);
    for mode in [WhiteoutMode::Upper, WhiteoutMode::Base] {
        let bed = Bed::new();
        bed.extract(mode, &stream.bytes, &[]).unwrap();
        // Without it overlayfs lists the device if there is no lower directory.
        let origin = attribute(&bed.at("d"), "trusted.overlay.origin");
        assert_eq!(origin.as_deref(), Some(&b""[..]), "{mode:?}");
    }
    let bed = Bed::new();
    let link = stream.hardlink("e/link", "d/device");
    bed.extract(WhiteoutMode::Base, &link.bytes, &[]).unwrap();
    let origin = attribute(&bed.at("e"), "trusted.overlay.origin");
    assert_eq!(origin.as_deref(), Some(&b""[..]));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn attributes_of_the_host_stay() {
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
        xattr::set(&dir, name, value).unwrap();
    }
    let stream = tar().directory("d/");
    bed.extract(WhiteoutMode::Copy, &stream.bytes, &[]).unwrap();
    for (name, _, stays) in names {
        assert_eq!(attribute(&bed.at("d"), name).is_some(), stays, "{name}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn everything_deleted_is_removed_from_a_copy() {
    let bed = Bed::new();
    fs::create_dir_all(bed.at("d/a/b/c")).unwrap();
    fs::write(bed.at("d/a/old"), "").unwrap();
    fs::write(bed.at("d/a/b/c/old"), "").unwrap();
    fs::write(bed.at("old"), "").unwrap();
    // `d/a` and `d/a/b` have no record when they are deleted.
    let stream = tar()
        .file("d/a/b/c/new", "")
        .file("d/.wh..wh..opq", "")
        .file(".wh..wh..opq", "");
    bed.extract(WhiteoutMode::Copy, &stream.bytes, &[]).unwrap();
    assert!(bed.at("d/a/b/c/new").exists());
    assert!(!bed.at("d/a/old").exists() && !bed.at("d/a/b/c/old").exists());
    // The marker has no effect on the root, as in an overlay.
    assert!(bed.at("old").exists());
}
