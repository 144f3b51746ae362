// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Ranges of files as blobs.

use std::fs::File;
use std::io::{Read, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures::{StreamExt as _, stream};
use resnap_core::{ByteStream, Descriptor, Destination, Digest, Result};

use crate::fault::{IoContext as _, blocking};

/// The size of the pieces of a file.
const PIECE: usize = 1 << 20;

/// The level at which layers are compressed, zstd's own default.
const ZSTD_LEVEL: i32 = 3;

/// A range of a file.
#[derive(Debug, Clone)]
pub(crate) struct FileRange {
    pub(crate) path: PathBuf,
    pub(crate) offset: u64,
    pub(crate) size: u64,
}

/// A blob that is a range of a file.
#[derive(Debug, Clone)]
pub(crate) struct FileBlob {
    pub(crate) descriptor: Descriptor,
    range: FileRange,
}

impl FileRange {
    /// Returns the whole of a file.
    pub(crate) fn whole(path: &Path) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            offset: 0,
            size: path.metadata().during("look at", path)?.len(),
        })
    }

    fn open(&self) -> Result<File> {
        let mut file = File::open(&self.path).during("open", &self.path)?;
        let sought = file.seek(SeekFrom::Start(self.offset));
        sought.during("read", &self.path)?;
        Ok(file)
    }

    /// Computes the digest of the bytes.
    pub(crate) fn digest(&self) -> Result<Digest> {
        let mut file = self.open()?.take(self.size);
        let mut hasher = Digest::sha256(b"").hasher();
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece).during("read", &self.path)? {
                0 => return Ok(hasher.digest()),
                count => hasher.update(piece.get(..count).unwrap_or_default()),
            }
        }
    }

    /// Compresses the bytes by zstd to a file that does not exist, and returns that.
    pub(crate) fn compress(&self, to: &Path) -> Result<Self> {
        let output = File::create_new(to).during("make", to)?;
        let mut encoder = zstd::Encoder::new(output, ZSTD_LEVEL).during("compress to", to)?;
        let mut input = self.open()?.take(self.size);
        std::io::copy(&mut input, &mut encoder).during("compress to", to)?;
        let mut output = encoder.finish().during("compress to", to)?;
        output.flush().during("compress to", to)?;
        Self::whole(to)
    }

    /// Returns the blob of this media type.
    pub(crate) fn blob(self, media_type: &str) -> Result<FileBlob> {
        Ok(FileBlob {
            descriptor: Descriptor::new(media_type, self.digest()?, self.size),
            range: self,
        })
    }

    fn stream(&self) -> ByteStream {
        let start = Some((self.clone(), None::<File>));
        stream::try_unfold(start, |state| async move {
            let Some((mut range, file)) = state.filter(|(range, _)| range.size > 0) else {
                return Ok(None);
            };
            blocking(move |_| {
                let mut file = match file {
                    Some(file) => file,
                    None => range.open()?,
                };
                let mut piece = Vec::with_capacity(PIECE);
                let limit = range.size.min(PIECE as u64);
                let read = Read::by_ref(&mut file).take(limit).read_to_end(&mut piece);
                let read = read.during("read", &range.path)? as u64;
                // A file that has become shorter ends here, which its size or digest tells.
                range.size = if read < limit { 0 } else { range.size - read };
                Ok(Some((Bytes::from(piece), Some((range, Some(file))))))
            })
            .await
        })
        .boxed()
    }
}

impl FileBlob {
    /// Stores the blob, unless it is there.
    pub(crate) async fn put(&self, to: &dyn Destination) -> Result<()> {
        to.put_blob(&self.descriptor, self.range.stream()).await
    }
}

/// Stores bytes as a blob, unless they are there, and returns its descriptor.
pub(crate) async fn put_bytes(
    to: &dyn Destination,
    media_type: &str,
    bytes: Vec<u8>,
) -> Result<Descriptor> {
    let blob = Descriptor::new(media_type, Digest::sha256(&bytes), bytes.len() as u64);
    let bytes = stream::iter([Ok(Bytes::from(bytes))]).boxed();
    to.put_blob(&blob, bytes).await?;
    Ok(blob)
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt as _;

    use super::*;

    #[tokio::test]
    async fn ranges_are_read_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..3 * PIECE + 5).map(|at| (at % 251) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        for (offset, size) in [(0, bytes.len()), (7, 2 * PIECE), (3 * PIECE, 5), (9, 0)] {
            let range = FileRange {
                path: path.clone(),
                offset: offset as u64,
                size: size as u64,
            };
            let pieces: Vec<Bytes> = range.stream().try_collect().await.unwrap();
            let wanted = &bytes[offset..offset + size];
            assert_eq!(pieces.concat(), wanted);
            assert_eq!(range.digest().unwrap(), Digest::sha256(wanted));
        }
    }
}
