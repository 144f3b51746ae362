// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Merged images compared with what overlayfs shows of the images they are made of.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use proptest::prelude::*;
use resnap_layer::testing::typeflag;

use super::common::*;
use super::merged_image::{image_files, merged, samples};
use super::random::items;
use crate::ErofsReader;

/// A process with mounts that nothing else sees. They are gone when it ends.
struct Mounts(Child);

impl Mounts {
    /// Mounts these files in `directory`: all but the last as the layers of `overlay`, the lowest first, and the
    /// last as `merged`.
    fn new(directory: &Path, count: usize) -> Self {
        let mut script = format!("set -e; cd '{}'; mkdir overlay\n", directory.display());
        for number in 0..=count {
            script += &format!("mkdir {number}; mount -t erofs -o ro {number}.erofs {number}\n");
        }
        // overlayfs takes no single layer.
        let layers: Vec<_> = (0..count).rev().map(|number| number.to_string()).collect();
        script += "mkdir empty\n";
        script += &format!(
            "mount -t overlay overlay -o lowerdir={}:empty overlay\n",
            layers.join(":")
        );
        script += "echo; read end";
        let mut child = Command::new("unshare")
            .args(["-m", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        let output = child.stdout.as_mut().unwrap();
        output.read_exact(&mut ready).unwrap();
        Self(child)
    }

    fn path(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.0.id()));
        root.join(path.strip_prefix("/").unwrap())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

/// Type and permissions, owner, time, device, data or target, attributes, and the first name of the inode.
type Seen = (
    u32,
    (u32, u32),
    (i64, i64),
    u64,
    Vec<u8>,
    Vec<(Vec<u8>, Vec<u8>)>,
    PathBuf,
);

/// Returns the tree below `root`.
fn seen(root: &Path) -> BTreeMap<PathBuf, Seen> {
    let (mut seen, mut inodes) = (BTreeMap::new(), BTreeMap::new());
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let at = root.join(&path);
        let metadata = fs::symlink_metadata(&at).unwrap();
        let mut content = Vec::new();
        if metadata.is_dir() {
            let mut names: Vec<_> = fs::read_dir(&at)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            todo.extend(names.iter().rev().map(|name| path.join(name)));
        } else if metadata.is_file() {
            content = fs::read(&at).unwrap();
        } else if metadata.is_symlink() {
            content = fs::read_link(&at).unwrap().as_os_str().as_bytes().to_vec();
        }
        let inode = (metadata.dev(), metadata.ino());
        let first = inodes.entry(inode).or_insert(path.clone()).clone();
        let stated = (
            metadata.mode(),
            (metadata.uid(), metadata.gid()),
            (metadata.mtime(), metadata.mtime_nsec()),
            metadata.rdev(),
            content,
            attributes(&at),
            first,
        );
        seen.insert(path, stated);
    }
    seen
}

fn attributes(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut list = vec![0; 4096];
    let length = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let names = list[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let attributes = names.map(|name| {
        let mut value = vec![0; 4096];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        (name.to_vec(), value)
    });
    let mut attributes: Vec<_> = attributes.collect();
    attributes.sort();
    attributes
}

fn compare(layers: &[Vec<Item>]) {
    let directory = tempfile::tempdir().unwrap();
    let mut files = image_files(layers);
    let layers = files.iter().map(|file| ErofsReader::open(file.clone()));
    files.push(merged(layers.collect::<Result<_, _>>().unwrap()));
    for (number, bytes) in files.iter().enumerate() {
        let path = directory.path().join(format!("{number}.erofs"));
        fs::write(path, bytes).unwrap();
    }
    let count = files.len() - 1;
    let mounts = Mounts::new(directory.path(), count);
    let see = |name: &str| seen(&mounts.path(&directory.path().join(name)));
    let (overlay, merged) = (see("overlay"), see(&count.to_string()));
    for (path, expected) in &overlay {
        assert_eq!(merged.get(path), Some(expected), "{}", path.display());
    }
    assert_eq!(merged.len(), overlay.len());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_kernel_shows_the_same() {
    compare(&samples());
    let link = |path, target| link(typeflag::HARD_LINK, path, target);
    compare(&[
        vec![
            file("a", b"1"),
            link("b", "a"),
            link("c/d", "a"),
            link("e", "a"),
        ],
        vec![
            file(".wh.a", b""),
            file("f", b"2"),
            link("c/g", "f"),
            file("b", b"3"),
        ],
        vec![item(typeflag::CHARACTER, "e"), file("c/.wh.none", b"")],
    ]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    #[ignore = "needs root: make test runs it"]
    fn the_kernel_shows_the_same_of_random_layers(layers in prop::collection::vec(items(), 1..5)) {
        let right = layers.into_iter().filter(|items| write(&layer(items)).is_ok());
        let right: Vec<_> = right.collect();
        prop_assume!(!right.is_empty());
        compare(&right);
    }
}
