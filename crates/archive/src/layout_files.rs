// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Writing the files of a layout, so that a process that is killed leaves no part of one.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use resnap_core::{Digest, IndexDocument, ReferrerList};
use rustix::fs::OFlags;

use crate::layout::{BLOBS, INDEX, MARKER, blobs};

/// The content of the file that makes a directory a layout.
const VERSION: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The beginning of the names of temporary files.
const TEMPORARY: &str = ".resnap-";

/// The limit on the number of temporary files.
const MAX_TEMPORARY: u32 = 1 << 16;

/// Makes a directory one that can be locked, and creates it if it does not exist.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if it is neither a layout nor empty.
pub(crate) fn prepare(layout: &Path) -> io::Result<()> {
    fs::create_dir_all(layout).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => ErrorKind::NotADirectory.into(),
        _ => error,
    })?;
    let mut is_empty = true;
    for entry in fs::read_dir(layout)? {
        if entry?.file_name() == MARKER {
            return Ok(());
        }
        is_empty = false;
    }
    if !is_empty {
        let text = "it is no OCI layout, and not empty; name a layout, or a directory that is empty or new";
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    let mut options = options();
    options.create(true).open(layout.join(MARKER)).map(drop)
}

/// The lock of a layout. It ends with its holder in any case.
pub(crate) struct Lock(File);

impl Lock {
    /// Locks a layout; `None` if another one holds the lock.
    pub(crate) fn try_new(layout: &Path) -> io::Result<Option<Self>> {
        // Not the directory: it cannot be locked on NFS.
        let marker = options().open(layout.join(MARKER))?;
        if !marker.metadata()?.is_file() {
            let text = format!("its {MARKER} is no file");
            return Err(io::Error::new(ErrorKind::InvalidInput, text));
        }
        match marker.try_lock() {
            Ok(()) => Ok(Some(Self(marker))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Completes a new layout, and removes what killed processes left in it.
    pub(crate) fn complete(&mut self, layout: &Path) -> io::Result<()> {
        let blobs = layout.join(BLOBS);
        fs::create_dir_all(&blobs)?;
        for directory in [layout, &blobs] {
            sweep(directory)?;
        }
        if self.0.metadata()?.len() == 0 {
            self.0.write_all(VERSION)?;
            self.0.sync_all()?;
        }
        if layout.join(INDEX).symlink_metadata().is_err() {
            self.write_index(layout, &IndexDocument::empty())?;
        }
        Ok(())
    }

    /// Creates a temporary file for a blob.
    pub(crate) fn temporary(&self, layout: &Path) -> io::Result<Temporary> {
        Temporary::create(&layout.join(BLOBS))
    }

    /// Changes the index. `change` returns whether it changed something.
    pub(crate) fn edit_index(
        &self,
        layout: &Path,
        change: impl FnOnce(&mut IndexDocument) -> bool,
    ) -> io::Result<()> {
        let limit = ReferrerList::MAX_DOCUMENT as u64;
        let mut bytes = Vec::new();
        let file = OpenOptions::new().read(true).open(layout.join(INDEX))?;
        file.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            let text = format!("{INDEX} has more than {limit} bytes");
            return Err(io::Error::new(ErrorKind::FileTooLarge, text));
        }
        let mut index = serde_json::from_slice(&bytes).map_err(|error| {
            let text = format!("{INDEX} is malformed: {error}");
            io::Error::new(ErrorKind::InvalidData, text)
        })?;
        match change(&mut index) {
            true => self.write_index(layout, &index),
            false => Ok(()),
        }
    }

    fn write_index(&self, layout: &Path, index: &IndexDocument) -> io::Result<()> {
        let bytes = index.to_bytes();
        let bytes = bytes.map_err(|error| io::Error::new(ErrorKind::FileTooLarge, error))?;
        let mut temporary = Temporary::create(layout)?;
        temporary.file.write_all(&bytes)?;
        temporary.rename(&layout.join(INDEX))
    }
}

/// A temporary file. It is locked while its process lives, and removed on drop.
pub(crate) struct Temporary {
    file: File,
    path: PathBuf,
    /// Whether the path may be that of another writer's.
    is_renamed: bool,
}

impl Temporary {
    /// Creates a temporary file. The lock of the layout is held, or it could be swept before it is locked.
    fn create(directory: &Path) -> io::Result<Self> {
        for number in 0..MAX_TEMPORARY {
            let path = directory.join(format!("{TEMPORARY}{number}"));
            let file = match options().create_new(true).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                file => file?,
            };
            let temporary = Self {
                file,
                path,
                is_renamed: false,
            };
            temporary.file.try_lock()?;
            return Ok(temporary);
        }
        let text = format!("more than {MAX_TEMPORARY} writers at once");
        Err(io::Error::new(ErrorKind::QuotaExceeded, text))
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Makes it the file of a blob.
    pub(crate) fn store(self, layout: &Path, digest: &Digest) -> io::Result<()> {
        let directory = blobs(layout, digest);
        if !directory.is_dir() {
            fs::create_dir_all(&directory)?;
            File::open(layout.join(BLOBS))?.sync_all()?;
        }
        self.rename(&directory.join(digest.encoded()))
    }

    fn rename(mut self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        self.is_renamed = true;
        match target.parent() {
            Some(directory) => File::open(directory)?.sync_all(),
            None => Ok(()),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_renamed {
            // What is left is swept later.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Removes the temporary files of processes that ended.
fn sweep(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let is_temporary = entry.file_name().to_string_lossy().starts_with(TEMPORARY);
        if !is_temporary || !entry.file_type()?.is_file() {
            continue;
        }
        let file = options().open(entry.path());
        if file.is_ok_and(|file| file.try_lock().is_ok()) {
            match fs::remove_file(entry.path()) {
                // Its writer has just finished.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed?,
            }
        }
    }
    Ok(())
}

/// Returns the options for a file that is written. A link must not lead elsewhere, and a FIFO must not block.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    options
        .read(true)
        .write(true)
        .custom_flags(flags.bits() as i32);
    options
}
