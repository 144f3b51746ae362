// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images of which the publisher made the index: the index, the layer's tar, and zeros.

use std::fs::File;
use std::io::Read;

use resnap_core::TarIndex;

use crate::copy::copy_stream;
use crate::error::Error;
use crate::guard::Guard;
use crate::source::Source;

/// Writes an image to an empty file: the index, and behind it a tar to its end. Returns the bytes of index, tar
/// and zeros.
pub(crate) fn write_indexed(
    file: &File,
    bytes: Source,
    index: &TarIndex,
    tar: &mut impl Read,
    guard: &Guard,
) -> Result<u64, Error> {
    let limit = index.blob.size;
    let indexed = copy_stream(&mut bytes.take(limit + 1), file, guard)?;
    if indexed != limit {
        let text = format!("the index has {indexed} bytes or more, instead of {limit}");
        return Err(Error::WrongArtifact(text));
    }
    let size = indexed + copy_stream(tar, file, guard)?;
    let size = size.checked_next_multiple_of(index.multiple.max(1));
    size.ok_or_else(|| Error::Unproven("it is too large".to_owned()))
}
