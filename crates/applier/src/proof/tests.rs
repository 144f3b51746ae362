// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Tests of trees for committed layers.

use std::fs::{self, File};
use std::io::{Cursor, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use resnap_core::{Descriptor, Digest, Kind};
use resnap_erofs::{Memory, NoLower, Writer};
use resnap_verity::{Sidecar, Work, verify};
use rustix::fs::{IFlags, Mode, ioctl_getflags, ioctl_setflags, open};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{seal, write_sidecar};
use crate::beneath::DIRECTORY;
use crate::error::Error;
use crate::guard::Guard;

const IMAGE: &str = "layer.erofs";
const SIDECAR: &str = "layer.erofs.dmverity";

fn layer() -> Descriptor {
    Descriptor {
        media_type: String::new(),
        digest: Digest::sha256(b"blob"),
        size: 0,
        annotations: Default::default(),
        platform: None,
    }
}

/// A committed snapshot.
struct Snapshot {
    dir: TempDir,
    image: Vec<u8>,
}

impl Snapshot {
    fn new() -> Self {
        let memory = Box::new(Memory::new(1 << 20));
        let writer = Writer::new(Cursor::new(Vec::new()), memory).unwrap();
        let (image, _) = writer.finish(&mut NoLower, [1; 16]).unwrap();
        let image = image.into_inner();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(IMAGE), &image).unwrap();
        Self { dir, image }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn open(&self) -> OwnedFd {
        open(self.path(), DIRECTORY, Mode::empty()).unwrap()
    }

    fn seal(&self) -> Result<resnap_core::Proof, Error> {
        self.seal_as(&layer())
    }

    fn seal_as(&self, layer: &Descriptor) -> Result<resnap_core::Proof, Error> {
        let guard = Guard::from(CancellationToken::new());
        seal(&self.open(), layer, None, &guard)
    }

    fn sidecar(&self) -> Sidecar {
        Sidecar::parse(&fs::read(self.path().join(SIDECAR)).unwrap()).unwrap()
    }

    /// Checks that the image has a tree, is as it was, and that nothing else is there.
    fn assert_sealed(&self, root_hash: &str) {
        let sidecar = self.sidecar();
        assert_eq!(sidecar.root_hash.to_string(), root_hash);
        let file = File::open(self.path().join(IMAGE)).unwrap();
        let check = || Ok(());
        let work = Work::new(&check);
        verify(&file, sidecar.hash_offset, &sidecar.root_hash, .., work).unwrap();
        let mut start = vec![0; self.image.len()];
        (&file).read_exact(&mut start).unwrap();
        assert_eq!(start, self.image);
        let mut names: Vec<_> = fs::read_dir(self.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, [IMAGE, SIDECAR]);
    }
}

#[test]
fn an_image_gets_the_same_tree_again() {
    let snapshot = Snapshot::new();
    let proof = snapshot.seal().unwrap();
    snapshot.assert_sealed(&proof.root_hash);
    let length = fs::metadata(snapshot.path().join(IMAGE)).unwrap().len();
    assert_eq!(snapshot.seal().unwrap(), proof);
    // One that was interrupted is written again.
    fs::remove_file(snapshot.path().join(SIDECAR)).unwrap();
    fs::write(snapshot.path().join("layer.erofs.dmverity.resnap"), "half").unwrap();
    assert_eq!(snapshot.seal().unwrap(), proof);
    snapshot.assert_sealed(&proof.root_hash);
    assert_eq!(
        fs::metadata(snapshot.path().join(IMAGE)).unwrap().len(),
        length
    );
}

#[test]
fn a_file_with_other_names_is_not_changed() {
    let snapshot = Snapshot::new();
    let other = tempfile::tempdir_in(snapshot.path().parent().unwrap()).unwrap();
    let blob = other.path().join("blob");
    fs::hard_link(snapshot.path().join(IMAGE), &blob).unwrap();
    let proof = snapshot.seal().unwrap();
    snapshot.assert_sealed(&proof.root_hash);
    assert_eq!(fs::read(&blob).unwrap(), snapshot.image);
    assert_eq!(fs::metadata(&blob).unwrap().nlink(), 1);
}

#[test]
fn wrong_trees_and_sidecars_are_found() {
    let snapshot = Snapshot::new();
    let proof = snapshot.seal().unwrap();
    let path = snapshot.path().join(IMAGE);
    let mut file = File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(1)).unwrap();
    file.write_all(&[1]).unwrap();
    let error = snapshot.seal().unwrap_err();
    assert_eq!(error.kind(), Kind::DataLoss, "{error:?}");
    // Another root hash.
    let mut sidecar = snapshot.sidecar();
    sidecar.root_hash.0[0] ^= 1;
    write_sidecar(&snapshot.open(), &sidecar, None).unwrap();
    assert_eq!(snapshot.seal().unwrap_err().kind(), Kind::DataLoss);
    fs::write(snapshot.path().join(SIDECAR), "{}").unwrap();
    assert_eq!(snapshot.seal().unwrap_err().kind(), Kind::DataLoss);
    fs::remove_file(snapshot.path().join(SIDECAR)).unwrap();
    assert_ne!(snapshot.seal().unwrap(), proof);
}

#[test]
fn the_tree_of_a_layer_is_verified_and_kept() {
    let snapshot = Snapshot::new();
    let generated = snapshot.seal().unwrap();
    let offset = snapshot.sidecar().hash_offset;
    let path = snapshot.path().join(IMAGE);
    let bytes = fs::read(&path).unwrap();
    fs::remove_file(snapshot.path().join(SIDECAR)).unwrap();
    let mut layer = layer();
    layer.media_type = "application/vnd.erofs".to_owned();
    let mut annotate = |key: &str, value: String| {
        let key = format!("org.erofs.dmverity.{key}");
        layer.annotations.insert(key, value);
        layer.clone()
    };
    annotate("hash_offset", offset.to_string());
    let wrong = annotate("root_digest", "00".repeat(32));
    let right = annotate("root_digest", generated.root_hash.clone());
    assert_eq!(snapshot.seal_as(&wrong).unwrap_err().kind(), Kind::DataLoss);
    let proof = snapshot.seal_as(&right).unwrap();
    assert_eq!(proof.origin, resnap_core::ProofOrigin::Layer);
    assert_eq!(proof.root_hash, generated.root_hash);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    snapshot.assert_sealed(&proof.root_hash);
}

#[test]
fn files_that_are_no_image_get_no_tree() {
    let snapshot = Snapshot::new();
    let path = snapshot.path().join(IMAGE);
    fs::write(&path, "short").unwrap();
    assert_eq!(snapshot.seal().unwrap_err().kind(), Kind::InvalidArgument);
    fs::write(&path, &snapshot.image[..snapshot.image.len() - 1]).unwrap();
    assert_eq!(snapshot.seal().unwrap_err().kind(), Kind::InvalidArgument);
    // The cache of containerd 2.4: the file may be shared.
    fs::rename(&path, snapshot.path().join("cached")).unwrap();
    std::os::unix::fs::symlink("cached", &path).unwrap();
    assert!(snapshot.seal().is_err());
    assert!(!snapshot.path().join(SIDECAR).exists());
}

/// Needs root, and a file system with flags.
#[test]
#[ignore = "needs root"]
fn immutable_files_stay_immutable() {
    let snapshot = Snapshot::new();
    let path = snapshot.path().join(IMAGE);
    let flags = |path: &Path| ioctl_getflags(File::open(path).unwrap()).unwrap();
    let set = |path: &Path, flags| ioctl_setflags(File::open(path).unwrap(), flags).unwrap();
    let before = flags(&path);
    set(&path, before | IFlags::IMMUTABLE);
    let proof = snapshot.seal();
    let after = flags(&path);
    set(&path, before);
    assert!(after.contains(IFlags::IMMUTABLE));
    snapshot.assert_sealed(&proof.unwrap().root_hash);
}
