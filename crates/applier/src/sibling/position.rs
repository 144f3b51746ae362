// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The position of a walk through a layer.

use resnap_layer::Limits;

use super::fault::Fault;
use crate::copy_fault::EntryFault;
use crate::guard::Guard;

/// The position of a walk: the path that is looked at, and the number of those before.
#[derive(Debug, Default)]
pub(super) struct Position {
    pub(super) path: Vec<u8>,
    pub(super) count: usize,
}

impl Position {
    /// Goes to a file or directory, and counts it.
    pub(super) fn go_to(&mut self, path: Vec<u8>, guard: &Guard) -> Result<(), Fault> {
        guard.begin_entry()?;
        self.path = path;
        let limits = Limits::default();
        self.count += 1;
        if self.count > limits.entries {
            return Err(EntryFault::Count(limits.entries).into());
        }
        if self.path.len() > limits.path {
            return Err(EntryFault::Path(limits.path).into());
        }
        Ok(())
    }
}
