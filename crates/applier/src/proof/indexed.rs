// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Images of which the publisher made the index: the index, the layer's tar, and zeros.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

use resnap_core::SignedIndex;

use crate::error::{Error, IoContext as _};
use crate::guard::Guard;
use crate::source::Source;

/// Bytes that are copied at once.
const PIECE: usize = 256 * 1024;

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
        let mut options = File::options();
        let options = options.read(true).write(true).create_new(true).mode(0o644);
        let mut file = options.open(path).context("create the EROFS image")?;
        let limit = index.index.size;
        let indexed = copy(&mut bytes.take(limit + 1), &mut file, guard)?;
        if indexed != limit {
            let text = format!("its index has {indexed} bytes or more, instead of {limit}");
            return Err(Error::Unproven(text));
        }
        let size = indexed + copy(tar, &mut file, guard)?;
        let size = size.checked_next_multiple_of(index.multiple.max(1));
        let size = size.ok_or_else(|| Error::Unproven("it is too large".to_owned()))?;
        Ok(Self { file, size, index })
    }
}

fn copy(from: &mut impl Read, to: &mut File, guard: &Guard) -> Result<u64, Error> {
    let (mut buffer, mut total) = (vec![0; PIECE], 0);
    loop {
        guard.step()?;
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("read the layer"),
        };
        let piece = buffer.get(..count).unwrap_or_default();
        to.write_all(piece).context("write the EROFS image")?;
        total += count as u64;
    }
}
