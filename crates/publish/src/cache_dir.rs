// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The directory of a cache of layers, and what is removed from it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use resnap_core::{DiffId, Error, Kind, Result};
use resnap_erofs::ErofsReader;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::Serialize;

use crate::fault::{IoContext as _, Stop};
use crate::sidecar::{remove_if_there, sidecar_of};

/// The extension of images.
const EXTENSION: &str = "erofs";

/// The file that builders hold a shared lock of, and whoever prunes an exclusive one.
const LOCK: &str = ".resnap-lock";

/// The interval at which a lock is tried, and the limit on the time. It is held for the time of removing files.
const POLL: Duration = Duration::from_millis(20);
const MAX_WAIT: Duration = Duration::from_secs(60);

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

    /// Returns whether a layer is there and complete, with a tree if it is to have one.
    pub(crate) fn has(&self, diff_id: &DiffId, verity: bool) -> bool {
        let path = self.image(diff_id);
        let is_complete = || {
            let file = open(&path, OFlags::RDONLY).ok()?;
            let length = file.metadata().ok()?.len();
            let image = ErofsReader::open(file).ok()?;
            Some(image.size() <= length)
        };
        is_complete() == Some(true) && (!verity || sidecar_of(&path).is_file())
    }

    /// Creates the directory, and returns a lock against pruning.
    pub(crate) fn build(&self, stop: &Stop) -> Result<File> {
        fs::create_dir_all(&self.0).during("make", &self.0)?;
        let lock = self.lock_file()?;
        let start = Instant::now();
        while flock(&lock, FlockOperation::NonBlockingLockShared).is_err() {
            stop.check_before_end()?;
            if start.elapsed() > MAX_WAIT {
                return Err(self.busy("build", "pruning it"));
            }
            std::thread::sleep(POLL);
        }
        Ok(lock)
    }

    fn lock_file(&self) -> Result<File> {
        let path = self.0.join(LOCK);
        open(&path, OFlags::WRONLY | OFlags::CREATE).during("open", &path)
    }

    fn busy(&self, operation: &'static str, doing: &str) -> Error {
        let error = Error::new(Kind::Aborted, operation, self.0.display().to_string());
        error.with_source(format!(
            "a process is {doing}: try again when that has ended"
        ))
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
    /// [`Kind::Aborted`] while a process builds the cache; errors of the file system.
    pub fn remove(&self, entries: &[CacheEntry]) -> Result<()> {
        let lock = self.lock_file()?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(self.busy("prune", "building it"));
        }
        for entry in entries {
            // The image first: one without its sidecar would be mounted unverified.
            for path in [entry.path.clone(), sidecar_of(&entry.path)] {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }
}

/// Opens a regular file, which others may have replaced by anything.
fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o644))?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

/// Returns the paths in a directory, without hidden ones; none if it is no directory, or is gone.
fn children(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match directory.read_dir() {
        Err(error) if matches!(error.kind(), ErrorKind::NotADirectory | ErrorKind::NotFound) => {
            return Ok(Vec::new());
        }
        entries => entries.during("read", directory)?,
    };
    let paths = entries.map(|entry| Ok(entry?.path()));
    let mut paths = paths
        .collect::<io::Result<Vec<_>>>()
        .during("read", directory)?;
    paths.retain(|path| {
        let name = path.file_name().unwrap_or_default();
        !name.as_encoded_bytes().starts_with(b".")
    });
    Ok(paths)
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
    let metadata = path.symlink_metadata().during("look at", &path)?;
    if !metadata.is_file() {
        return Ok(None);
    }
    let size = metadata.len();
    Ok(Some(CacheEntry {
        diff_id: DiffId(digest),
        path,
        size,
    }))
}
