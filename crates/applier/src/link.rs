// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layers that are EROFS images as they are in the content store: links to their blobs, or copies by the kernel.
//!
//! Such a layer is not hashed: its diff ID is the digest of the blob, which containerd has checked when it wrote
//! it. A file that is linked is that of the blob, and is not changed in any way.
//!
//! containerd makes images immutable if it is configured to (`set_immutable` of its erofs snapshotter), and then
//! cannot remove a blob that is one. So nothing is linked on a snapshotter that has an immutable image, or none to
//! look at, and a flag that is found on a linked file after Commit is lifted.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use resnap_core::{Applied, Descriptor};
use resnap_verity::BlockSize;

use crate::copy::copy_file;
use crate::create::create;
use crate::erofs::{NAME, check_image};
use crate::error::{Error, IoContext as _};
use crate::guard::Guard;
use crate::inode_flags::{is_immutable, lift_immutable};

/// A blob that is an image, in the content store.
#[derive(Debug)]
pub(crate) struct ImageBlob {
    pub(crate) descriptor: Descriptor,
    pub(crate) path: PathBuf,
    pub(crate) file: File,
    /// Whether its file may get another name.
    pub(crate) may_link: bool,
}

impl ImageBlob {
    /// Makes the image at `to`, where no file is yet. Returns its size and that of its tree's blocks, and whether
    /// it is the file of the blob.
    pub(crate) fn place(
        &self,
        to: &Path,
        guard: &Guard,
    ) -> Result<((u64, BlockSize), bool), Error> {
        let size = self.file.metadata().context("look at the blob")?.len();
        let is_linked = self.may_link && self.link(to).context("link the blob")?;
        if !is_linked {
            let copy = create(to).context("create the EROFS image")?;
            copy_file(&self.file, &copy, size, "copy the blob", guard)?;
        }
        let image = File::open(to).context("open the EROFS image")?;
        Ok((check_image(image, size)?, is_linked))
    }

    /// Gives the file of the blob another name. Returns whether that was possible.
    fn link(&self, to: &Path) -> io::Result<bool> {
        match fs::remove_file(to) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        if fs::hard_link(&self.path, to).is_err() {
            // Another file system, or one without links, or too many of them.
            return Ok(false);
        }
        let (linked, blob) = (fs::metadata(to)?, self.file.metadata()?);
        if (linked.dev(), linked.ino()) == (blob.dev(), blob.ino()) {
            return Ok(true);
        }
        fs::remove_file(to)?;
        Ok(false)
    }
}

/// Returns the result of writing a layer that is the image of its blob.
pub(crate) fn applied(layer: &Descriptor) -> Applied {
    Applied {
        diff_id: Some(layer.digest.clone()),
        size: layer.size,
        is_own_image: false,
        proof: None,
    }
}

/// Returns whether blobs may be linked into the snapshots of this snapshotter.
pub(crate) fn may_link(root: &Path) -> io::Result<bool> {
    let mut has_image = false;
    for snapshot in root.join("snapshots").read_dir()? {
        match File::open(snapshot?.path().join(NAME)) {
            Ok(image) if is_immutable(&image)? => return Ok(false),
            Ok(_) => has_image = true,
            Err(_) => {}
        }
    }
    Ok(has_image)
}

/// The blobs that a batch has linked.
#[derive(Debug, Default)]
pub(crate) struct Links(Mutex<Vec<PathBuf>>);

impl Links {
    pub(crate) fn add(&self, blob: PathBuf) {
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        links.push(blob);
    }

    /// Makes blobs mutable again that a Commit has made immutable. Returns whether there was one.
    pub(crate) fn lift_flags(&self) -> bool {
        let mut was_immutable = false;
        let mut links = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for blob in links.drain(..) {
            let lifted = File::open(&blob).and_then(|file| lift_immutable(&file));
            match lifted {
                // Garbage collection has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(
                    ?blob,
                    %error,
                    "a blob may be immutable, and block garbage collection: see `chattr -i`"
                ),
                Ok(lifted) => was_immutable |= lifted,
            }
        }
        was_immutable
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::erofs::empty_image;

    struct Blob {
        _dir: tempfile::TempDir,
        blob: ImageBlob,
        to: PathBuf,
    }

    impl Blob {
        fn new(bytes: &[u8], may_link: bool) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("blob");
            fs::write(&path, bytes).unwrap();
            let file = File::open(&path).unwrap();
            Self {
                to: dir.path().join(NAME),
                _dir: dir,
                blob: ImageBlob {
                    descriptor: Descriptor {
                        media_type: String::new(),
                        digest: resnap_core::Digest::sha256(bytes),
                        size: bytes.len() as u64,
                        annotations: Default::default(),
                        platform: None,
                    },
                    path,
                    file,
                    may_link,
                },
            }
        }

        fn place(&self) -> Result<((u64, BlockSize), bool), Error> {
            let guard = Guard::from(CancellationToken::new());
            self.blob.place(&self.to, &guard)
        }
    }

    #[test]
    fn an_image_is_linked_or_copied() {
        for may_link in [true, false] {
            let blob = Blob::new(&empty_image(), may_link);
            let size = empty_image().len() as u64;
            let placed = blob.place().unwrap();
            assert_eq!(placed, ((size, BlockSize::B4096), may_link));
            assert_eq!(fs::read(&blob.to).unwrap(), empty_image());
            let links = fs::metadata(&blob.to).unwrap().nlink();
            assert_eq!(links, if may_link { 2 } else { 1 });
        }
    }

    #[test]
    fn a_blob_that_was_replaced_is_copied_from_the_open_file() {
        let blob = Blob::new(&empty_image(), true);
        fs::remove_file(&blob.blob.path).unwrap();
        fs::write(&blob.blob.path, "another").unwrap();
        assert!(!blob.place().unwrap().1);
        assert_eq!(fs::read(&blob.to).unwrap(), empty_image());
    }

    #[test]
    #[ignore = "needs root: make test runs it"]
    fn a_flag_that_is_set_after_all_is_lifted() {
        let blob = Blob::new(&empty_image(), true);
        let links = Links::default();
        links.add(blob.blob.path.clone());
        let file = &blob.blob.file;
        let flags = rustix::fs::ioctl_getflags(file).unwrap();
        rustix::fs::ioctl_setflags(file, flags | rustix::fs::IFlags::IMMUTABLE).unwrap();
        assert!(links.lift_flags());
        assert!(!is_immutable(file).unwrap());
        assert!(!links.lift_flags());
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for bytes in [&b"nothing"[..], &empty_image()[..4096]] {
            assert!(Blob::new(bytes, true).place().is_err());
        }
    }

    #[test]
    fn nothing_is_linked_where_no_image_is() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("snapshots/1")).unwrap();
        assert!(!may_link(root.path()).unwrap());
        fs::write(root.path().join("snapshots/1").join(NAME), "").unwrap();
        assert!(may_link(root.path()).unwrap());
    }
}
