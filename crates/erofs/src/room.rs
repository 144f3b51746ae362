// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! How many bytes a layer may have kept, and whether it goes on.

use std::error::Error as StdError;
use std::fmt;

use crate::error::Fault;

/// Why a writer does not go on.
pub type Refusal = Box<dyn StdError + Send + Sync>;

/// Says how much memory a writer may take, and whether it goes on.
pub trait Governor: fmt::Debug + Send {
    /// Takes this many bytes, before they are kept. They are free again when the governor is dropped.
    ///
    /// # Errors
    ///
    /// There are not as many: the image is not written.
    fn take(&mut self, bytes: u64) -> Result<(), Refusal>;

    /// Begins with another entry of the layer.
    ///
    /// # Errors
    ///
    /// Nobody wants the image any more.
    fn entry(&mut self) -> Result<(), Refusal>;
}

/// A fixed number of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    left: u64,
    limit: u64,
}

impl Memory {
    /// This many bytes.
    pub fn new(limit: u64) -> Self {
        Self { left: limit, limit }
    }
}

impl Governor for Memory {
    fn take(&mut self, bytes: u64) -> Result<(), Refusal> {
        let left = self.left.checked_sub(bytes);
        self.left = left.ok_or_else(|| format!("more than {} bytes of memory", self.limit))?;
        Ok(())
    }

    fn entry(&mut self) -> Result<(), Refusal> {
        Ok(())
    }
}

/// What a governor leaves.
#[derive(Debug)]
pub(crate) struct Room(Box<dyn Governor>);

impl Room {
    pub(crate) fn new(governor: Box<dyn Governor>) -> Self {
        Self(governor)
    }

    /// Takes this many bytes, before they are kept.
    pub(crate) fn take(&mut self, bytes: u64) -> Result<(), Fault> {
        self.0.take(bytes).map_err(Fault::Refused)
    }

    /// Begins with another entry.
    pub(crate) fn entry(&mut self) -> Result<(), Fault> {
        self.0.entry().map_err(Fault::Refused)
    }

    /// Has a vector take so many more, which grows by a quarter when it is full: twice what it has
    /// would be most of its bytes for nothing.
    pub(crate) fn grow<T>(&mut self, items: &mut Vec<T>, more: usize) -> Result<(), Fault> {
        let (length, capacity) = (items.len(), items.capacity());
        let wanted = length + more;
        if wanted <= capacity {
            return Ok(());
        }
        let wanted = wanted.max(capacity + capacity / 4).max(LEAST);
        self.take(((wanted - capacity) * size_of::<T>()) as u64)?;
        items.reserve_exact(wanted - length);
        Ok(())
    }
}

/// How many items a vector begins with.
const LEAST: usize = 64;
