// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layouts as destinations.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use resnap_core::{
    ByteStream, Descriptor, Destination, Digest, Error, Hasher, IndexDocument, Kind, Referrer,
    Result,
};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::directory::Directory;
use crate::layout_files::{Lock, Temporary, open_blob, prepare};
use crate::tag;

/// The size of the pieces in which a blob is checked.
const PIECE_BYTES: u64 = 1 << 20;

/// The interval at which a lock of another process is tried: waiting in flock cannot be cancelled.
const POLL: Duration = Duration::from_millis(10);

/// The limit on the time for which a lock is waited for. It is held for the time of a few small writes.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// An OCI layout in a directory, as a destination. Clones are the same destination.
#[derive(Debug, Clone)]
pub struct LayoutDestination {
    layout: Directory,
}

impl LayoutDestination {
    /// Opens the layout in a directory, which is created if it does not exist.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if the directory is neither a layout nor empty; [`Kind::PermissionDenied`],
    /// [`Kind::ResourceExhausted`] and [`Kind::Unavailable`] if it cannot be written to.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let named = path.clone();
        let layout = blocking(&named, move || prepare(&path)).await?;
        let destination = Self { layout };
        destination
            .locked(|mut lock, layout| lock.complete(layout))
            .await?;
        Ok(destination)
    }

    /// Runs work with files.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Directory) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let layout = self.layout.clone();
        blocking(self.layout.path(), move || work(&layout)).await
    }

    /// Runs work while no other writer changes the index.
    async fn locked<T: Send + 'static>(
        &self,
        work: impl FnOnce(Lock, &Directory) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let until = Instant::now() + MAX_WAIT;
        loop {
            if let Some(lock) = self.blocking(Lock::try_new).await? {
                return self.blocking(move |layout| work(lock, layout)).await;
            }
            if Instant::now() > until {
                let text = format!(
                    "another process has kept it locked for {} s",
                    MAX_WAIT.as_secs()
                );
                return Err(self.failed(Kind::DeadlineExceeded, io::Error::other(text)));
            }
            sleep(POLL).await;
        }
    }

    async fn edit_index(
        &self,
        change: impl FnOnce(&mut IndexDocument) -> bool + Send + 'static,
    ) -> Result<()> {
        self.locked(move |lock, layout| lock.edit_index(layout, change))
            .await
    }

    async fn put_document(&self, document: &Descriptor, bytes: Bytes) -> Result<()> {
        let bytes = Box::pin(stream::iter([Ok(bytes)]));
        self.put_blob(document, bytes).await
    }

    fn failed(&self, kind: Kind, error: io::Error) -> Error {
        failed(self.layout.path(), kind, error)
    }
}

/// Runs work with the files of a layout.
async fn blocking<T: Send + 'static>(
    layout: &Path,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let done = spawn_blocking(work).await.map_err(io::Error::other);
    done.and_then(|done| done)
        .map_err(|error| failed(layout, kind(&error), error))
}

fn failed(layout: &Path, kind: Kind, error: io::Error) -> Error {
    Error::new(kind, "write to the layout", layout.display().to_string()).with_source(error)
}

fn kind(error: &io::Error) -> Kind {
    match (error.kind(), Kind::of_io(error)) {
        (ErrorKind::InvalidInput | ErrorKind::NotADirectory, _) => Kind::InvalidArgument,
        (ErrorKind::InvalidData, _) => Kind::DataLoss,
        (ErrorKind::FileTooLarge, _) => Kind::ResourceExhausted,
        (_, Kind::Unknown) => Kind::Unavailable,
        (_, kind) => kind,
    }
}

/// A blob that is being checked.
struct Checking {
    file: File,
    hasher: Hasher,
    rest: u64,
}

impl Checking {
    /// Reads the next piece.
    fn read(mut self) -> io::Result<Self> {
        let mut piece = Vec::new();
        let length = self.rest.min(PIECE_BYTES);
        (&self.file).take(length).read_to_end(&mut piece)?;
        self.hasher.update(&piece);
        // It may have been cut meanwhile.
        self.rest = match piece.is_empty() {
            true => 0,
            false => self.rest - piece.len() as u64,
        };
        Ok(self)
    }
}

/// A blob that is being written.
struct Writing {
    file: Temporary,
    hasher: Hasher,
    size: u64,
}

impl Writing {
    fn write(mut self, piece: &[u8]) -> io::Result<Self> {
        self.hasher.update(piece);
        self.file.write(piece)?;
        Ok(self)
    }

    /// Checks that the bytes are those of a blob.
    fn checked(self, blob: &Descriptor) -> io::Result<Temporary> {
        let (digest, size) = (self.hasher.digest(), self.size);
        if digest != blob.digest || size != blob.size {
            return Err(wrong(
                blob,
                &format!("{size} bytes with the digest {digest}"),
            ));
        }
        Ok(self.file)
    }
}

fn wrong(blob: &Descriptor, actual: &str) -> io::Error {
    let Descriptor { digest, size, .. } = blob;
    let text = format!("{digest} has {size} bytes, and there are {actual}");
    io::Error::new(ErrorKind::InvalidData, text)
}

#[async_trait]
impl Destination for LayoutDestination {
    async fn has(&self, descriptor: &Descriptor) -> Result<bool> {
        let digest = descriptor.digest.clone();
        let opened = self.blocking(move |layout| match open_blob(layout, &digest)? {
            Some(file) => Ok(Some((file.metadata()?.len(), file))),
            None => Ok(None),
        });
        let Some((size, file)) = opened.await? else {
            return Ok(false);
        };
        if size != descriptor.size {
            return Ok(false);
        }
        let mut checking = Checking {
            file,
            hasher: descriptor.digest.hasher(),
            rest: size,
        };
        // In pieces, as this future may be dropped.
        while checking.rest > 0 {
            checking = self.blocking(move |_| checking.read()).await?;
        }
        Ok(checking.hasher.digest() == descriptor.digest)
    }

    async fn put_blob(&self, blob: &Descriptor, mut bytes: ByteStream) -> Result<()> {
        if self.has(blob).await? {
            return Ok(());
        }
        let file = self.locked(|lock, layout| lock.temporary(layout)).await?;
        let mut writing = Writing {
            file,
            hasher: blob.digest.hasher(),
            size: 0,
        };
        while let Some(piece) = bytes.next().await {
            let piece = piece?;
            writing.size += piece.len() as u64;
            if writing.size > blob.size {
                return Err(self.failed(Kind::DataLoss, wrong(blob, "more")));
            }
            writing = self.blocking(move |_| writing.write(&piece)).await?;
        }
        let blob = blob.clone();
        self.blocking(move |layout| writing.checked(&blob)?.store(layout, &blob.digest))
            .await
    }

    async fn put_manifest(
        &self,
        manifest: &Descriptor,
        bytes: Bytes,
        tag: Option<&str>,
    ) -> Result<()> {
        let checked = tag.map_or(Ok(()), tag::check);
        checked.map_err(|error| self.failed(kind(&error), error))?;
        self.put_document(manifest, bytes).await?;
        let Some(tag) = tag else {
            return Ok(());
        };
        let (manifest, tag) = (manifest.clone(), tag.to_owned());
        self.edit_index(move |index| index.tag(&manifest, &tag))
            .await
    }

    async fn put_referrer(
        &self,
        referrer: &Referrer,
        bytes: Bytes,
        _subject: &Digest,
    ) -> Result<()> {
        self.put_document(&referrer.descriptor, bytes).await?;
        let referrer = referrer.clone();
        self.edit_index(move |index| index.add(&referrer)).await
    }

    async fn remove_referrer(&self, referrer: &Referrer, _subject: &Digest) -> Result<()> {
        let digest = referrer.descriptor.digest.clone();
        self.edit_index(move |index| index.remove(&digest)).await
    }
}
