// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Where layers are built ahead: a directory of a batch below the snapshotter's root.

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

use crate::extract::get;
use crate::remove::remove;

/// Not in `snapshots/`, where a snapshotter removes what it does not know.
const NAME: &str = ".resnap";

/// What is moved to a snapshot to see whether it can be, and removed at once.
const TRIAL: &str = ".resnap-trial";

/// A batch's own directory.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(crate) path: PathBuf,
    parent: OwnedFd,
    /// Locked while this process lives and wants it.
    _lock: File,
}

impl Staging {
    /// Makes a directory, and finds those that no process holds.
    pub(crate) fn begin(root: &Path) -> io::Result<(Self, Vec<Self>)> {
        let all = root.join(NAME);
        make(&all)?;
        // What is moved from here keeps its label.
        let snapshots = File::open(root.join("snapshots"))?;
        let parent = File::open(&all)?;
        let label = get(&snapshots, b"security.selinux")?;
        if let Some(label) = label.filter(|label| {
            let own = get(&parent, b"security.selinux");
            !own.is_ok_and(|own| own.as_ref() == Some(label))
        }) {
            fsetxattr(&parent, "security.selinux", &label, XattrFlags::empty())?;
        }
        let dead = Self::dead_in(&all, &parent)?;
        let path = all.join(unique());
        make(&path)?;
        let this = Self::lock(path, &all)?.ok_or(io::ErrorKind::WouldBlock)?;
        Ok((this, dead))
    }

    /// As long as `parent`, that of `all`, is open nobody makes one, which would look like a dead
    /// one before it is locked.
    fn dead_in(all: &Path, parent: &File) -> io::Result<Vec<Self>> {
        flock(parent, FlockOperation::LockExclusive)?;
        let mut dead = Vec::new();
        for entry in all.read_dir()? {
            dead.extend(Self::lock(entry?.path(), all)?);
        }
        Ok(dead)
    }

    /// Takes a directory, unless a process holds it.
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

    /// Whether what is made here can be moved to `directory`.
    pub(crate) fn reaches(&self, directory: &Path) -> io::Result<bool> {
        let (from, to) = (self.path.join(TRIAL), directory.join(TRIAL));
        File::create(&from)?;
        match std::fs::rename(&from, &to) {
            Ok(()) => std::fs::remove_file(&to).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the directory with all that is in it.
    pub(crate) fn remove(self) -> io::Result<()> {
        let name = self.path.file_name().unwrap_or_default();
        remove(&self.parent, name.as_bytes(), &|| Ok(()))
    }
}

/// Removes what processes that were killed had built ahead for a snapshotter, by its root.
///
/// A batch does the same at its beginning. It blocks, for as long as that many files take.
///
/// # Errors
///
/// The system's.
pub fn clear(root: &Path) -> io::Result<()> {
    let all = root.join(NAME);
    let dead = match File::open(&all) {
        Ok(parent) => Staging::dead_in(&all, &parent)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    dead.into_iter().try_for_each(Staging::remove)
}

/// Makes a directory for us alone, if it is not there.
fn make(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn unique() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanoseconds = time.map_or(0, |time| time.as_nanos());
    format!("{}-{number}-{nanoseconds:x}", std::process::id())
}
