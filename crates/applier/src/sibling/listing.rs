// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Lists of the names in a directory.

use std::os::fd::OwnedFd;

use resnap_layer::Limits;
use rustix::fs::{self, AtFlags, Dir, FileType};

use super::fault::Fault;
use crate::copy_fault::EntryFault;
use crate::guard::Guard;

/// Bytes that a name or path takes besides its own.
pub(super) const NAME: u64 = 96;

/// The names in a directory, in order. Sockets are left out: no layer has them.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: Vec<Vec<u8>>,
    pub(super) directories: Vec<Vec<u8>>,
}

impl Listing {
    /// Lists a directory. Takes memory for each name. `before` is the number of files before it.
    pub(super) fn read(fd: &OwnedFd, before: usize, guard: &Guard) -> Result<Self, Fault> {
        let mut listing = Self::default();
        let limit = Limits::default().entries;
        let mut count = before;
        for entry in Dir::read_from(fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            count += 1;
            if count > limit {
                return Err(EntryFault::Count(limit).into());
            }
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    let stat = fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode)
                }
                kind => kind,
            };
            let names = match kind {
                FileType::Socket => continue,
                FileType::Directory => &mut listing.directories,
                _ => &mut listing.files,
            };
            guard.take_memory(NAME + name.len() as u64)?;
            names.push(name.to_vec());
        }
        listing.files.sort_unstable();
        listing.directories.sort_unstable();
        Ok(listing)
    }
}
