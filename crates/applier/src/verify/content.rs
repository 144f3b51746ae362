// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The data of a file, compared with digests.

use std::io;

use super::skeleton::{BLOCK, Digests};
use crate::error::StreamError;
use crate::pace::Pace;
use crate::sibling::FileData;

/// Blocks that are read at once.
const PIECE: u64 = 64;

/// Returns the offset of the first block of a file that does not have the digest of the expected one. Both have
/// the same size. `buffer` is used again.
pub(super) fn first_difference(
    expected: &FileData,
    found: &FileData,
    digests: &Digests,
    buffer: &mut Vec<u8>,
    pace: &Pace,
) -> io::Result<Option<u64>> {
    let mut at = 0;
    while at < found.size {
        let length = (found.size - at).min(PIECE * BLOCK);
        pace.read(length).map_err(StreamError::Stopped)?;
        buffer.clear();
        // The image has zeros behind the end of a file.
        let whole = usize::try_from(length.next_multiple_of(BLOCK)).unwrap_or_default();
        buffer.resize(whole, 0);
        let piece = usize::try_from(length).unwrap_or_default();
        found.read_exact(at, buffer.get_mut(..piece).unwrap_or_default())?;
        for block in buffer.chunks_exact(usize::try_from(BLOCK).unwrap_or(usize::MAX)) {
            if !digests.is_block((expected.start + at) / BLOCK, block) {
                return Ok(Some(at));
            }
            at += BLOCK;
        }
    }
    Ok(None)
}
