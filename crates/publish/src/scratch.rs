// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Directories for files that are not complete yet.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use resnap_core::Result;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::geteuid;

use crate::fault::{IoContext as _, blocking};

/// The beginning of their names, and of those that are not locked yet.
const PREFIX: &str = ".resnap-scratch-";
const NEW_PREFIX: &str = ".resnap-new-scratch-";

/// The age from which a directory that is not locked yet was left by a killed process.
const NEW_TIME: Duration = Duration::from_secs(3600);

/// A directory for files that are renamed to their places in its parent when they are complete. It is removed on
/// drop, and those that killed processes of this user left by the next one.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    /// Locked while this process uses the directory.
    _lock: File,
}

impl Scratch {
    /// Creates a directory in `parent`, which is created if it does not exist.
    pub(crate) fn new(parent: &Path) -> io::Result<Self> {
        fs::create_dir_all(parent)?;
        for entry in parent.read_dir()? {
            // What cannot be removed is not in the way.
            let _ = remove_if_left(&entry?);
        }
        // It is locked before it has the name by which others find it.
        let new = tempfile::Builder::new()
            .prefix(NEW_PREFIX)
            .tempdir_in(parent)?;
        let lock = File::open(new.path())?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)?;
        let name = new.path().file_name().unwrap_or_default().to_string_lossy();
        let name = name.replacen(NEW_PREFIX, PREFIX, 1);
        let path = parent.join(name);
        fs::rename(new.path(), &path)?;
        _ = new.keep();
        Ok(Self { path, _lock: lock })
    }

    /// Creates a directory for temporary files (`TMPDIR`).
    ///
    /// # Errors
    /// It cannot be created.
    pub async fn temporary() -> Result<Self> {
        let parent = std::env::temp_dir();
        blocking(move |_| Self::new(&parent).during("make a directory in", &parent)).await
    }

    /// Returns whether a file of this name is such a directory.
    pub(crate) fn is_one(name: &OsStr) -> bool {
        let name = name.to_string_lossy();
        name.starts_with(PREFIX) || name.starts_with(NEW_PREFIX)
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is removed by the next one.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Removes a directory of this user that no process uses.
fn remove_if_left(entry: &fs::DirEntry) -> io::Result<()> {
    let name = entry.file_name();
    if !Scratch::is_one(&name) {
        return Ok(());
    }
    let metadata = match entry.metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata?,
    };
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() {
        return Ok(());
    }
    let age = metadata.modified()?.elapsed().unwrap_or_default();
    if name.to_string_lossy().starts_with(NEW_PREFIX) && age < NEW_TIME {
        return Ok(());
    }
    let lock = match File::open(entry.path()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        lock => lock?,
    };
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Ok(()),
        locked => {
            locked?;
            match fs::remove_dir_all(entry.path()) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_ended_processes_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let left = parent.path().join(".resnap-scratch-left");
        fs::create_dir(&left).unwrap();
        fs::write(left.join("file"), "").unwrap();
        fs::write(parent.path().join("other"), "").unwrap();
        fs::create_dir(parent.path().join(".resnap-store")).unwrap();
        let one = Scratch::new(parent.path()).unwrap();
        let two = Scratch::new(parent.path()).unwrap();
        assert!(!left.exists() && one.join("").exists() && two.join("").exists());
        drop((one, two));
        let names = parent.path().read_dir().unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [".resnap-store", "other"]);
    }
}
