// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images of which the publisher made the index: the index, the layer's tar, and zeros.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use resnap_core::SignedIndex;

use crate::copy::copy_stream;
use crate::create::create;
use crate::error::{Error, IoContext as _};
use crate::guard::Guard;
use crate::source::Source;

/// An index and a tar in one file.
pub(crate) struct IndexedImage {
    pub(crate) file: File,
    /// The bytes of index, tar and zeros.
    pub(crate) size: u64,
    pub(crate) index: Arc<SignedIndex>,
}

impl IndexedImage {
    /// Writes the index, and behind it a tar to its end.
    pub(crate) fn write(
        path: &Path,
        bytes: Source,
        index: Arc<SignedIndex>,
        tar: &mut impl Read,
        guard: &Guard,
    ) -> Result<Self, Error> {
        let mut file = create(path).context("create the EROFS image")?;
        let limit = index.index.size;
        let indexed = copy_stream(&mut bytes.take(limit + 1), &mut file, guard)?;
        if indexed != limit {
            let text = format!("its index has {indexed} bytes or more, instead of {limit}");
            return Err(Error::Unproven(text));
        }
        let size = indexed + copy_stream(tar, &mut file, guard)?;
        let size = size.checked_next_multiple_of(index.multiple.max(1));
        let size = size.ok_or_else(|| Error::Unproven("it is too large".to_owned()))?;
        Ok(Self { file, size, index })
    }
}
