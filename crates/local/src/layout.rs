// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The files below the root of a store.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use resnap_core::{Digest, Error, Kind, Result};
use rustix::process::geteuid;

use crate::snapshotters::ALL;

/// The marker of an OCI layout (image-spec `image-layout.md`).
const OCI_LAYOUT: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// The file that makes a directory a store.
const DATABASE: &str = "state.db";

/// The paths below the root.
#[derive(Debug)]
pub(crate) struct Layout(PathBuf);

impl Layout {
    /// Checks that there is a store.
    pub(crate) fn require(root: &Path) -> Result<()> {
        let failed = |kind| Error::new(kind, "open the store", root.display().to_string());
        let what = match root.try_exists() {
            Err(error) => return Err(failed(Kind::PermissionDenied).with_source(error)),
            Ok(false) => "there is no such directory",
            Ok(true) => "the directory is no store of resnap",
        };
        match root.join(DATABASE).try_exists() {
            Ok(true) => Ok(()),
            Ok(false) => Err(failed(Kind::NotFound).with_source(format!(
                "{what}: name that of a store, which is created with its first image"
            ))),
            Err(error) => Err(failed(Kind::PermissionDenied).with_source(error)),
        }
    }

    /// Creates the directories that are missing. The root must belong to this user, nobody else may write to it,
    /// and it must be a store already or have nothing in it: garbage collection removes what it does not know.
    pub(crate) fn create(root: PathBuf) -> Result<Self> {
        let subject = root.display().to_string();
        let failed = |kind, error: io::Error| {
            Error::new(kind, "open the store", &*subject).with_source(error)
        };
        // Mounts and databases need a path that holds in any directory.
        let made = make_private(&root).and_then(|()| root.canonicalize());
        let root = made.map_err(|error| failed(Kind::FailedPrecondition, error))?;
        let usable = own(&root).and_then(|()| {
            let this = Self(root);
            this.require_own()?;
            this.make()?;
            Ok(this)
        });
        usable.map_err(|error| match error.kind() {
            io::ErrorKind::PermissionDenied => failed(Kind::PermissionDenied, error),
            io::ErrorKind::StorageFull => failed(Kind::ResourceExhausted, error),
            _ => failed(Kind::FailedPrecondition, error),
        })
    }

    /// Checks that the path can be in the options of mounts, and that nobody else has files there.
    fn require_own(&self) -> io::Result<()> {
        let refused = |reason| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        let special = [':', '\\', '{'];
        if self.0.to_str().is_none_or(|path| path.contains(special)) {
            return refused(
                "its path is not UTF-8 or has one of : \\ {, which the options of mounts cannot have: name another directory",
            );
        }
        if self.database().try_exists()? {
            return Ok(());
        }
        // A process that was killed, or that is creating the store now, has made directories only.
        if has_others(
            &self.0,
            &["blobs", "ingest", "erofs", "overlayfs", "run", "oci-layout"],
        )? {
            return refused("it is no store of resnap, and not empty: name an empty directory");
        }
        for directory in [
            "blobs/sha256",
            "blobs/sha512",
            "ingest",
            "erofs/snapshots",
            "overlayfs/snapshots",
        ] {
            if has_others(&self.0.join(directory), &[])? && !self.database().try_exists()? {
                return refused(
                    "it has files of a store, and no state.db: name an empty directory, or restore that file",
                );
            }
        }
        Ok(())
    }

    fn make(&self) -> io::Result<()> {
        for directory in [self.blobs(), self.ingests()] {
            make_private(&directory)?;
        }
        for snapshotter in ALL {
            make_private(&self.snapshots(snapshotter))?;
            make_private(&self.removed(snapshotter))?;
        }
        let marker = self.0.join("oci-layout");
        if !marker.try_exists()? {
            std::fs::write(marker, OCI_LAYOUT)?;
        }
        Ok(())
    }

    pub(crate) fn root(&self) -> &Path {
        &self.0
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.0.join(DATABASE)
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.0.join("index.json")
    }

    /// Returns the file that takes the index's place.
    pub(crate) fn new_index(&self) -> PathBuf {
        self.0.join("index.json.new")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.0.join("blobs")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        let algorithm = self.blobs().join(digest.algorithm());
        algorithm.join(digest.encoded())
    }

    pub(crate) fn ingests(&self) -> PathBuf {
        self.0.join("ingest")
    }

    /// Returns the file of an ingest. A name may hold any text.
    pub(crate) fn ingest(&self, name: &str) -> PathBuf {
        self.ingests()
            .join(Digest::sha256(name.as_bytes()).encoded())
    }

    /// Returns the root of a snapshotter.
    pub(crate) fn snapshotter(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn snapshots(&self, snapshotter: &str) -> PathBuf {
        self.snapshotter(snapshotter).join("snapshots")
    }

    pub(crate) fn snapshot(&self, snapshotter: &str, id: i64) -> PathBuf {
        self.snapshots(snapshotter).join(id.to_string())
    }

    /// Returns the directory of snapshots that are being removed.
    pub(crate) fn removed(&self, snapshotter: &str) -> PathBuf {
        self.snapshotter(snapshotter).join("removed")
    }

    /// Locks the root until the file is closed: for what a transaction cannot hold.
    pub(crate) fn lock(&self) -> io::Result<File> {
        let root = File::open(&self.0)?;
        root.lock()?;
        Ok(root)
    }
}

/// Creates a directory for this user only: layers have files that run with the rights of their owner.
fn make_private(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Returns whether a directory has entries with other names. Those of a database that is being created do not count.
fn has_others(directory: &Path, names: &[&str]) -> io::Result<bool> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        entries => entries?,
    };
    for entry in entries {
        let name = entry?.file_name();
        let name = name.to_string_lossy();
        if !names.contains(&&*name) && !name.starts_with("state.db") {
            return Ok(true);
        }
    }
    Ok(false)
}

fn own(root: &Path) -> io::Result<()> {
    let metadata = root.metadata()?;
    let refused = |reason| Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    let (owner, user) = (metadata.uid(), geteuid().as_raw());
    if owner != user {
        return refused(format!(
            "it belongs to user {owner}, and this is user {user}: name another directory"
        ));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return refused(format!(
            "others may write to it (mode {mode:04o}): `chmod go-w` it if nobody did"
        ));
    }
    Ok(())
}
