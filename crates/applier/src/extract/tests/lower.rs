// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Directories that a layer does not state.

use super::*;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn unstated_directories_are_as_below() {
    let (top, bottom) = (Bed::new(), Bed::new());
    for bed in [&top, &bottom] {
        fs::create_dir_all(bed.at("both")).unwrap();
    }
    fs::create_dir_all(bottom.at("only/sub")).unwrap();
    fs::create_dir_all(bottom.at("hidden/sub")).unwrap();
    fs::create_dir_all(top.at("hidden")).unwrap();
    set_mode(&top.at("both"), 0o2711);
    set_mode(&bottom.at("both"), 0o700);
    set_mode(&bottom.at("only/sub"), 0o1777);
    set_mode(&bottom.at("hidden/sub"), 0o700);
    set_mode(&top.root(), 0o711);
    let only = fs::File::open(bottom.at("only/sub")).unwrap();
    xattr::set(&only, "user.kept", b"1").unwrap();
    let hidden = fs::File::open(top.at("hidden")).unwrap();
    xattr::set(&hidden, "trusted.overlay.opaque", b"y").unwrap();

    let bed = Bed::new();
    let stream = tar()
        .file("both/x", "")
        .file("only/sub/x", "")
        .file("hidden/sub/x", "");
    bed.extract(
        WhiteoutMode::Upper,
        &stream.bytes,
        &[&top.root(), &bottom.root()],
    )
    .unwrap();
    for (path, want) in [
        ("both", 0o2711),
        ("only/sub", 0o1777),
        ("hidden/sub", 0o755),
        ("", 0o711),
    ] {
        assert_eq!(mode(&bed.at(path)), want, "{path}");
    }
    assert_eq!(
        attribute(&bed.at("only/sub"), "user.kept").as_deref(),
        Some(&b"1"[..])
    );
    let time = |path: &Path| fs::metadata(path).unwrap().mtime_nsec();
    assert_eq!(time(&bed.at("only/sub")), time(&bottom.at("only/sub")));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn hidden_directories_are_not_as_below() {
    let (bed, lower) = (Bed::new(), Bed::new());
    for path in ["a/c", "a-b/c", "a/c-", "b/c"] {
        fs::create_dir_all(lower.at(path)).unwrap();
        set_mode(&lower.at(path), 0o700);
    }
    let stream = tar()
        .file("a/.wh..wh..opq", "")
        .file("a-b/.wh..wh..opq", "")
        .file("a/c/x", "")
        .file("a/c-/x", "")
        .file("a-b/c/x", "")
        .file("b/c/x", "");
    bed.extract(WhiteoutMode::Upper, &stream.bytes, &[&lower.root()])
        .unwrap();
    for (path, want) in [
        ("a/c", 0o755),
        ("a/c-", 0o755),
        ("a-b/c", 0o755),
        ("b/c", 0o700),
    ] {
        assert_eq!(mode(&bed.at(path)), want, "{path}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn only_the_attribute_in_force_hides() {
    for (name, want) in [
        ("user.overlay.opaque", 0o700),
        ("trusted.overlay.opaque", 0o755),
    ] {
        let (bed, top, bottom) = (Bed::new(), Bed::new(), Bed::new());
        fs::create_dir(top.at("d")).unwrap();
        fs::create_dir_all(bottom.at("d/sub")).unwrap();
        set_mode(&bottom.at("d/sub"), 0o700);
        xattr::set(&fs::File::open(top.at("d")).unwrap(), name, b"y").unwrap();
        let stream = tar().file("d/sub/x", "");
        bed.extract(
            WhiteoutMode::Upper,
            &stream.bytes,
            &[&top.root(), &bottom.root()],
        )
        .unwrap();
        assert_eq!(mode(&bed.at("d/sub")), want, "{name}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_attribute_not_in_force_is_kept() {
    let (bed, lower) = (Bed::new(), Bed::new());
    fs::create_dir(lower.at("d")).unwrap();
    let directory = fs::File::open(lower.at("d")).unwrap();
    for name in ["user.overlay.opaque", "trusted.overlay.opaque"] {
        xattr::set(&directory, name, b"y").unwrap();
    }
    let stream = tar().file("d/x", "");
    bed.extract(WhiteoutMode::Upper, &stream.bytes, &[&lower.root()])
        .unwrap();
    assert!(attribute(&bed.at("d"), "user.overlay.opaque").is_some());
    assert!(attribute(&bed.at("d"), "trusted.overlay.opaque").is_none());
}
