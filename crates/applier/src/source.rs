// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The source of a layer's blob.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use resnap_core::{ByteStream, ContentReader, Descriptor, Digest, Result, Scope};
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::error::StreamError;
use crate::guard::Guard;

/// The number of pieces of a stream that are queued. containerd sends up to 1 MiB in a piece.
const QUEUED_PIECES: usize = 4;

/// A blob that is read by a thread.
pub(crate) enum Source {
    /// The file in the content store.
    File(File),
    /// A stream from the backend.
    Stream(Pieces),
}

/// A stream from the backend, read by a thread.
pub(crate) struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    is_at_end: bool,
}

enum Piece {
    Bytes(Result<Bytes>),
    End,
}

/// Opens a blob: its file below `root`, if that exists and has the size that the backend reports, or
/// else a stream from the backend.
pub(crate) async fn open(
    content: &dyn ContentReader,
    root: Option<&Path>,
    scope: &Scope,
    layer: &Descriptor,
    guard: &Guard,
) -> Result<Source> {
    let digest = &layer.digest;
    if let Some(root) = root {
        // A blob of another namespace must not be read.
        let info = content.info(scope, digest).await?;
        if let Some(file) = file(root, digest, info.size) {
            return Ok(Source::File(file));
        }
    }
    Ok(stream(content.open(scope, digest).await?, guard))
}

/// Returns the file of a blob below the root of the content store, if it exists and has this size.
pub(crate) fn file(root: &Path, digest: &Digest, size: u64) -> Option<File> {
    // In a layout of a stranger it may be anything: a FIFO must not block, and a link must not lead elsewhere.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path(root, digest), flags, Mode::empty()).ok()?);
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && metadata.size() == size).then_some(file)
}

/// Returns the path of a blob below the root of the content store.
pub(crate) fn path(root: &Path, digest: &Digest) -> PathBuf {
    let parts = digest.as_str().split(':');
    parts.fold(root.join("blobs"), |path, part| path.join(part))
}

/// Returns a stream of a blob's bytes as its source.
pub(crate) fn stream(bytes: ByteStream, guard: &Guard) -> Source {
    let (sender, receiver) = mpsc::channel(QUEUED_PIECES);
    tokio::spawn(pump(bytes, sender, guard.clone()));
    Source::Stream(Pieces {
        receiver,
        piece: Bytes::new(),
        is_at_end: false,
    })
}

/// The longest time without progress when a blob is read again.
const REREAD_STALL: Duration = Duration::from_secs(5);

/// Returns the actual digest of a layer's blob, if it differs from the expected one. Returns `None` if
/// the blob cannot be read.
pub(crate) async fn mismatched_digest(
    content: &dyn ContentReader,
    scope: &Scope,
    layer: &Descriptor,
) -> Option<Digest> {
    let mut stream = content.open(scope, &layer.digest).await.ok()?;
    let mut hasher = layer.digest.hasher();
    while let Some(piece) = timeout(REREAD_STALL, stream.next()).await.ok()? {
        hasher.update(&piece.ok()?);
        // A stream whose pieces are all ready would never yield.
        tokio::task::yield_now().await;
    }
    Some(hasher.digest()).filter(|digest| *digest != layer.digest)
}

/// Passes a stream from the backend to the thread that reads it. If the backend is stuck, this ends with
/// the work, so that the thread does not wait forever.
async fn pump(mut stream: ByteStream, sender: mpsc::Sender<Piece>, guard: Guard) {
    loop {
        let next = tokio::select! {
            next = stream.next() => next,
            () = sender.closed() => return,
            () = guard.cancellation.cancelled() => return,
            () = guard.progress.abandoned() => return,
        };
        let is_last = !matches!(next, Some(Ok(_)));
        let piece = next.map_or(Piece::End, Piece::Bytes);
        if sender.send(piece).await.is_err() || is_last {
            return;
        }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Stream(pieces) => pieces.read(buffer),
        }
    }
}

impl Read for Pieces {
    /// Blocks; must not be called in an async task.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.is_at_end {
            match self.receiver.blocking_recv() {
                Some(Piece::Bytes(piece)) => self.piece = piece.map_err(StreamError::Backend)?,
                Some(Piece::End) => self.is_at_end = true,
                // The work is over, or the runtime shuts down.
                None => return Err(StreamError::Cancelled.into()),
            }
        }
        let count = self.piece.len().min(buffer.len());
        let (to, _) = buffer.split_at_mut(count);
        self.piece.copy_to_slice(to);
        Ok(count)
    }
}
