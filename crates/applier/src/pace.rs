// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The pace at which layers are read: at most so many bytes in a second.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use resnap_core::{ApplyMonitor, ApplyPermit, Stage, StageTiming};

use crate::guard::Guard;
use crate::memory::StopReason;

/// The longest time until a reader that waits notices that its work is over.
const SLICE: Duration = Duration::from_millis(50);

/// The pace of the threads that read one layer.
#[derive(Debug, Clone)]
pub(crate) struct Pace {
    rate: Option<NonZeroU64>,
    guard: Guard,
    begun: Instant,
    read: Arc<AtomicU64>,
}

impl Pace {
    pub(crate) fn new(rate: Option<NonZeroU64>, guard: Guard) -> Self {
        Self {
            rate,
            guard,
            begun: Instant::now(),
            read: Arc::default(),
        }
    }

    /// Returns the guard of the work.
    pub(crate) fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Counts bytes that are read next, and waits until there is time for those before. Checks that the work
    /// continues.
    pub(crate) fn read(&self, bytes: u64) -> Result<(), StopReason> {
        let before = self.read.fetch_add(bytes, Ordering::Relaxed);
        self.guard.step()?;
        let Some(rate) = self.rate else {
            return Ok(());
        };
        let due = Duration::from_secs_f64(before as f64 / rate.get() as f64);
        while let Some(left) = due.checked_sub(self.begun.elapsed()) {
            sleep(left.min(SLICE));
            self.guard.step()?;
        }
        Ok(())
    }

    /// Returns a monitor that counts the bytes of a blob.
    pub(crate) fn monitor(&self) -> PacedMonitor {
        PacedMonitor {
            pace: self.clone(),
            read: AtomicU64::new(0),
        }
    }

    /// Returns the bytes that were counted.
    pub(crate) fn total(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }
}

/// A monitor that slows the reading of a blob down.
pub(crate) struct PacedMonitor {
    pace: Pace,
    /// The bytes that were read of the blob.
    read: AtomicU64,
}

#[async_trait]
impl ApplyMonitor for PacedMonitor {
    async fn admit(&self, _: usize) -> ApplyPermit {
        ApplyPermit::new(())
    }

    fn read(&self, _: usize, bytes: u64) {
        let before = self.read.swap(bytes, Ordering::Relaxed);
        // The thread that reads notices by itself that the work is over.
        let _ = self.pace.read(bytes.saturating_sub(before));
    }

    fn record_stage(&self, _: usize, _: Stage, _: StageTiming) {}
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn readers_wait_for_those_before_until_the_work_is_over() {
        let cancellation = CancellationToken::new();
        let guard = Guard::from(cancellation.clone());
        let pace = Pace::new(NonZeroU64::new(1), guard.clone());
        // The first has time; the next would wait for years.
        assert_eq!(pace.read(1 << 40), Ok(()));
        cancellation.cancel();
        assert_eq!(pace.read(1), Err(StopReason::Cancelled));
        assert_eq!(pace.total(), (1 << 40) + 1);
        let pace = Pace::new(None, Guard::from(CancellationToken::new()));
        assert_eq!(pace.read(1 << 40), Ok(()));
        assert_eq!(pace.read(1 << 40), Ok(()));
    }
}
