// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The bytes of a blob.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures::StreamExt as _;
use resnap_core::{ByteStream, ContentReader, Descriptor, Digest, Result, Scope};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::error::Through;
use crate::guard::Guard;

/// Pieces of a stream that wait to be read; containerd sends up to 1 MiB at once.
const PIECES: usize = 4;

/// A blob, to be read by a thread.
pub(crate) enum Source {
    /// The content store's own file.
    File(File),
    /// What the backend sends.
    Stream(Pieces),
}

/// What the backend sends.
pub(crate) struct Pieces {
    receiver: mpsc::Receiver<Piece>,
    piece: Bytes,
    ended: bool,
}

enum Piece {
    Bytes(Result<Bytes>),
    End,
}

/// Finds a blob: as a file below `root` if it is there and has the size that the backend says, else
/// through the backend.
pub(crate) async fn open(
    content: &dyn ContentReader,
    root: Option<&Path>,
    scope: &Scope,
    layer: &Descriptor,
    guard: &Guard,
) -> Result<Source> {
    let digest = &layer.digest;
    if let Some(root) = root {
        // Another namespace's blob is not ours to read.
        let info = content.info(scope, digest).await?;
        let path = digest
            .as_str()
            .split(':')
            .fold(root.join("blobs"), |path, part| path.join(part));
        if let Ok(file) = File::open(&path)
            && let Ok(metadata) = file.metadata()
            && metadata.is_file()
            && metadata.size() == info.size
        {
            return Ok(Source::File(file));
        }
    }
    let stream = content.open(scope, digest).await?;
    let (sender, receiver) = mpsc::channel(PIECES);
    tokio::spawn(pump(stream, sender, guard.clone()));
    Ok(Source::Stream(Pieces {
        receiver,
        piece: Bytes::new(),
        ended: false,
    }))
}

/// The longest time without progress of a blob that is read again.
const PATIENCE: Duration = Duration::from_secs(5);

/// Returns the digest that the blob of a layer has, if that is another than its own. One that cannot
/// be read to its end now has none.
pub(crate) async fn other_digest(
    content: &dyn ContentReader,
    scope: &Scope,
    layer: &Descriptor,
) -> Option<Digest> {
    let mut stream = content.open(scope, &layer.digest).await.ok()?;
    let mut hasher = layer.digest.hasher();
    while let Some(piece) = timeout(PATIENCE, stream.next()).await.ok()? {
        hasher.update(&piece.ok()?);
        // Pieces that are there already never wait.
        tokio::task::yield_now().await;
    }
    Some(hasher.digest()).filter(|digest| *digest != layer.digest)
}

/// Ends when nobody reads any more. A backend may be stuck, and the reader is a thread that would
/// wait with it.
async fn pump(mut stream: ByteStream, sender: mpsc::Sender<Piece>, guard: Guard) {
    let mut stop = guard.stop.clone();
    loop {
        let next = tokio::select! {
            next = stream.next() => next,
            () = sender.closed() => return,
            () = stop.set() => return,
            () = guard.progress.over() => return,
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
    /// Must not be called by a thread that runs async tasks.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Piece::Bytes(piece)) => self.piece = piece.map_err(Through::Backend)?,
                Some(Piece::End) => self.ended = true,
                // It is stopped, or the runtime ends.
                None => return Err(Through::Stopped.into()),
            }
        }
        let count = self.piece.len().min(buffer.len());
        let (to, _) = buffer.split_at_mut(count);
        self.piece.copy_to_slice(to);
        Ok(count)
    }
}
