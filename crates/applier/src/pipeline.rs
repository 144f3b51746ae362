// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! From a blob to what is in it, on three threads: one reads and decompresses, one hashes, and the
//! caller's consumes. They pass on buffers of [`CHUNK`] bytes, at most [`DEPTH`] ahead.

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
use tokio::sync::watch;

use self::members::{Blob, Gzip, Zstd};
use crate::error::{Doing as _, Error, Through};
use crate::guard::Guard;
use crate::source::Source;

mod members;

/// Large beside what passing it on costs, small beside a second-level cache.
const CHUNK: usize = 256 * 1024;

/// Chunks between two threads.
const DEPTH: usize = 4;

type Chunk = Arc<Vec<u8>>;

/// What is asked of the pipeline, but for the blob.
pub(crate) struct Work {
    pub(crate) index: usize,
    pub(crate) compression: Compression,
    /// Bytes that may come out.
    pub(crate) limit: u64,
    pub(crate) guard: Guard,
    pub(crate) monitor: Arc<dyn ApplyMonitor>,
}

/// Says when nobody wants the work any more: who says so, or is gone.
#[derive(Debug, Clone)]
pub(crate) struct Stop(pub(crate) watch::Receiver<bool>);

impl Stop {
    pub(crate) fn is_set(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }

    pub(crate) async fn set(&mut self) {
        // Without its sender it is set, too.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// How long something is at work.
#[derive(Debug, Default)]
struct Meter {
    begin: Option<Instant>,
    end: Option<Instant>,
    busy: Duration,
}

impl Meter {
    fn time<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let done = work();
        let end = Instant::now();
        self.begin.get_or_insert(begin);
        self.end = Some(end);
        self.busy += end - begin;
        done
    }

    fn span(&self) -> Option<StageTiming> {
        Some(StageTiming {
            start: self.begin?,
            end: self.end?,
            busy: self.busy,
        })
    }
}

/// Gives the decompressed blob to `consume`, which must read it to its end, and answers with what
/// came through.
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
            .when("start a thread")?;
        let hasher = thread::Builder::new()
            .name("hash".to_owned())
            .spawn_scoped(scope, move || hash(&to_hash))
            .when("start a thread")?;
        let mut stream = Stream {
            chunks,
            guard: &work.guard,
            chunk: Chunk::default(),
            used: 0,
            waited: Duration::ZERO,
            is_over: false,
        };
        let begin = Instant::now();
        let consumed = consume(&mut stream);
        let mut write = StageTiming::since(begin);
        write.busy = write.busy.saturating_sub(stream.waited);
        // The others end when nobody takes what they have.
        drop(stream);
        if consumed.is_err() {
            // Unless it waits for a backend.
            work.guard.progress.end();
        }
        let inflated = inflater.join();
        let hashed = hasher.join();
        let consumed = consumed.map_err(|error| match work.guard.stop.is_set() {
            true => Error::Stopped,
            false => error,
        })?;
        let (read, inflate) = inflated.map_err(|_| Error::Panicked("decompresses"))?;
        let (hash, applied) = hashed.map_err(|_| Error::Panicked("hashes"))??;
        work.monitor.record_stage(work.index, Stage::Write, write);
        for (stage, meter) in [
            (Stage::Read, read),
            (Stage::Inflate, inflate),
            (Stage::Hash, hash),
        ] {
            if let Some(span) = meter.span() {
                work.monitor.record_stage(work.index, stage, span);
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
    is_over: bool,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.used == self.chunk.len() && !self.is_over {
            if self.guard.is_over() {
                return Err(Through::Stopped.into());
            }
            let begin = Instant::now();
            let next = self.chunks.recv();
            self.waited += begin.elapsed();
            match next {
                Ok(chunk) => (self.chunk, self.used) = (chunk?, 0),
                Err(_) => self.is_over = true,
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

/// The blob, counted and timed.
struct Counted<'a> {
    source: Source,
    work: &'a Work,
    count: u64,
    meter: Rc<RefCell<Meter>>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.work.guard.is_over() {
            return Err(Through::Stopped.into());
        }
        let count = self.meter.borrow_mut().time(|| self.source.read(buffer))?;
        self.count += count as u64;
        self.work.guard.progress.step();
        self.work.monitor.read(self.work.index, self.count);
        Ok(count)
    }
}

/// Reads and decompresses, until the end, an error, or nobody takes it.
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
        pass(
            &mut *decoder,
            work.limit,
            &mut meter,
            to_hasher,
            to_consumer,
        )
    });
    if let Err(error) = passed {
        // Who consumes may have stopped by itself.
        let _ = to_consumer.send(Err(error));
    }
    let read = read.take();
    meter.busy = meter.busy.saturating_sub(read.busy);
    if !is_compressed {
        meter = Meter::default();
    }
    (read, meter)
}

/// Several members or frames are one stream, as containerd's decompressors have it.
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
    Ok(match blob.ahead(4)? {
        [0x1f, 0x8b, 0x08, ..] => {
            *is_compressed = true;
            Box::new(Gzip::new(blob))
        }
        // A frame, or one to be skipped before the first.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            *is_compressed = true;
            Box::new(Zstd::new(blob, guard)?)
        }
        _ => Box::new(blob),
    })
}

fn pass(
    decoder: &mut dyn Read,
    limit: u64,
    meter: &mut Meter,
    to_hasher: &SyncSender<Chunk>,
    to_consumer: &SyncSender<io::Result<Chunk>>,
) -> io::Result<()> {
    // As many as may be in use at once, and one to fill.
    let mut ring: Vec<Chunk> = vec![Chunk::default(); 2 * DEPTH];
    let mut total = 0u64;
    for place in (0..ring.len()).cycle() {
        let Some(slot) = ring.get_mut(place) else {
            break;
        };
        let mut chunk = Arc::get_mut(slot).map(std::mem::take).unwrap_or_default();
        chunk.resize(CHUNK, 0);
        let filled = meter.time(|| fill(decoder, &mut chunk));
        // What came before an error may be all that is asked for.
        let (count, error) = match filled {
            Ok(count) => (count, None),
            Err((count, error)) => (count, Some(error)),
        };
        chunk.truncate(count);
        total = total.saturating_add(count as u64);
        if total > limit {
            return Err(Through::Limit(limit).into());
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

/// Reads until the buffer is full or the stream is over.
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

fn hash(chunks: &Receiver<Chunk>) -> Result<(Meter, Applied), Error> {
    let mut meter = Meter::default();
    let mut hasher = Sha256::new();
    let mut size = 0;
    for chunk in chunks {
        meter.time(|| hasher.update(&*chunk));
        size += chunk.len() as u64;
    }
    let hex: String = hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let digest: Result<Digest, _> = format!("sha256:{hex}").parse();
    let diff_id = digest.map_err(|_| Error::Panicked("hashes"))?;
    Ok((meter, Applied { diff_id, size }))
}

#[cfg(test)]
mod tests;
