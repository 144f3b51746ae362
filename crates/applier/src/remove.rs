// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Removal of trees of any depth with three descriptors.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use rustix::fs::{self, AtFlags, Dir, Mode, RenameFlags};
use rustix::io::Errno;

use crate::beneath::DIRECTORY;

/// Removes a file, or a directory of any depth with everything in it. Does not follow links, and succeeds if there
/// is nothing. Blocks.
///
/// # Errors
///
/// The path has no parent, or a file cannot be removed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let parent = fs::open(parent, DIRECTORY, Mode::empty())?;
    remove(&parent, name.as_bytes(), &|| Ok(()))
}

/// Removes a name with everything in it, without following links. Succeeds if there is nothing.
///
/// `check` is called for each file, and its error ends the removal.
pub(crate) fn remove(
    parent: &OwnedFd,
    name: &[u8],
    check: &dyn Fn() -> io::Result<()>,
) -> io::Result<()> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux returns the former for directories, POSIX specifies the latter.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    // Directories that are not empty are moved to the top, and removed from there.
    let mut todo = empty(&top, &top, &mut 0, check)?;
    let mut number = 0;
    while let Some(name) = todo.pop() {
        let directory = fs::openat(&top, &name[..], DIRECTORY, Mode::empty())?;
        todo.extend(empty(&directory, &top, &mut number, check)?);
        fs::unlinkat(&top, &name[..], AtFlags::REMOVEDIR)?;
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(())
}

/// Empties a directory. Returns the names at the top of the directories that were moved there.
fn empty(
    directory: &OwnedFd,
    top: &OwnedFd,
    number: &mut u64,
    check: &dyn Fn() -> io::Result<()>,
) -> io::Result<Vec<Vec<u8>>> {
    let is_top = std::ptr::eq(directory, top);
    let mut left = Vec::new();
    for entry in Dir::read_from(directory)? {
        check()?;
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        match fs::unlinkat(directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
        match fs::unlinkat(directory, name, AtFlags::REMOVEDIR) {
            Ok(()) => continue,
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        if is_top {
            left.push(name.to_bytes().to_vec());
            continue;
        }
        loop {
            *number += 1;
            let new = format!("{number}").into_bytes();
            match fs::renameat_with(directory, name, top, &new[..], RenameFlags::NOREPLACE) {
                Err(Errno::EXIST) => {}
                moved => {
                    moved?;
                    left.push(new);
                    break;
                }
            }
        }
    }
    Ok(left)
}
