// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The place of a layer in a chain, for errors.

use super::fault::Fault;
use crate::copy_fault::CopyFault;
use crate::error::StreamError;

/// The place of a layer in a chain.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The base is 0.
    pub(super) index: usize,
    /// The name of the snapshot.
    pub(super) snapshot: String,
}

impl Place {
    /// Returns the error of a fault at a path of the layer.
    pub(super) fn error(&self, path: &[u8], fault: Fault) -> StreamError {
        match fault {
            Fault::Stopped(reason) => StreamError::Stopped(reason),
            Fault::Io(error) => StreamError::Source(path.to_vec(), error),
            Fault::Entry(fault) => StreamError::Copy(CopyFault::Entry {
                index: self.index,
                snapshot: self.snapshot.clone(),
                path: path.to_vec(),
                fault,
            }),
        }
    }
}
