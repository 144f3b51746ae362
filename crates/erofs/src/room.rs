// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! How many bytes a layer may have kept.

use crate::error::Fault;

/// What is left of a limit.
#[derive(Debug)]
pub(crate) struct Room {
    left: u64,
    limit: u64,
}

impl Room {
    pub(crate) fn new(limit: u64) -> Self {
        Self { left: limit, limit }
    }

    /// Takes this many bytes, before they are kept.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<(), Fault> {
        let left = self.left.checked_sub(bytes);
        self.left =
            left.ok_or_else(|| Fault::limit("bytes of names, links and attributes", self.limit))?;
        Ok(())
    }
}
