// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The pipeline that decompresses and hashes a blob, on three threads: one reads and decompresses, one
//! hashes, and the caller's consumes. They pass buffers of [`CHUNK`] bytes, at most [`DEPTH`] ahead.

use std::cell::RefCell;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use resnap_core::media_type::Compression;
use resnap_core::{Applied, ApplyMonitor, Digest, Stage, StageTiming};
use sha2::{Digest as _, Sha256};

use self::members::{Blob, Gzip, Zstd};
use crate::error::{Error, IoContext as _, StreamError};
use crate::guard::Guard;
use crate::meter::Meter;
use crate::source::Source;

mod members;

/// Bytes of a chunk: large compared to the cost of passing it, small compared to a second-level cache.
const CHUNK: usize = 256 * 1024;

/// The number of chunks queued between two threads.
const DEPTH: usize = 4;

type Chunk = Arc<Vec<u8>>;

/// The parameters of a pipeline.
pub(crate) struct Work {
    pub(crate) index: usize,
    pub(crate) compression: Compression,
    /// The most bytes when decompressed.
    pub(crate) limit: u64,
    pub(crate) guard: Guard,
    pub(crate) monitor: Arc<dyn ApplyMonitor>,
}

/// Checks that a blob that was read is that of a layer with this diff ID.
pub(crate) fn require_diff_id(read: Applied, expected: &Digest) -> Result<(), Error> {
    match read.diff_id {
        Some(found) if found != *expected => Err(Error::WrongBlob {
            found,
            expected: expected.clone(),
        }),
        _ => Ok(()),
    }
}

/// Runs `consume` on the decompressed blob, which it must read to the end. Returns its result, and the
/// digest and size of the decompressed blob.
pub(crate) fn run<T>(
    source: Source,
    work: &Work,
    consume: impl FnOnce(&mut Stream<'_>) -> Result<T, Error>,
) -> Result<(T, Applied), Error> {
    let (to_consumer, chunks) = sync_channel(DEPTH);
    let (to_hasher, to_hash) = sync_channel(DEPTH);
    thread::scope(|scope| {
        let inflater = thread::Builder::new()
            .name("inflate".to_owned())
            .spawn_scoped(scope, move || {
                inflate(source, work, &to_hasher, &to_consumer)
            })
            .context("start a thread")?;
        let hasher = thread::Builder::new()
            .name("hash".to_owned())
            .spawn_scoped(scope, move || hash(&to_hash))
            .context("start a thread")?;
        let mut stream = Stream {
            chunks,
            guard: &work.guard,
            chunk: Chunk::default(),
            used: 0,
            waited: Duration::ZERO,
            is_at_end: false,
        };
        let begin = Instant::now();
        let consumed = consume(&mut stream);
        let mut write = StageTiming::since(begin);
        write.busy = write.busy.saturating_sub(stream.waited);
        // The other threads end when their channels are closed.
        drop(stream);
        if consumed.is_err() {
            // The reader may be waiting for the backend.
            work.guard.progress.abandon();
        }
        let inflated = inflater.join();
        let hashed = hasher.join();
        let consumed = consumed.map_err(|error| match work.guard.cancellation.is_cancelled() {
            true => Error::Cancelled,
            false => error,
        })?;
        let (read, inflate) = inflated.map_err(|_| Error::Panicked("decompresses"))?;
        let (hash, applied) = hashed.map_err(|_| Error::Panicked("hashes"))?;
        work.monitor.record_stage(work.index, Stage::Write, write);
        for (stage, meter) in [
            (Stage::Read, read),
            (Stage::Inflate, inflate),
            (Stage::Hash, hash),
        ] {
            if let Some(timing) = meter.timing() {
                work.monitor.record_stage(work.index, stage, timing);
            }
        }
        Ok((consumed, applied))
    })
}

/// The decompressed blob.
pub(crate) struct Stream<'a> {
    chunks: Receiver<io::Result<Chunk>>,
    guard: &'a Guard,
    chunk: Chunk,
    used: usize,
    waited: Duration,
    is_at_end: bool,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.used == self.chunk.len() && !self.is_at_end {
            if self.guard.is_over() {
                return Err(StreamError::Cancelled.into());
            }
            let begin = Instant::now();
            let next = self.chunks.recv();
            self.waited += begin.elapsed();
            match next {
                Ok(chunk) => (self.chunk, self.used) = (chunk?, 0),
                Err(_) => self.is_at_end = true,
            }
        }
        let rest = self.chunk.get(self.used..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.used += count;
        Ok(count)
    }
}

/// A blob whose reads are counted and timed.
struct Counted<'a> {
    source: Source,
    work: &'a Work,
    count: u64,
    meter: Rc<RefCell<Meter>>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.work.guard.is_over() {
            return Err(StreamError::Cancelled.into());
        }
        let count = self.meter.borrow_mut().time(|| self.source.read(buffer))?;
        self.count += count as u64;
        self.work.guard.progress.advance();
        self.work.monitor.read(self.work.index, self.count);
        Ok(count)
    }
}

/// Reads and decompresses a blob until its end, an error, or until the receivers are closed.
fn inflate(
    source: Source,
    work: &Work,
    to_hasher: &SyncSender<Chunk>,
    to_consumer: &SyncSender<io::Result<Chunk>>,
) -> (Meter, Meter) {
    let read = Rc::new(RefCell::new(Meter::default()));
    let mut meter = Meter::default();
    let counted = Counted {
        source,
        work,
        count: 0,
        meter: Rc::clone(&read),
    };
    let mut is_compressed = false;
    let decoder = decoder(counted, work.compression, &work.guard, &mut is_compressed);
    let passed = decoder.and_then(|mut decoder| {
        send_chunks(
            &mut *decoder,
            work.limit,
            &mut meter,
            to_hasher,
            to_consumer,
        )
    });
    if let Err(error) = passed {
        // The consumer may have ended by itself.
        let _ = to_consumer.send(Err(error));
    }
    let read = read.take();
    meter.busy = meter.busy.saturating_sub(read.busy);
    if !is_compressed {
        meter = Meter::default();
    }
    (read, meter)
}

/// Returns the decoder for a blob. Several members or frames are one stream, as in containerd.
fn decoder<'a>(
    blob: Counted<'a>,
    compression: Compression,
    guard: &'a Guard,
    is_compressed: &mut bool,
) -> io::Result<Box<dyn Read + 'a>> {
    if compression == Compression::None {
        return Ok(Box::new(blob));
    }
    let mut blob = Blob::new(blob);
    Ok(match blob.peek(4)? {
        [0x1f, 0x8b, 0x08, ..] => {
            *is_compressed = true;
            Box::new(Gzip::new(blob))
        }
        // A frame, or a skippable frame before the first.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            *is_compressed = true;
            Box::new(Zstd::new(blob, guard)?)
        }
        _ => Box::new(blob),
    })
}

/// Reads chunks from the decoder and sends them to both threads.
fn send_chunks(
    decoder: &mut dyn Read,
    limit: u64,
    meter: &mut Meter,
    to_hasher: &SyncSender<Chunk>,
    to_consumer: &SyncSender<io::Result<Chunk>>,
) -> io::Result<()> {
    // As many as can be in use at once, and one to fill.
    let mut ring: Vec<Chunk> = vec![Chunk::default(); 2 * DEPTH];
    let mut total = 0u64;
    for place in (0..ring.len()).cycle() {
        let Some(slot) = ring.get_mut(place) else {
            break;
        };
        let mut chunk = Arc::get_mut(slot).map(std::mem::take).unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let filled = meter.time(|| fill(decoder, &mut chunk));
        // The consumer may need no more than what was read before an error.
        let (count, error) = match filled {
            Ok(count) => (count, None),
            Err((count, error)) => (count, Some(error)),
        };
        chunk.truncate(count);
        total = total.saturating_add(count as u64);
        if total > limit {
            return Err(StreamError::Limit(limit).into());
        }
        let is_last = count < CHUNK;
        *slot = Arc::new(chunk);
        if count > 0
            && (to_hasher.send(Arc::clone(slot)).is_err()
                || to_consumer.send(Ok(Arc::clone(slot))).is_err())
        {
            return Ok(());
        }
        if let Some(error) = error {
            return Err(error);
        }
        if is_last {
            break;
        }
    }
    Ok(())
}

/// Reads until the buffer is full or the stream ends.
fn fill(decoder: &mut dyn Read, buffer: &mut [u8]) -> Result<usize, (usize, io::Error)> {
    let mut count = 0;
    while let Some(rest) = buffer.get_mut(count..).filter(|rest| !rest.is_empty()) {
        match decoder.read(rest) {
            Ok(0) => break,
            Ok(read) => count += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err((count, error)),
        }
    }
    Ok(count)
}

/// Hashes the decompressed blob.
fn hash(chunks: &Receiver<Chunk>) -> (Meter, Applied) {
    let mut meter = Meter::default();
    let mut hasher = Sha256::new();
    let mut size = 0;
    for chunk in chunks {
        meter.time(|| hasher.update(&*chunk));
        size += chunk.len() as u64;
    }
    let applied = Applied {
        diff_id: Some(Digest::from_sha256(hasher.finalize().into())),
        size,
        is_own_image: false,
        proof: None,
    };
    (meter, applied)
}

#[cfg(test)]
mod tests;
