// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The immutable flag of files.

use std::fs::File;
use std::io;

use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use rustix::io::Errno;

/// Returns the flags of a file; `None` on a file system without flags.
pub(crate) fn flags(file: &File) -> io::Result<Option<IFlags>> {
    match ioctl_getflags(file) {
        Ok(flags) => Ok(Some(flags)),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns whether a file is immutable.
pub(crate) fn is_immutable(file: &File) -> io::Result<bool> {
    Ok(flags(file)?.is_some_and(|flags| flags.contains(IFlags::IMMUTABLE)))
}

/// Lifts the immutable flag of a file. Returns whether it had it.
pub(crate) fn lift_immutable(file: &File) -> io::Result<bool> {
    match flags(file)? {
        Some(flags) if flags.contains(IFlags::IMMUTABLE) => {
            ioctl_setflags(file, flags.difference(IFlags::IMMUTABLE))?;
            Ok(true)
        }
        _ => Ok(false),
    }
}
