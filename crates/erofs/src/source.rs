// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The file of an image, and the errors of reading it.

use std::io;
use std::sync::Arc;

/// A file that is read at offsets.
pub trait ReadAt {
    /// Fills `buffer` with the bytes at `offset`.
    ///
    /// # Errors
    ///
    /// The same as [`std::io::Read::read_exact`].
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

#[cfg(unix)]
impl ReadAt for std::fs::File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buffer, offset)
    }
}

impl ReadAt for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let bytes = usize::try_from(offset).ok();
        let bytes = bytes.and_then(|start| self.get(start..)?.get(..buffer.len()));
        buffer.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

impl ReadAt for Vec<u8> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self[..].read_exact_at(buffer, offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for Arc<T> {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}

/// The reason why an image cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file cannot be read, or ends early.
    #[error("read the EROFS image at byte {offset}")]
    Read {
        /// The offset in the file.
        offset: u64,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// The image is malformed.
    #[error("malformed {what} at byte {offset} of the EROFS image")]
    Corrupt {
        /// The malformed part.
        what: &'static str,
        /// The offset in the file.
        offset: u64,
    },
    /// The image needs a feature that this crate does not support.
    #[error("the EROFS image has {0}, which is not supported")]
    Unsupported(&'static str),
    /// The image has its data on other devices than those given.
    #[error("the EROFS image has data on {needed} other devices, and {given} are given")]
    Devices {
        /// The number of devices that the image names.
        needed: u16,
        /// The number of devices given.
        given: usize,
    },
    /// The image needs features that this crate does not know.
    #[error("the EROFS image has features that are not known: {0:#x} in feature_incompat")]
    Features(u32),
}

pub(crate) type Result<T> = std::result::Result<T, ImageError>;

/// Fills `buffer` with the bytes at `offset`.
pub(crate) fn read(source: &impl ReadAt, offset: u64, buffer: &mut [u8]) -> Result<()> {
    let result = source.read_exact_at(buffer, offset);
    result.map_err(|source| ImageError::Read { offset, source })
}
