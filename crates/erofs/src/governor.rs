// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Limits on the memory and time of a writer, set by its caller.

use std::error::Error as StdError;
use std::fmt;

/// The reason why a [`Governor`] stops a writer.
pub type Refusal = Box<dyn StdError + Send + Sync>;

/// Limits the memory of a writer, and may stop it.
pub trait Governor: fmt::Debug + Send {
    /// Takes this many bytes, before they are allocated. They are free again when the governor is
    /// dropped.
    ///
    /// # Errors
    ///
    /// The limit is reached: the image is not written.
    fn take(&mut self, bytes: u64) -> Result<(), Refusal>;

    /// Called before each entry of the layer.
    ///
    /// # Errors
    ///
    /// The image is no longer wanted.
    fn entry(&mut self) -> Result<(), Refusal>;
}

/// A governor with a fixed limit of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    left: u64,
    limit: u64,
}

impl Memory {
    /// Returns a governor with this limit of bytes.
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
