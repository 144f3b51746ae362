// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Work in pieces, on several threads.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::error::{BoxedError, Error};

/// The number of bytes that are read at once.
pub(crate) const PIECE: u64 = 1 << 20;

/// The threads for a piece of work, and what may stop it.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    threads: NonZeroUsize,
    check: &'a (dyn Fn() -> Result<(), BoxedError> + Sync),
}

impl<'a> Work<'a> {
    /// Creates work on all cores that calls `check` before each piece of about 1 MiB, on any thread. An
    /// error from it stops the work.
    pub fn new(check: &'a (dyn Fn() -> Result<(), BoxedError> + Sync)) -> Self {
        Self {
            threads: thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
            check,
        }
    }

    /// Sets the number of threads. With one, the caller's own does the work.
    #[must_use]
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = threads;
        self
    }

    /// Does the pieces `0..count`, each worker with a scratch of its own. Returns the error of the first
    /// piece in order that has one.
    pub(crate) fn run<S>(
        &self,
        count: u64,
        scratch: impl Fn() -> S + Sync,
        piece: impl Fn(&mut S, u64) -> Result<(), Error> + Sync,
    ) -> Result<(), Error> {
        let next = AtomicU64::new(0);
        let failed: Mutex<Option<(u64, Error)>> = Mutex::new(None);
        let worker = || {
            let mut scratch = scratch();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return;
                }
                let checked = (self.check)().map_err(Error::Stopped);
                let Err(error) = checked.and_then(|()| piece(&mut scratch, index)) else {
                    continue;
                };
                // The pieces before this one have been started, and are done to their ends.
                next.store(count, Ordering::Relaxed);
                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                if failed.as_ref().is_none_or(|(first, _)| index < *first) {
                    *failed = Some((index, error));
                }
                return;
            }
        };
        let others = (self.threads.get() as u64).min(count).saturating_sub(1);
        thread::scope(|scope| {
            for _ in 0..others {
                // With fewer threads it only takes longer.
                if thread::Builder::new().spawn_scoped(scope, worker).is_err() {
                    break;
                }
            }
            worker();
        });
        let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }
}

impl fmt::Debug for Work<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work")
            .field("threads", &self.threads)
            .finish_non_exhaustive()
    }
}
