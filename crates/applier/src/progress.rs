// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The progress of the work on a layer, and its end if there is none.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep};

/// The progress of the work on a layer: bytes read and entries begun.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    steps: AtomicU64,
    waiting: AtomicU64,
    is_abandoned: AtomicBool,
    abandoned: Notify,
}

/// A guard that is held while the work waits for other layers.
pub(crate) struct Waiting<'a>(&'a Progress);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
        self.0.advance();
    }
}

impl Progress {
    /// Records progress.
    pub(crate) fn advance(&self) {
        self.steps.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that the work waits for other layers, which does not count as a stall.
    pub(crate) fn wait(&self) -> Waiting<'_> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        Waiting(self)
    }

    /// Abandons the work, whose result is no longer needed.
    pub(crate) fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
        self.abandoned.notify_waiters();
    }

    /// Returns whether the work is abandoned.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Relaxed)
    }

    /// Waits until the work is abandoned.
    pub(crate) async fn abandoned(&self) {
        let abandoned = self.abandoned.notified();
        if !self.is_abandoned() {
            abandoned.await;
        }
    }

    /// Waits until there is no progress for `limit`.
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
