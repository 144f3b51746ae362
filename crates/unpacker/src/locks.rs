// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Named locks, within this process and, with a runtime directory, between processes.
//!
//! Between processes a lock is a file that its holder has locked (`flock`), so that the lock ends
//! with the holder in any case. The file names the holder for those that wait.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::OFlags;
use rustix::process::geteuid;
use tokio::sync::Notify;
use uuid::Uuid;

/// The interval at which a lock of another process is tried: waiting in flock cannot be cancelled.
const POLL: Duration = Duration::from_millis(10);

/// The limit on the bytes read from a lock file.
const MAX_HOLDER: u64 = 512;

const SUFFIX: &str = ".lock";

/// The locks of an engine. Clones are the same locks.
#[derive(Debug, Clone)]
pub(crate) struct Locks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: Option<PathBuf>,
    identity: String,
    held: Mutex<HashSet<String>>,
    released: Notify,
}

/// A held lock, released on drop.
#[derive(Debug)]
pub(crate) struct Lock {
    locks: Locks,
    name: String,
    file: Option<File>,
}

/// Creates a runtime directory that only its owner can use. An existing directory must belong to
/// this user, and nobody else may write to it: its contents are trusted.
///
/// # Errors
/// [`io::ErrorKind::PermissionDenied`] if it belongs to another user or others may write to it;
/// [`io::ErrorKind::NotADirectory`]; errors of the operating system.
pub fn make_runtime_dir(dir: &Path) -> io::Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => io::ErrorKind::NotADirectory.into(),
        _ => error,
    })?;
    let metadata = fs::metadata(dir)?;
    let refused = |reason| Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
    let (owner, user) = (metadata.uid(), geteuid().as_raw());
    if owner != user {
        return refused(format!(
            "it belongs to user {owner}, and this is user {user}"
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

impl Locks {
    /// Returns locks that are private to this process.
    pub(crate) fn in_process() -> Self {
        Self::new(None, format!("process {}", Uuid::new_v4().simple()))
    }

    /// Returns locks shared by all processes with the same `dir`, which is created if needed.
    pub(crate) fn in_dir(dir: &Path) -> io::Result<Self> {
        make_runtime_dir(dir)?;
        // Containers may have different directories of the same name.
        let metadata = fs::metadata(dir)?;
        let identity = format!("directory {}:{}", metadata.dev(), metadata.ino());
        Ok(Self::new(Some(dir.to_owned()), identity))
    }

    fn new(dir: Option<PathBuf>, identity: String) -> Self {
        Self(Arc::new(Inner {
            dir,
            identity,
            held: Mutex::default(),
            released: Notify::new(),
        }))
    }

    /// Returns an identity that is equal for all users of the same locks.
    pub(crate) fn identity(&self) -> &str {
        &self.0.identity
    }

    /// Returns whether other processes share these locks.
    pub(crate) fn are_shared(&self) -> bool {
        self.0.dir.is_some()
    }

    /// Takes the lock `name` for `purpose`, or returns its holder.
    pub(crate) fn try_lock(&self, name: &str, purpose: &str) -> io::Result<Result<Lock, String>> {
        if !self.held().insert(name.to_owned()) {
            return Ok(Err("another job of this process".to_owned()));
        }
        // From here on a drop releases the name.
        let mut lock = Lock {
            locks: self.clone(),
            name: name.to_owned(),
            file: None,
        };
        if let Some(path) = self.path(name) {
            match lock_file(&path)? {
                Ok(mut file) => {
                    let holder = format!("process {} ({purpose})", std::process::id());
                    // The text is informative only: failing to write it, as on a full disk, is no
                    // error.
                    let _ = file
                        .set_len(0)
                        .and_then(|()| file.write_all(holder.as_bytes()));
                    lock.file = Some(file);
                }
                Err(file) => return Ok(Err(says(file))),
            }
        }
        Ok(Ok(lock))
    }

    /// Waits for the lock `name`. `waits` is called with each new holder. Cancel-safe.
    pub(crate) async fn lock(
        &self,
        name: &str,
        purpose: &str,
        mut waits: impl FnMut(String),
    ) -> io::Result<Lock> {
        let mut reported = None;
        loop {
            let mut released = pin!(self.0.released.notified());
            // Before the attempt, so that no release is missed.
            released.as_mut().enable();
            let holder = match self.try_lock(name, purpose)? {
                Ok(lock) => return Ok(lock),
                Err(holder) => holder,
            };
            if reported.as_ref() != Some(&holder) {
                waits(holder.clone());
                reported = Some(holder);
            }
            // A release by another process sends no notification.
            tokio::select! {
                () = released => {}
                () = tokio::time::sleep(POLL) => {}
            }
        }
    }

    /// Returns the holder of `name`, if there is one.
    pub(crate) fn holder(&self, name: &str) -> io::Result<Option<String>> {
        if self.held().contains(name) {
            return Ok(Some(format!("process {}", std::process::id())));
        }
        let Some(path) = self.path(name) else {
            return Ok(None);
        };
        if fs::symlink_metadata(&path).is_err() {
            return Ok(None);
        }
        match lock_file(&path)? {
            Err(file) => Ok(Some(says(file))),
            // The file was left behind; this process holds the lock now and may remove it.
            Ok(_locked) => fs::remove_file(path).map(|()| None),
        }
    }

    /// Removes the lock files of processes that ended without doing so.
    pub(crate) fn sweep(&self) -> io::Result<()> {
        let Some(dir) = &self.0.dir else {
            return Ok(());
        };
        for entry in fs::read_dir(dir)? {
            let name = entry?.file_name();
            if let Some(name) = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)) {
                self.holder(name)?;
            }
        }
        Ok(())
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        let dir = self.0.dir.as_ref()?;
        Some(dir.join(format!("{name}{SUFFIX}")))
    }

    fn held(&self) -> MutexGuard<'_, HashSet<String>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.file.is_some()
            && let Some(path) = self.locks.path(&self.name)
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!(?path, %error, "a lock's file stays");
        }
        self.locks.held().remove(&self.name);
        // A failed attempt notifies nobody: it would wake its own caller, which then would not wait
        // at all.
        if self.file.is_some() || !self.locks.are_shared() {
            self.locks.0.released.notify_waiters();
        }
    }
}

/// Opens and locks the file at `path`, which is created if needed; a symbolic link is not followed.
/// Returns `Err` with the open file if another process holds the lock. The lock ends with the file.
///
/// # Errors
/// Errors of the operating system.
pub fn lock_file(path: &Path) -> io::Result<Result<File, File>> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // A link could name another file, which would be emptied.
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Err(file)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // The last holder may have removed the file between the open and the lock.
        let there = fs::symlink_metadata(path).map(|metadata| metadata.ino());
        if there.is_ok_and(|inode| file.metadata().is_ok_and(|own| own.ino() == inode)) {
            return Ok(Ok(file));
        }
    }
}

/// Reads the holder from a lock file.
fn says(file: File) -> String {
    let mut text = String::new();
    // The text is informative only.
    let _ = file.take(MAX_HOLDER).read_to_string(&mut text);
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    if text.is_empty() {
        return "another process".to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    use rustix::io::Errno;

    use super::*;

    fn two() -> (tempfile::TempDir, Locks, Locks) {
        let dir = tempfile::tempdir().unwrap();
        let [first, second] = [(); 2].map(|()| Locks::in_dir(dir.path()).unwrap());
        (dir, first, second)
    }

    #[test]
    fn others_learn_the_holder() {
        let (dir, first, second) = two();
        assert_eq!(first.identity(), second.identity());
        let lock = first.try_lock("a", "web on erofs").unwrap().unwrap();
        let own = format!("process {} (web on erofs)", std::process::id());
        assert_eq!(second.try_lock("a", "").unwrap().unwrap_err(), own);
        assert_eq!(second.holder("a").unwrap(), Some(own));
        assert_eq!(
            first.try_lock("a", "").unwrap().unwrap_err(),
            "another job of this process"
        );
        assert!(second.try_lock("b", "").unwrap().is_ok());
        drop(lock);
        assert!(second.try_lock("a", "").unwrap().is_ok());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }

    #[test]
    fn a_runtime_directory_is_ours_and_closed_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let made = dir.path().join("run/resnap");
        Locks::in_dir(&made).unwrap();
        assert_eq!((mode(&made), mode(made.parent().unwrap())), (0o700, 0o700));
        for (bits, is_taken) in [
            (0o755, true),
            (0o775, false),
            (0o702, false),
            (0o1777, false),
        ] {
            fs::set_permissions(&made, Permissions::from_mode(bits)).unwrap();
            let taken = Locks::in_dir(&made).map(drop);
            let kind = taken.map_err(|error| error.kind());
            let expected = is_taken
                .then_some(())
                .ok_or(io::ErrorKind::PermissionDenied);
            assert_eq!(kind, expected, "{bits:o}");
        }
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Locks::in_dir(&file).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
        // Only root can create a directory of another user.
        if geteuid().is_root() {
            fs::set_permissions(&made, Permissions::from_mode(0o700)).unwrap();
            std::os::unix::fs::chown(&made, Some(1), None).unwrap();
            let error = Locks::in_dir(&made).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("belongs to user 1"), "{error}");
        }
    }

    #[test]
    fn a_link_in_a_locks_place_is_not_followed() {
        let (dir, locks, _) = two();
        let target = dir.path().join("target");
        fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, dir.path().join("a.lock")).unwrap();
        let symlink = Some(Errno::LOOP.raw_os_error());
        let error = locks.try_lock("a", "").unwrap_err();
        assert_eq!(error.raw_os_error(), symlink, "{error}");
        let error = locks.holder("a").unwrap_err();
        assert_eq!(error.raw_os_error(), symlink, "{error}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "precious");
        // The name is free again once the link is gone.
        fs::remove_file(dir.path().join("a.lock")).unwrap();
        assert!(locks.try_lock("a", "").unwrap().is_ok());
    }

    #[test]
    fn files_of_ended_processes_go_and_others_stay() {
        let (dir, first, second) = two();
        let lock = first.try_lock("running", "").unwrap().unwrap();
        fs::write(dir.path().join("ended.lock"), "process 1").unwrap();
        assert_eq!(second.holder("ended").unwrap(), None);
        fs::write(dir.path().join("ended.lock"), "process 1").unwrap();
        second.sweep().unwrap();
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(second.holder("running").unwrap().is_some());
        drop(lock);
    }

    #[tokio::test]
    async fn waiters_get_it_one_by_one() {
        let (_dir, first, second) = two();
        let inside = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let tasks = (0..20).map(|number| {
            let locks = if number % 2 == 0 { &first } else { &second }.clone();
            let inside = Arc::clone(&inside);
            tokio::spawn(async move {
                let lock = locks.lock("a", "", drop).await.unwrap();
                assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0);
                tokio::task::yield_now().await;
                inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                drop(lock);
            })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    }
}
