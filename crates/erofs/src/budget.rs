// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Accounting of the memory that a writer allocates.

use crate::error::Fault;
use crate::governor::Governor;

/// The number of items that a vector starts with.
const MIN_ITEMS: usize = 64;

/// The memory that a governor grants.
#[derive(Debug)]
pub(crate) struct ByteBudget(Box<dyn Governor>);

impl ByteBudget {
    pub(crate) fn new(governor: Box<dyn Governor>) -> Self {
        Self(governor)
    }

    /// Takes this many bytes, before they are allocated.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<(), Fault> {
        self.0.take(bytes).map_err(Fault::Refused)
    }

    /// Announces the next entry.
    pub(crate) fn entry(&mut self) -> Result<(), Fault> {
        self.0.entry().map_err(Fault::Refused)
    }

    /// Reserves capacity for `more` items. A full vector grows by a quarter: doubling it would leave
    /// most of a large budget unused.
    pub(crate) fn grow<T>(&mut self, items: &mut Vec<T>, more: usize) -> Result<(), Fault> {
        let (length, capacity) = (items.len(), items.capacity());
        let wanted = length + more;
        if wanted <= capacity {
            return Ok(());
        }
        let wanted = wanted.max(capacity + capacity / 4).max(MIN_ITEMS);
        self.take(((wanted - capacity) * size_of::<T>()) as u64)?;
        items.reserve_exact(wanted - length);
        Ok(())
    }
}
