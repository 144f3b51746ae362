// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Lists of the names in a directory.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use resnap_layer::Limits;
use rustix::fs::{self, AtFlags, FileType, RawDir};

use super::fault::Fault;
use crate::copy_fault::EntryFault;
use crate::guard::Guard;

/// Bytes that a name or path takes besides its own.
pub(super) const NAME: u64 = 96;

/// Bytes of entries that are listed at once: nearly all directories have fewer.
const BUFFER: usize = 32 * 1024;

/// The name of what is not a directory.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct FileName {
    pub(super) name: Vec<u8>,
    pub(super) is_regular: bool,
}

/// Lists directories.
#[derive(Debug)]
pub(super) struct Lister(Box<[MaybeUninit<u8>]>);

/// The names in a directory, in order. Sockets are left out: no layer has them.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) files: Vec<FileName>,
    pub(super) directories: Vec<Vec<u8>>,
}

impl Default for Lister {
    fn default() -> Self {
        Self(Box::new_uninit_slice(BUFFER))
    }
}

impl Lister {
    /// Lists a directory that was opened for this. Takes memory for each name. `before` is the number of
    /// files before it.
    pub(super) fn list(
        &mut self,
        fd: &OwnedFd,
        before: usize,
        guard: &Guard,
    ) -> Result<Listing, Fault> {
        let mut listing = Listing::default();
        let limit = Limits::default().entries;
        let mut count = before;
        let mut entries = RawDir::new(fd, &mut self.0);
        while let Some(entry) = entries.next() {
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
            if kind == FileType::Socket {
                continue;
            }
            guard.take_memory(NAME + name.len() as u64)?;
            let name = name.to_vec();
            match kind {
                FileType::Directory => listing.directories.push(name),
                kind => listing.files.push(FileName {
                    name,
                    is_regular: kind == FileType::RegularFile,
                }),
            }
        }
        listing.files.sort_unstable();
        listing.directories.sort_unstable();
        Ok(listing)
    }
}
