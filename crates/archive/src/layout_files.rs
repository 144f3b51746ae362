// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Writing the files of a layout, so that a process that is killed leaves no part of one.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::path::Path;

use resnap_core::{Digest, IndexDocument, ReferrerList};
use rustix::fs::OFlags;

use crate::directory::Directory;
use crate::layout::{BLOBS, INDEX, MARKER};

/// The content of the file that makes a directory a layout.
const VERSION: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// The beginning of the names of temporary files.
const TEMPORARY: &str = ".resnap-";

/// The limit on the number of temporary files.
const MAX_TEMPORARY: u32 = 1 << 16;

/// Opens a directory that can be locked, and creates it if it does not exist.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if it is neither a layout nor empty.
pub(crate) fn prepare(path: &Path) -> io::Result<Directory> {
    fs::create_dir_all(path).map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => ErrorKind::NotADirectory.into(),
        _ => error,
    })?;
    let layout = Directory::open(path)?;
    let mut is_empty = true;
    for entry in fs::read_dir(path)? {
        if entry?.file_name() == MARKER {
            return Ok(layout);
        }
        is_empty = false;
    }
    if !is_empty {
        let text = "it is no OCI layout, and not empty; name a layout, or a directory that is empty or new";
        return Err(io::Error::new(ErrorKind::InvalidInput, text));
    }
    match layout.create(MARKER) {
        // Another process has just done the same.
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        created => drop(created?),
    }
    Ok(layout)
}

/// Opens the file of a blob; `None` if the layout has none. It is unchecked.
pub(crate) fn open_blob(layout: &Directory, digest: &Digest) -> io::Result<Option<File>> {
    let blobs = layout.child(BLOBS);
    let blobs = match blobs.and_then(|blobs| blobs.child(digest.algorithm())) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        blobs => blobs?,
    };
    match blobs.has_file(digest.encoded())? {
        true => blobs.file(digest.encoded(), OFlags::RDONLY).map(Some),
        false => Ok(None),
    }
}

/// The lock of a layout. It ends with its holder in any case.
pub(crate) struct Lock(File);

impl Lock {
    /// Locks a layout; `None` if another one holds the lock.
    pub(crate) fn try_new(layout: &Directory) -> io::Result<Option<Self>> {
        // Not the directory: it cannot be locked on NFS.
        let marker = layout.file(MARKER, OFlags::RDWR)?;
        match marker.try_lock() {
            Ok(()) => Ok(Some(Self(marker))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Completes a new layout, and removes what killed processes left in it.
    pub(crate) fn complete(&mut self, layout: &Directory) -> io::Result<()> {
        let has_index = layout.has_only_file(INDEX)?;
        let blobs = layout.create_child(BLOBS)?;
        for directory in [layout, &blobs] {
            sweep(directory)?;
        }
        if self.0.metadata()?.len() == 0 {
            self.0.write_all(VERSION)?;
            self.0.sync_all()?;
        }
        match has_index {
            true => Ok(()),
            false => self.write_index(layout, &IndexDocument::empty()),
        }
    }

    /// Creates a temporary file for a blob.
    pub(crate) fn temporary(&self, layout: &Directory) -> io::Result<Temporary> {
        Temporary::create(&layout.child(BLOBS)?)
    }

    /// Changes the index. `change` returns whether it changed something.
    pub(crate) fn edit_index(
        &self,
        layout: &Directory,
        change: impl FnOnce(&mut IndexDocument) -> bool,
    ) -> io::Result<()> {
        let limit = ReferrerList::MAX_DOCUMENT as u64;
        let mut bytes = Vec::new();
        let file = layout.file(INDEX, OFlags::RDONLY)?;
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

    fn write_index(&self, layout: &Directory, index: &IndexDocument) -> io::Result<()> {
        let bytes = index.to_bytes();
        let bytes = bytes.map_err(|error| io::Error::new(ErrorKind::FileTooLarge, error))?;
        let mut temporary = Temporary::create(layout)?;
        temporary.file.write_all(&bytes)?;
        temporary.rename(layout, INDEX)
    }
}

/// A temporary file. It is locked while its process lives, and removed on drop.
pub(crate) struct Temporary {
    file: File,
    directory: Directory,
    name: String,
    /// Whether the name may be that of another writer's.
    is_renamed: bool,
}

impl Temporary {
    /// Creates a temporary file. The lock of the layout is held, or it could be swept before it is locked.
    fn create(directory: &Directory) -> io::Result<Self> {
        for number in 0..MAX_TEMPORARY {
            let name = format!("{TEMPORARY}{number}");
            let file = match directory.create(&name) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                file => file?,
            };
            let temporary = Self {
                file,
                directory: directory.clone(),
                name,
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
    pub(crate) fn store(self, layout: &Directory, digest: &Digest) -> io::Result<()> {
        let blobs = layout.child(BLOBS)?.create_child(digest.algorithm())?;
        self.rename(&blobs, digest.encoded())
    }

    fn rename(mut self, to: &Directory, name: &str) -> io::Result<()> {
        self.file.sync_all()?;
        self.directory.rename(&self.name, to, name)?;
        self.is_renamed = true;
        to.sync()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.is_renamed {
            // What is left is swept later.
            let _ = self.directory.remove(&self.name);
        }
    }
}

/// Removes the temporary files of processes that ended.
fn sweep(directory: &Directory) -> io::Result<()> {
    for name in directory.names()? {
        let name = name?;
        if !name.starts_with(TEMPORARY) || !directory.has_file(&name)? {
            continue;
        }
        let file = directory.file(&name, OFlags::RDWR);
        if file.is_ok_and(|file| file.try_lock().is_ok()) {
            directory.remove(&name)?;
        }
    }
    Ok(())
}
