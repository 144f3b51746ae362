// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Names of inodes that have several.

use std::collections::HashMap;

use super::listing::NAME;
use crate::guard::Guard;
use crate::memory::StopReason;

/// The first paths of inodes that have several.
#[derive(Debug, Default)]
pub(super) struct Links(HashMap<u64, Vec<u8>>);

impl Links {
    /// Returns the first path of an inode, if this is another. `inode` is `None` if it has only this.
    pub(super) fn find(
        &mut self,
        inode: Option<u64>,
        path: &[u8],
        guard: &Guard,
    ) -> Result<Option<Vec<u8>>, StopReason> {
        let Some(inode) = inode else {
            return Ok(None);
        };
        if let Some(first) = self.0.get(&inode) {
            return Ok(Some(first.clone()));
        }
        guard.take_memory(NAME + path.len() as u64)?;
        self.0.insert(inode, path.to_vec());
        Ok(None)
    }
}
