// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Sources of a layer's entries whose data may be in files.

use std::fs::File;
use std::io::Read;

use resnap_layer::{EntrySource, Error, Layer};

/// The entries of a layer, with data that may be in files.
pub(crate) trait LayerSource: EntrySource {
    /// Copies data of the current entry to the same offsets of `to`, without passing it through this
    /// process: file systems may share it. Returns the end of what was copied; [`EntrySource::data`] has the
    /// rest.
    fn copy_data(&mut self, to: &File) -> Result<u64, Error>;
}

impl<R: Read> LayerSource for Layer<R> {
    fn copy_data(&mut self, _: &File) -> Result<u64, Error> {
        Ok(0)
    }
}
