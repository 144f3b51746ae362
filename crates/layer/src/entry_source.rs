// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The entries of a layer, wherever they are read from.

use std::io::Read;

use crate::entry::{Entry, Piece};
use crate::error::Error;
use crate::reader::Layer;

/// The entries of a layer with their data. [`Layer`] reads them from a tar stream.
pub trait EntrySource {
    /// Returns the next entry, or `None` after the last one. Data of the previous entry that was not read
    /// is skipped.
    ///
    /// # Errors
    ///
    /// The layer is malformed or cannot be read.
    fn next(&mut self) -> Result<Option<Entry>, Error>;

    /// Returns the offset in the layer's tar of the current file's data, or `None` if the data is not in one
    /// piece of a tar. A tar aligns data to 512 bytes.
    fn tar_offset(&self) -> Option<u64>;

    /// Returns the next piece of the current file's data, in the order of offsets, or `None` after the last
    /// one and for entries without data. Holes are left out.
    ///
    /// # Errors
    ///
    /// The data cannot be read.
    fn data(&mut self) -> Result<Option<Piece<'_>>, Error>;
}

impl<R: Read> EntrySource for Layer<R> {
    fn next(&mut self) -> Result<Option<Entry>, Error> {
        Self::next(self)
    }

    fn tar_offset(&self) -> Option<u64> {
        Self::tar_offset(self)
    }

    fn data(&mut self) -> Result<Option<Piece<'_>>, Error> {
        Self::data(self)
    }
}
