// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The bodies of uploads.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt as _, stream};
use resnap_core::{ByteStream, Descriptor, Error, Hasher, Kind};
use tokio::time::Instant;

/// The size of the pieces that are sent. The time without progress is that of a few of them.
const PIECE_BYTES: usize = 64 << 10;

/// The limit on the time for the answer to a whole blob, in stalls: a registry may copy or check it first.
const MAX_STALLS: u32 = 10;

/// The upload of a blob. Clones are the same upload.
#[derive(Clone)]
pub(crate) struct Upload {
    size: u64,
    state: Arc<Mutex<State>>,
}

struct State {
    /// The time since when the server has not taken bytes; `None` while there are none for it.
    since: Option<Instant>,
    /// Whether the server was given all bytes.
    is_whole: bool,
    /// Why there are no more bytes.
    error: Option<Error>,
}

impl Upload {
    /// Creates the upload of a blob with its body. The body fails before its last bytes if they are not those of the
    /// blob, so that no server takes it for one. `subject` is that of errors.
    pub(crate) fn new(
        blob: &Descriptor,
        bytes: ByteStream,
        subject: String,
    ) -> (
        Self,
        impl Stream<Item = Result<Bytes, Error>> + Send + use<>,
    ) {
        let state = State {
            since: Some(Instant::now()),
            is_whole: false,
            error: None,
        };
        let upload = Self {
            size: blob.size,
            state: Arc::new(Mutex::new(state)),
        };
        let body = Body {
            upload: upload.clone(),
            blob: blob.clone(),
            subject,
            hasher: Some(blob.digest.hasher()),
            bytes,
            taken: 0,
            last: Bytes::new(),
            ready: Bytes::new(),
        };
        let pieces = stream::try_unfold(body, |mut body| async {
            Ok(body.next().await?.map(|piece| (piece, body)))
        });
        (upload, pieces)
    }

    /// Returns the size of the blob.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Returns the limit on the time that the server is waited for now.
    pub(crate) fn limit(&self, stall: Duration) -> Duration {
        match self.state().is_whole {
            true => stall.saturating_mul(MAX_STALLS),
            false => stall,
        }
    }

    /// Returns the time until when the server is waited for.
    pub(crate) fn until(&self, stall: Duration) -> Instant {
        let since = self.state().since.unwrap_or_else(Instant::now);
        since + self.limit(stall)
    }

    /// Returns why there were no more bytes.
    pub(crate) fn error(&self) -> Option<Error> {
        self.state().error.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Body {
    upload: Upload,
    blob: Descriptor,
    subject: String,
    /// `None` after the end.
    hasher: Option<Hasher>,
    bytes: ByteStream,
    /// The number of bytes that were taken from `bytes`.
    taken: u64,
    /// The last bytes that were taken, which are sent only if they are followed by others, or all are right.
    last: Bytes,
    ready: Bytes,
}

impl Body {
    /// Returns the next bytes for the server.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while self.ready.is_empty() && self.hasher.is_some() {
            self.upload.state().since = None;
            let taken = self.bytes.next().await;
            self.upload.state().since = Some(Instant::now());
            if let Err(error) = self.take(taken) {
                self.upload.state().error = Some(error.clone());
                return Err(error);
            }
        }
        let length = self.ready.len().min(PIECE_BYTES);
        let piece = self.ready.split_to(length);
        let mut state = self.upload.state();
        state.since = Some(Instant::now());
        state.is_whole = self.hasher.is_none() && self.ready.is_empty();
        Ok((!piece.is_empty()).then_some(piece))
    }

    fn take(&mut self, taken: Option<Result<Bytes, Error>>) -> Result<(), Error> {
        let piece = taken.transpose()?;
        self.taken += piece.as_ref().map_or(0, Bytes::len) as u64;
        let size = self.blob.size;
        if self.taken > size {
            return Err(self.wrong(format!("more bytes than the {size} of its descriptor")));
        }
        if let Some(piece) = piece {
            if let Some(hasher) = &mut self.hasher {
                hasher.update(&piece);
            }
            if !piece.is_empty() {
                self.ready = mem::replace(&mut self.last, piece);
            }
            return Ok(());
        }
        if self.taken < size {
            let taken = self.taken;
            return Err(self.wrong(format!("{taken} bytes; its descriptor says {size}")));
        }
        let digest = self.hasher.take().map(Hasher::digest);
        if let Some(digest) = digest.filter(|digest| *digest != self.blob.digest) {
            return Err(self.wrong(format!("its bytes have the digest {digest}")));
        }
        self.ready = mem::take(&mut self.last);
        Ok(())
    }

    fn wrong(&self, reason: String) -> Error {
        Error::new(Kind::DataLoss, "push", &self.subject).with_source(reason)
    }
}
