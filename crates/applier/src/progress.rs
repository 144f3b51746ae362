// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Whether work on a layer gets on, and its end where it does not.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// How far the work is: bytes read and entries begun.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    steps: AtomicU64,
    waiting: AtomicU64,
    is_over: AtomicBool,
    over: Notify,
}

/// While it is held, the work waits for others.
pub(crate) struct Waiting<'a>(&'a Progress);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.step();
    }
}

impl Progress {
    /// It gets on.
    pub(crate) fn step(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// It waits for others, which is no fault of its own.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// Nothing comes of it any more.
    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.over.notify_waiters();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    /// Waits until nothing comes of it any more.
    pub(crate) async fn over(&self) {
        let over = self.over.notified();
        if !self.is_over() {
            over.await;
        }
    }

    /// Ends once it has not got on for so long.
    pub(crate) async fn stalled(&self, limit: Duration) {
        let (mut last, mut since) = (None, Instant::now());
        loop {
            let steps = Some(self.steps.load(Ordering::Relaxed));
            if steps != last || self.waiting.load(Ordering::Relaxed) > 0 {
                (last, since) = (steps, Instant::now());
            }
            match limit.checked_sub(since.elapsed()) {
                None | Some(Duration::ZERO) => return,
                Some(left) => sleep(left.min(limit / 8)).await,
            }
        }
    }
}
