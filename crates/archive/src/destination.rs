// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Layouts as destinations.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
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

use crate::layout::{self, Wanted};
use crate::layout_files::{Lock, Temporary, prepare};

/// The interval at which a lock of another process is tried: waiting in flock cannot be cancelled.
const POLL: Duration = Duration::from_millis(10);

/// The limit on the time for which a lock is waited for. It is held for the time of a few small writes.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// An OCI layout in a directory, as a destination. Clones are the same destination.
#[derive(Debug, Clone)]
pub struct LayoutDestination {
    path: Arc<PathBuf>,
}

impl LayoutDestination {
    /// Opens the layout in a directory, which is created if it does not exist.
    ///
    /// # Errors
    /// [`Kind::InvalidArgument`] if the directory is neither a layout nor empty; [`Kind::PermissionDenied`],
    /// [`Kind::ResourceExhausted`] and [`Kind::Unavailable`] if it cannot be written to.
    pub async fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let layout = Self {
            path: Arc::new(path.into()),
        };
        let path = layout.path.clone();
        layout.blocking(move || prepare(&path)).await?;
        let path = layout.path.clone();
        layout.locked(move |mut lock| lock.complete(&path)).await?;
        Ok(layout)
    }

    /// Runs work with files.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let done = spawn_blocking(work).await.map_err(io::Error::other);
        done.and_then(|done| done)
            .map_err(|error| self.failed(kind(&error), error))
    }

    /// Runs work while no other writer changes the index.
    async fn locked<T: Send + 'static>(
        &self,
        work: impl FnOnce(Lock) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let until = Instant::now() + MAX_WAIT;
        loop {
            let path = self.path.clone();
            if let Some(lock) = self.blocking(move || Lock::try_new(&path)).await? {
                return self.blocking(move || work(lock)).await;
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
        let path = self.path.clone();
        self.locked(move |lock| lock.edit_index(&path, change))
            .await
    }

    async fn put_document(&self, document: &Descriptor, bytes: Bytes) -> Result<()> {
        let bytes = Box::pin(stream::iter([Ok(bytes)]));
        self.put_blob(document, bytes).await
    }

    fn failed(&self, kind: Kind, error: io::Error) -> Error {
        let path = self.path.display().to_string();
        Error::new(kind, "write to the layout", path).with_source(error)
    }
}

fn kind(error: &io::Error) -> Kind {
    match error.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => Kind::PermissionDenied,
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Kind::ResourceExhausted
        }
        ErrorKind::InvalidInput | ErrorKind::NotADirectory => Kind::InvalidArgument,
        ErrorKind::InvalidData => Kind::DataLoss,
        _ => Kind::Unavailable,
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
        let (path, descriptor) = (self.path.clone(), descriptor.clone());
        self.blocking(move || {
            let found = layout::open(&path, Wanted::Blob(&descriptor.digest))?;
            Ok(found.is_some_and(|found| found.size() == descriptor.size))
        })
        .await
    }

    async fn put_blob(&self, blob: &Descriptor, mut bytes: ByteStream) -> Result<()> {
        if self.has(blob).await? {
            return Ok(());
        }
        let path = self.path.clone();
        let file = self.locked(move |lock| lock.temporary(&path)).await?;
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
            writing = self.blocking(move || writing.write(&piece)).await?;
        }
        let (path, blob) = (self.path.clone(), blob.clone());
        self.blocking(move || writing.checked(&blob)?.store(&path, &blob.digest))
            .await
    }

    async fn put_manifest(
        &self,
        manifest: &Descriptor,
        bytes: Bytes,
        tag: Option<&str>,
    ) -> Result<()> {
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
