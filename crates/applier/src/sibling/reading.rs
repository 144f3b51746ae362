// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The threads that read a layer that is copied, while the caller's writes it: one walks through it and
//! opens its files, the other reads the data of small ones.

use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread;
use std::time::Instant;

use resnap_core::{Applied, Stage, StageTiming};

use super::chunk::Chunk;
use super::entries::Entries;
use super::item::Item;
use super::place::Place;
use super::walk::Walk;
use crate::error::{Error, IoContext as _, StreamError};
use crate::meter::Meter;
use crate::pipeline::Work;

/// The number of chunks queued between the threads.
const DEPTH: usize = 4;

/// The number of items that are found at once, each of which may be an open file.
const BATCH: usize = 16;

/// The number of such batches that are queued.
const BATCHES: usize = 2;

/// The bytes of a copy that count as two bytes of its blob, as long as its size is not known.
const COPIED_PER_TWO: u64 = 5;

/// A layer that can be copied.
pub(crate) struct CopiedLayer {
    walk: Walk,
    /// The size of its blob, for the progress.
    blob_size: u64,
}

impl CopiedLayer {
    pub(super) fn new(walk: Walk, blob_size: u64) -> Self {
        Self { walk, blob_size }
    }

    /// Runs `consume` on the entries of the layer, which it must read to the end. Returns its result; a copy
    /// has another digest than the layer.
    pub(crate) fn run<T>(
        self,
        work: &Work,
        consume: impl FnOnce(&mut Entries<'_>) -> Result<T, Error>,
    ) -> Result<(T, Applied), Error> {
        let Self { walk, blob_size } = self;
        let place = walk.place().clone();
        let error = |path: &[u8], fault| place.error(path, fault);
        let (sender, chunks) = sync_channel(DEPTH);
        let (to_data, items) = sync_channel(BATCHES);
        let (to_reader, used) = channel();
        thread::scope(|scope| {
            let walker = thread::Builder::new()
                .name("walk".to_owned())
                .spawn_scoped(scope, move || find(walk, &to_data))
                .context("start a thread")?;
            let place = &place;
            let reader = thread::Builder::new()
                .name("copy".to_owned())
                .spawn_scoped(scope, move || {
                    read(place, items, work, blob_size, &sender, &used)
                })
                .context("start a thread")?;
            let mut entries = Entries::new((chunks, to_reader), &work.guard, work.limit, &error);
            let begin = Instant::now();
            let consumed = consume(&mut entries);
            let (size, waited) = entries.totals();
            let mut write = StageTiming::since(begin);
            write.busy = write.busy.saturating_sub(waited);
            // The threads end when their channels are closed.
            drop(entries);
            if consumed.is_err() {
                work.guard.progress.abandon();
            }
            let read = reader.join().map_err(|_| Error::Panicked("reads"));
            walker.join().map_err(|_| Error::Panicked("walks"))?;
            let consumed =
                consumed.map_err(|error| match work.guard.cancellation.is_cancelled() {
                    true => Error::Cancelled,
                    false => error,
                })?;
            work.monitor.record_stage(work.index, Stage::Write, write);
            if let Some(timing) = read?.timing() {
                work.monitor.record_stage(work.index, Stage::Read, timing);
            }
            work.monitor.read(work.index, blob_size);
            let applied = Applied {
                diff_id: None,
                size,
                is_own_image: false,
                proof: None,
            };
            Ok((consumed, applied))
        })
    }
}

/// Walks through a layer until its end, an error, or until the receiver is closed.
fn find(mut walk: Walk, to: &SyncSender<Vec<Result<Item, StreamError>>>) {
    let mut is_over = false;
    while !is_over {
        let items = std::iter::from_fn(|| match is_over {
            true => None,
            false => {
                let item = walk.next().transpose();
                is_over = !matches!(item, Some(Ok(_)));
                item
            }
        });
        let items = items.take(BATCH).collect();
        if to.send(items).is_err() {
            return;
        }
    }
}

/// Reads the data of items until their end, an error, or until the receiver is closed. Buffers of `used`
/// are filled again.
fn read(
    place: &Place,
    items: Receiver<Vec<Result<Item, StreamError>>>,
    work: &Work,
    blob_size: u64,
    to: &SyncSender<Result<Chunk, StreamError>>,
    used: &Receiver<Vec<u8>>,
) -> Meter {
    let (mut meter, mut total) = (Meter::default(), 0u64);
    let mut items = items.into_iter().flatten();
    loop {
        let buffer = used.try_recv().unwrap_or_default();
        let chunk = meter.time(|| Chunk::read(place, &mut items, buffer));
        let is_last = match &chunk {
            Ok(chunk) => {
                total = total.saturating_add(chunk.size);
                let of_blob = total.saturating_mul(2) / COPIED_PER_TWO;
                work.monitor.read(work.index, of_blob.min(blob_size));
                chunk.records.is_empty()
            }
            Err(_) => true,
        };
        // The consumer may have ended by itself.
        if to.send(chunk).is_err() || is_last {
            return meter;
        }
    }
}
