// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Faults of reading a layer's directory.

use std::io;

use resnap_erofs::ImageError;

use crate::copy_fault::EntryFault;
use crate::memory::StopReason;

/// The reason why a file or directory cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(transparent)]
    Entry(#[from] EntryFault),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Stopped(#[from] StopReason),
}

impl From<rustix::io::Errno> for Fault {
    fn from(error: rustix::io::Errno) -> Self {
        match error {
            // A committed snapshot does not change.
            rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP => {
                EntryFault::Changed.into()
            }
            error => Self::Io(error.into()),
        }
    }
}

impl From<ImageError> for Fault {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Read { source, .. } => Self::Io(source),
            error => Self::Io(io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    }
}
