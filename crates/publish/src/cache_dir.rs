// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The directory of a cache of layers, and what is removed from it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use resnap_core::{DiffId, Error, Kind, Result};
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use crate::fault::IoContext as _;
use crate::sidecar::sidecar_of;

/// The extension of images.
const EXTENSION: &str = "erofs";

/// The file that builders hold a shared lock of, and whoever prunes an exclusive one.
const LOCK: &str = ".resnap-lock";

/// The directory of a cache.
#[derive(Debug, Clone)]
pub struct CacheDir(PathBuf);

/// A layer in a cache.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct CacheEntry {
    /// Its diff ID.
    pub diff_id: DiffId,
    /// Its path.
    pub path: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

impl CacheDir {
    /// Returns a directory, which need not exist.
    ///
    /// # Errors
    /// The directory has no absolute path.
    pub fn new(path: &Path) -> Result<Self> {
        Ok(Self(std::path::absolute(path).during("find", path)?))
    }

    /// Returns its absolute path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns the path of a layer.
    pub(crate) fn image(&self, diff_id: &DiffId) -> PathBuf {
        let name = format!("{}.{EXTENSION}", diff_id.0.encoded());
        self.directory(diff_id).join(name)
    }

    fn directory(&self, diff_id: &DiffId) -> PathBuf {
        let shard = diff_id.0.encoded().get(..2).unwrap_or_default();
        self.0.join(diff_id.0.algorithm()).join(shard)
    }

    pub(crate) fn make_directory(&self, diff_id: &DiffId) -> Result<PathBuf> {
        let directory = self.directory(diff_id);
        fs::create_dir_all(&directory).during("make", &directory)?;
        Ok(directory)
    }

    /// Returns whether a layer is there, with a tree if it is to have one.
    pub(crate) fn has(&self, diff_id: &DiffId, verity: bool) -> bool {
        let image = self.image(diff_id);
        image.is_file() && (!verity || sidecar_of(&image).is_file())
    }

    /// Creates the directory, and returns a lock against pruning.
    pub(crate) fn build(&self) -> Result<File> {
        fs::create_dir_all(&self.0).during("make", &self.0)?;
        let lock = self.lock_file()?;
        let locked = flock(&lock, FlockOperation::LockShared);
        locked
            .map_err(std::io::Error::from)
            .during("lock", &self.0)?;
        Ok(lock)
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.0.join(LOCK);
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path);
        lock.during("open", &path)
    }

    /// Returns the layers that are not among those to keep, ordered by diff ID.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn others(&self, keep: &HashSet<DiffId>) -> Result<Vec<CacheEntry>> {
        let mut found = Vec::new();
        for algorithm in children(&self.0)? {
            for shard in children(&algorithm)? {
                for path in children(&shard)? {
                    let entry = entry(&algorithm, path)?;
                    found.extend(entry.filter(|entry| !keep.contains(&entry.diff_id)));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Removes layers.
    ///
    /// # Errors
    /// [`Kind::Unavailable`] while a process builds the cache; errors of the file system.
    pub fn remove(&self, entries: &[CacheEntry]) -> Result<()> {
        let lock = self.lock_file()?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let prune = Error::new(Kind::Unavailable, "prune", self.0.display().to_string());
            return Err(
                prune.with_source("a process is building it: try again when that has ended")
            );
        }
        for entry in entries {
            // The image first: one without its sidecar would be mounted unverified.
            for path in [entry.path.clone(), sidecar_of(&entry.path)] {
                match fs::remove_file(&path) {
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                    removed => removed.during("remove", &path)?,
                }
            }
        }
        Ok(())
    }
}

/// Returns the paths in a directory; none if it is no directory.
fn children(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match directory.read_dir() {
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => return Ok(Vec::new()),
        entries => entries.during("read", directory)?,
    };
    let paths = entries.map(|entry| Ok(entry?.path()));
    paths
        .collect::<std::io::Result<_>>()
        .during("read", directory)
}

/// Returns the layer at a path, if it is one.
fn entry(algorithm: &Path, path: PathBuf) -> Result<Option<CacheEntry>> {
    if path
        .extension()
        .is_none_or(|extension| extension != EXTENSION)
    {
        return Ok(None);
    }
    let name = |path: &Path| {
        path.file_stem()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    };
    let Ok(digest) = format!("{}:{}", name(algorithm), name(&path)).parse() else {
        return Ok(None);
    };
    let size = path.metadata().during("look at", &path)?.len();
    Ok(Some(CacheEntry {
        diff_id: DiffId(digest),
        path,
        size,
    }))
}
