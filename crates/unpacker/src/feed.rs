// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The bytes of a blob that is being fetched, on their way to the writing of its layer.
//!
//! A layer is written while its blob is fetched if the bytes come fast. Whoever writes it holds a
//! slot and the chain lock, and the fetch holds the ingest: neither waits long for the other. A
//! layer that was left off is written from the complete blob.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use resnap_core::{ByteStream, Descriptor, Digest, Error, Kind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};

/// The number of pieces that are queued. Those of HTTP clients have up to half a megabyte.
const QUEUED_PIECES: usize = 8;

/// The longest time that a fetch waits for the writing of its layer.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// The longest time that the writing of a layer waits for [`MIN_BYTES`]. Slower bytes gain nothing:
/// unpacking takes a fraction of the time of such a fetch.
const READ_PATIENCE: Duration = Duration::from_secs(2);

/// See [`READ_PATIENCE`].
const MIN_BYTES: u64 = 4 << 20;

/// Whether a layer can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Its content is being fetched.
    Fetching,
    /// The bytes that are being fetched can be read.
    Offered,
    /// The bytes that are being fetched are read.
    Read,
    /// Its content is there, or will never be.
    Settled,
}

/// The gate before the writing of a layer.
pub(crate) struct Gate {
    stage: watch::Sender<Stage>,
    feed: Mutex<Option<Feed>>,
    /// Whether bytes that were read are not those of the blob, or not all of them.
    is_spoiled: AtomicBool,
}

/// The reading end of the bytes.
pub(crate) struct Feed {
    receiver: mpsc::Receiver<Bytes>,
    digest: Digest,
    bytes_left: u64,
    /// The bytes since `waited` was zero.
    bytes: u64,
    /// The time spent waiting for bytes.
    waited: Duration,
    _permit: OwnedSemaphorePermit,
}

/// The writing end of the bytes.
pub(crate) struct Feeding {
    gate: Arc<Gate>,
    /// Bounds the feeds of the process, each of which may hold a slot.
    permits: Arc<Semaphore>,
    sender: Option<mpsc::Sender<Bytes>>,
    /// A blob is offered once.
    is_over: bool,
}

impl Gate {
    /// Returns an open gate.
    pub(crate) fn new() -> Self {
        Self {
            stage: watch::Sender::new(Stage::Settled),
            feed: Mutex::new(None),
            is_spoiled: AtomicBool::new(false),
        }
    }

    /// Waits until the layer may be written, from its content or from bytes that are being fetched.
    pub(crate) async fn ready(&self) {
        self.wait_for(|stage| matches!(stage, Stage::Offered | Stage::Settled))
            .await;
    }

    /// Waits until the content is there, or will never be.
    pub(crate) async fn settled(&self) {
        self.wait_for(|stage| stage == Stage::Settled).await;
    }

    async fn wait_for(&self, is_met: impl Fn(Stage) -> bool) {
        let mut stage = self.stage.subscribe();
        // Cannot fail: `self` owns the sender.
        let _ = stage.wait_for(|stage| is_met(*stage)).await;
    }

    /// Returns whether the layer can still be written.
    pub(crate) fn is_ready(&self) -> bool {
        match *self.stage.borrow() {
            Stage::Settled => true,
            Stage::Offered => {
                let feed = self.feed();
                feed.as_ref().is_some_and(|feed| !feed.receiver.is_closed())
            }
            Stage::Fetching | Stage::Read => false,
        }
    }

    pub(crate) fn is_settled(&self) -> bool {
        *self.stage.borrow() == Stage::Settled
    }

    /// Returns whether a layer was written from bytes that are not those of the blob.
    pub(crate) fn is_spoiled(&self) -> bool {
        self.is_spoiled.load(Ordering::Relaxed)
    }

    /// Closes the gate until the content is there.
    pub(crate) fn close(&self) {
        self.set(Stage::Fetching, None);
    }

    /// Opens the gate.
    pub(crate) fn settle(&self) {
        self.set(Stage::Settled, None);
    }

    /// Takes the bytes that are being fetched, if they were offered. Others wait for the content
    /// then.
    pub(crate) fn take_feed(&self) -> Option<Feed> {
        let feed = self.feed().take()?;
        self.stage.send_replace(Stage::Read);
        Some(feed)
    }

    fn set(&self, stage: Stage, feed: Option<Feed>) {
        *self.feed() = feed;
        self.stage.send_replace(stage);
    }

    fn feed(&self) -> MutexGuard<'_, Option<Feed>> {
        self.feed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Feeding {
    pub(crate) fn new(gate: &Arc<Gate>, permits: &Arc<Semaphore>) -> Self {
        Self {
            gate: Arc::clone(gate),
            permits: Arc::clone(permits),
            sender: None,
            is_over: false,
        }
    }

    /// Offers the bytes of a blob, from its first one on.
    pub(crate) fn begin(&mut self, blob: &Descriptor) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            return;
        };
        let (sender, receiver) = mpsc::channel(QUEUED_PIECES);
        self.sender = Some(sender);
        let feed = Feed {
            receiver,
            digest: blob.digest.clone(),
            bytes_left: blob.size,
            bytes: 0,
            waited: Duration::ZERO,
            _permit: permit,
        };
        self.gate.set(Stage::Offered, Some(feed));
    }

    /// Passes bytes on, unless nobody reads them.
    pub(crate) async fn send(&mut self, piece: &Bytes) {
        let Some(sender) = &self.sender else {
            return;
        };
        let sent = timeout(WRITE_PATIENCE, sender.send(piece.clone())).await;
        if !matches!(sent, Ok(Ok(()))) {
            self.end();
        }
    }

    /// Returns whether the layer is being written.
    pub(crate) fn is_read(&self) -> bool {
        self.sender.is_some() && *self.gate.stage.borrow() == Stage::Read
    }

    /// Ends the feed, whose bytes are wrong or not complete.
    pub(crate) fn end(&mut self) {
        if self.sender.take().is_some() {
            self.gate.is_spoiled.store(true, Ordering::Relaxed);
            self.gate.close();
        }
    }
}

impl Feed {
    /// Returns the bytes. The stream fails if they come too slowly.
    pub(crate) fn into_stream(self) -> ByteStream {
        Box::pin(stream::try_unfold(self, |mut feed| async {
            if feed.bytes_left == 0 {
                return Ok(None);
            }
            let piece = feed.next().await.ok_or_else(|| {
                let error = Error::new(Kind::Unavailable, "read", feed.digest.as_str());
                error.with_source("its bytes come too slowly, or had to be fetched again")
            })?;
            Ok(Some((piece, feed)))
        }))
    }

    async fn next(&mut self) -> Option<Bytes> {
        let started = Instant::now();
        let left = READ_PATIENCE.checked_sub(self.waited)?;
        let piece = timeout(left, self.receiver.recv()).await.ok()??;
        let size = piece.len() as u64;
        self.waited += started.elapsed();
        self.bytes += size;
        self.bytes_left = self.bytes_left.checked_sub(size)?;
        if self.bytes >= MIN_BYTES {
            (self.bytes, self.waited) = (0, Duration::ZERO);
        }
        Some(piece)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures::TryStreamExt as _;

    use super::*;

    fn blob(size: u64) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: Digest::sha256(b"x"),
            size,
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    fn gate() -> (Arc<Gate>, Arc<Semaphore>) {
        let gate = Arc::new(Gate::new());
        gate.close();
        (gate, Arc::new(Semaphore::new(1)))
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_are_read_once_while_they_come() {
        let (gate, permits) = gate();
        let mut feeding = Feeding::new(&gate, &permits);
        feeding.begin(&blob(6));
        assert!(gate.is_ready());
        let feed = gate.take_feed().unwrap();
        assert!(!gate.is_ready() && gate.take_feed().is_none());
        assert!(feeding.is_read());
        for _ in 0..2 {
            feeding.send(&Bytes::from_static(b"abc")).await;
        }
        let read: Vec<Bytes> = feed.into_stream().try_collect().await.unwrap();
        assert_eq!(read.concat(), b"abcabc");
        assert!(!gate.is_spoiled());
        gate.settle();
        assert!(gate.is_ready());
        feeding.end();
        assert!(gate.is_spoiled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_has_so_many_feeds() {
        let (gate, permits) = gate();
        let mut feeding = Feeding::new(&gate, &permits);
        feeding.begin(&blob(1));
        let (other, _) = self::gate();
        Feeding::new(&other, &permits).begin(&blob(1));
        assert!(!other.is_ready());
        feeding.end();
        assert!(!gate.is_ready());
        let mut second = Feeding::new(&other, &permits);
        second.begin(&blob(1));
        assert!(other.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_bytes_end_a_feed() {
        let (gate, permits) = gate();
        let mut feeding = Feeding::new(&gate, &permits);
        feeding.begin(&blob(100));
        let mut stream = gate.take_feed().unwrap().into_stream();
        let slow = async {
            for _ in 0..100 {
                tokio::time::sleep(READ_PATIENCE / 10).await;
                feeding.send(&Bytes::from_static(b"x")).await;
            }
        };
        let started = Instant::now();
        let read = async {
            let failed = loop {
                match stream.try_next().await {
                    Ok(Some(_)) => {}
                    ended => break ended,
                }
            };
            drop(stream);
            (failed.unwrap_err().kind(), started.elapsed())
        };
        let ((), (kind, after)) = tokio::join!(slow, read);
        assert_eq!(kind, Kind::Unavailable);
        assert!(after <= READ_PATIENCE, "{after:?}");
        assert_eq!(permits.available_permits(), 1);
        assert!(!gate.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_fetch_does_not_wait_long_for_a_layer() {
        let (gate, permits) = gate();
        let mut feeding = Feeding::new(&gate, &permits);
        feeding.begin(&blob(100));
        let started = Instant::now();
        for _ in 0..100 {
            feeding.send(&Bytes::from_static(b"x")).await;
        }
        assert!(started.elapsed() <= WRITE_PATIENCE);
        assert!(!gate.is_ready());
        assert_eq!(permits.available_permits(), 1);
    }
}
