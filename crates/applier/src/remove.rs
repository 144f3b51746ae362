// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Removing trees of any depth with three descriptors.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{self, AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes what is at a name, with all that is in it, as long as `goes_on` says so for each thing in
/// it; follows nothing. That nothing is there is fine.
pub(crate) fn remove(
    parent: &OwnedFd,
    name: &[u8],
    goes_on: &dyn Fn() -> io::Result<()>,
) -> io::Result<()> {
    match fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // POSIX would have the latter.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let top = fs::openat(parent, name, DIRECTORY, Mode::empty())?;
    // A directory in it that is not empty is moved to the top, where its turn comes.
    let mut todo = empty(&top, &top, &mut 0, goes_on)?;
    let mut number = 0;
    while let Some(name) = todo.pop() {
        let directory = fs::openat(&top, &name[..], DIRECTORY, Mode::empty())?;
        todo.extend(empty(&directory, &top, &mut number, goes_on)?);
        fs::unlinkat(&top, &name[..], AtFlags::REMOVEDIR)?;
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?;
    Ok(())
}

/// Empties a directory; answers with the names, at the top, of the directories that were in it.
fn empty(
    directory: &OwnedFd,
    top: &OwnedFd,
    number: &mut u64,
    goes_on: &dyn Fn() -> io::Result<()>,
) -> io::Result<Vec<Vec<u8>>> {
    let is_top = std::ptr::eq(directory, top);
    let mut left = Vec::new();
    for entry in Dir::read_from(directory)? {
        goes_on()?;
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
