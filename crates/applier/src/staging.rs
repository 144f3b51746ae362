// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The staging directory of a batch below the snapshotter's root, where layers are written ahead.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{FlockOperation, XattrFlags, flock, fsetxattr};
use rustix::io::Errno;

use crate::remove::remove;
use crate::xattr::get;

/// The directory of all staging directories. It is not in `snapshots/`, where snapshotters remove what
/// they do not know.
const NAME: &str = ".resnap";

/// A file that is moved to a snapshot as a trial, and then removed.
const TRIAL: &str = ".resnap-trial";

/// The staging directory of a batch.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(crate) path: PathBuf,
    parent: OwnedFd,
    /// Locked while this process uses the directory.
    _lock: File,
}

impl Staging {
    /// Creates a directory. Also returns those that no process holds.
    pub(crate) fn create(root: &Path) -> io::Result<(Self, Vec<Self>)> {
        let all = root.join(NAME);
        create_private(&all)?;
        // Files keep their label when they are moved.
        let snapshots = File::open(root.join("snapshots"))?;
        let parent = File::open(&all)?;
        let label = get(&snapshots, b"security.selinux")?;
        if let Some(label) = label.filter(|label| {
            let own = get(&parent, b"security.selinux");
            !own.is_ok_and(|own| own.as_ref() == Some(label))
        }) {
            fsetxattr(&parent, "security.selinux", &label, XattrFlags::empty())?;
        }
        let orphans = Self::orphans(&all, &parent)?;
        let path = all.join(unique());
        create_private(&path)?;
        let this = Self::lock(path, &all)?.ok_or(io::ErrorKind::WouldBlock)?;
        Ok((this, orphans))
    }

    /// Returns the directories that no process holds. `parent`, the directory `all`, is locked until it
    /// is closed: a new directory that is not locked yet would look like an orphan.
    fn orphans(all: &Path, parent: &File) -> io::Result<Vec<Self>> {
        flock(parent, FlockOperation::LockExclusive)?;
        let mut orphans = Vec::new();
        for entry in all.read_dir()? {
            orphans.extend(Self::lock(entry?.path(), all)?);
        }
        Ok(orphans)
    }

    /// Locks a directory, unless a process holds it.
    fn lock(path: PathBuf, all: &Path) -> io::Result<Option<Self>> {
        let lock = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            lock => lock?,
        };
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self {
                path,
                parent: File::open(all)?.into(),
                _lock: lock,
            })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Returns whether files can be moved from here to `directory`.
    pub(crate) fn can_move_to(&self, directory: &Path) -> io::Result<bool> {
        let (from, to) = (self.path.join(TRIAL), directory.join(TRIAL));
        File::create(&from)?;
        match std::fs::rename(&from, &to) {
            Ok(()) => std::fs::remove_file(&to).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the directory with everything in it.
    pub(crate) fn remove(self) -> io::Result<()> {
        let name = self.path.file_name().unwrap_or_default();
        remove(&self.parent, name.as_bytes(), &|| Ok(()))
    }
}

/// Removes the staging directories that killed processes left below a snapshotter's root.
///
/// A batch does the same when it starts. This function blocks while it removes the files.
///
/// # Errors
///
/// A directory cannot be read or removed.
pub fn clear(root: &Path) -> io::Result<()> {
    orphans(root)?.into_iter().try_for_each(Staging::remove)
}

/// Returns the staging directories that killed processes left below a snapshotter's root.
///
/// # Errors
///
/// A directory cannot be read.
pub fn leftovers(root: &Path) -> io::Result<Vec<PathBuf>> {
    let orphans = orphans(root)?.into_iter();
    Ok(orphans.map(|orphan| orphan.path).collect())
}

fn orphans(root: &Path) -> io::Result<Vec<Staging>> {
    let all = root.join(NAME);
    match File::open(&all) {
        Ok(parent) => Staging::orphans(&all, &parent),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Creates a directory for this user only, unless it exists.
fn create_private(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Returns a name that no other batch uses.
fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanoseconds = time.map_or(0, |time| time.as_nanos());
    format!("{}-{number}-{nanoseconds:x}", std::process::id())
}
