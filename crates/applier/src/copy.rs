// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Copies of bytes into the images of layers.

use std::fs::File;
use std::io::{self, Read, Write as _};

use crate::error::{Error, IoContext as _};
use crate::guard::Guard;

/// The bytes of a stream that are copied at once.
const PIECE: usize = 256 * 1024;

/// The most bytes of a file that are copied before it is checked that the work continues.
const FILE_PIECE: u64 = 64 << 20;

/// Copies a layer's stream to its end into the file of an image, and returns the number of bytes.
pub(crate) fn copy_stream(
    from: &mut impl Read,
    mut to: &File,
    guard: &Guard,
) -> Result<u64, Error> {
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

/// Copies `size` bytes from the position of one file to that of another, or fewer if the first ends: in the
/// kernel, by a reflink where the file system can. `operation` is that of its errors.
pub(crate) fn copy_file(
    from: &File,
    mut to: &File,
    size: u64,
    operation: &'static str,
    guard: &Guard,
) -> Result<(), Error> {
    let mut left = size;
    while left > 0 {
        guard.step()?;
        let copied = io::copy(&mut from.take(left.min(FILE_PIECE)), &mut to);
        match copied.context(operation)? {
            0 => break,
            copied => left -= copied,
        }
    }
    Ok(())
}
