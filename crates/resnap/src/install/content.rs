// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Whole files: what is there, and what takes its place.

use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, fchown};
use std::path::Path;

use anyhow::{Context as _, Result};
use tempfile::NamedTempFile;

use super::files::NodeFile;

/// The content of a file, with its mode and owner.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
    /// The user and the group; those of this process, if `None`.
    owner: Option<(u32, u32)>,
}

impl Content {
    pub(super) fn of(file: &NodeFile) -> Self {
        Self {
            bytes: file.bytes.clone(),
            mode: file.mode,
            owner: None,
        }
    }

    /// Returns whether it is that of the file, whoever owns it.
    pub(super) fn is_of(&self, file: &NodeFile) -> bool {
        self.bytes == file.bytes && self.mode == file.mode
    }

    /// Reads a file. Returns `None` if it is not there.
    pub(super) fn read(path: &Path) -> Result<Option<Self>> {
        let read = || {
            let metadata = fs::metadata(path)?;
            Ok(Self {
                bytes: fs::read(path)?,
                mode: metadata.permissions().mode() & 0o7777,
                owner: Some((metadata.uid(), metadata.gid())),
            })
        };
        match read() {
            Ok(content) => Ok(Some(content)),
            Err(error) if io::Error::kind(&error) == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {path:?}")),
        }
    }
}

/// Puts a whole file in the place of what is there.
pub(super) fn put(path: &Path, content: &Content) -> Result<()> {
    let write = || {
        let directory = path.parent().unwrap_or(Path::new("/"));
        let mut file = NamedTempFile::new_in(directory)?;
        file.write_all(&content.bytes)?;
        if let Some((user, group)) = content.owner {
            fchown(file.as_file(), Some(user), Some(group))?;
        }
        // A change of the owner takes bits of the mode.
        let mode = Permissions::from_mode(content.mode);
        file.as_file().set_permissions(mode)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        io::Result::Ok(())
    };
    write().with_context(|| format!("write {path:?}"))
}
