// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The tar of a layer that is written as an index.

use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use resnap_erofs::joined_size;

use crate::copy::copy_file;
use crate::create::create;
use crate::error::{Error, IoContext as _, StreamError};
use crate::guard::Guard;

/// A file without a name, which gets the tar while that is read.
#[derive(Debug)]
pub(crate) struct TarFile(File);

impl TarFile {
    /// Creates the file on the file system of `path`, the layer.
    pub(crate) fn new(path: &Path) -> Result<Self, Error> {
        let path = path.with_added_extension("tar");
        let file = create(&path).and_then(|file| {
            std::fs::remove_file(&path)?;
            Ok(file)
        });
        Ok(Self(file.context("create the file of the layer's tar")?))
    }

    /// Returns a stream whose bytes are written to the file as they are read.
    pub(crate) fn tee<R: Read>(&self, stream: R) -> Result<Tee<R>, Error> {
        let tar = self.0.try_clone();
        let tar = tar.context("open the file of the layer's tar")?;
        Ok(Tee { stream, tar })
    }

    /// Copies the tar behind an index of `size` bytes, by a reflink where the file system can. Returns the
    /// size of both with the zeros behind them.
    pub(crate) fn append_to(
        self,
        mut index: &File,
        size: u64,
        guard: &Guard,
    ) -> Result<u64, Error> {
        let Self(mut tar) = self;
        let length = tar.stream_position().context("look at the layer's tar")?;
        tar.rewind().context("read the layer's tar")?;
        let operation = "write the layer's tar behind its index";
        let sought = index.seek(SeekFrom::Start(size));
        sought.context(operation)?;
        copy_file(&tar, index, length, operation, guard)?;
        let size = joined_size(size, length);
        index.set_len(size).context("resize the EROFS image")?;
        Ok(size)
    }
}

/// A stream whose bytes are also written to a file.
#[derive(Debug)]
pub(crate) struct Tee<R> {
    stream: R,
    tar: File,
}

impl<R: Read> Read for Tee<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        let bytes = buffer.get(..count).unwrap_or_default();
        self.tar.write_all(bytes).map_err(StreamError::Tar)?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn a_tar_is_kept_and_appended() {
        let dir = tempfile::tempdir().unwrap();
        let tar = TarFile::new(&dir.path().join("layer.erofs")).unwrap();
        // It leaves nothing behind, whatever happens.
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        let bytes: Vec<u8> = (0..100_000_u32).map(|number| number as u8).collect();
        let mut seen = Vec::new();
        let mut stream = tar.tee(&bytes[..]).unwrap();
        stream.read_to_end(&mut seen).unwrap();
        assert_eq!(seen, bytes);

        let path = dir.path().join("index");
        std::fs::write(&path, [7; 4096]).unwrap();
        let index = File::options().write(true).open(&path).unwrap();
        let guard = Guard::from(CancellationToken::new());
        let size = tar.append_to(&index, 4096, &guard).unwrap();
        let joined = std::fs::read(&path).unwrap();
        assert_eq!(size, joined.len() as u64);
        let (index, rest) = joined.split_at(4096);
        let (tar, zeros) = rest.split_at(bytes.len());
        assert_eq!((index, tar), (&[7; 4096][..], &bytes[..]));
        assert_eq!(zeros, [0; 4096 - 100_000 % 4096]);
    }
}
