// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Cancellation, progress and limits of the work on one layer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use resnap_erofs::{Governor, Refusal};
use tokio_util::sync::CancellationToken;

use crate::memory::{LayerMemory, StopReason};
use crate::progress::Progress;

/// Directories that a layer may look up in the layers below, besides those for each entry: one
/// directory in one layer counts as one. A layer writes to hardly more directories than it has entries,
/// and no kernel mounts more than 500 layers.
const LOOKUPS: u64 = 1 << 22;

/// The same for each entry.
const PER_ENTRY: u64 = 512;

/// The cancellation, progress and limits of the work on one layer.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) cancellation: CancellationToken,
    pub(crate) progress: Arc<Progress>,
    memory: Arc<LayerMemory>,
    lookups: Arc<Lookups>,
}

/// The number of directories looked up in the layers below.
#[derive(Debug, Default)]
struct Lookups {
    entries: AtomicU64,
    count: AtomicU64,
}

impl Guard {
    pub(crate) fn new(cancellation: CancellationToken, memory: LayerMemory) -> Self {
        Self {
            cancellation,
            progress: Arc::default(),
            memory: Arc::new(memory),
            lookups: Arc::default(),
        }
    }

    /// Counts an entry, and checks that the work continues.
    pub(crate) fn begin_entry(&self) -> Result<(), StopReason> {
        self.lookups.entries.fetch_add(1, Ordering::Relaxed);
        self.step()
    }

    /// Counts a lookup in `layers` layers below, and checks that the work continues.
    pub(crate) fn count_lookup(&self, layers: usize) -> Result<(), StopReason> {
        let Lookups { entries, count } = &*self.lookups;
        let before = count.fetch_add(layers as u64, Ordering::Relaxed);
        let limit = LOOKUPS + PER_ENTRY * entries.load(Ordering::Relaxed);
        match before > limit {
            true => Err(StopReason::Lookups(limit)),
            false => self.step(),
        }
    }

    /// Records progress, and checks that the work continues.
    pub(crate) fn step(&self) -> Result<(), StopReason> {
        self.progress.advance();
        match self.is_over() {
            true => Err(StopReason::Cancelled),
            false => Ok(()),
        }
    }

    /// Returns whether the work is cancelled or abandoned.
    pub(crate) fn is_over(&self) -> bool {
        self.cancellation.is_cancelled() || self.progress.is_abandoned()
    }

    /// Takes bytes of memory before they are allocated.
    pub(crate) fn take_memory(&self, bytes: u64) -> Result<(), StopReason> {
        // The layers that it may wait for watch their own progress.
        let _waiting = self.progress.wait();
        self.memory.take(bytes, &self.cancellation)
    }

    /// Gives back memory that is no longer used.
    pub(crate) fn give_memory(&self, bytes: u64) {
        self.memory.give(bytes);
    }
}

impl Governor for Guard {
    fn take(&mut self, bytes: u64) -> Result<(), Refusal> {
        Ok(self.take_memory(bytes)?)
    }

    fn entry(&mut self) -> Result<(), Refusal> {
        Ok(self.begin_entry()?)
    }
}

/// Returns a guard without a limit of memory.
#[cfg(any(test, feature = "testing"))]
impl From<CancellationToken> for Guard {
    fn from(cancellation: CancellationToken) -> Self {
        let is_turn = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let memory = crate::memory::MemoryBudget::new(u64::MAX, Default::default());
        Self::new(cancellation, memory.layer(&Default::default(), is_turn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lookups_are_bounded_by_entries() {
        let guard = Guard::from(CancellationToken::new());
        let layers = usize::try_from(LOOKUPS).unwrap();
        assert_eq!(guard.count_lookup(layers), Ok(()));
        assert_eq!(guard.count_lookup(1), Ok(()));
        assert_eq!(guard.count_lookup(1), Err(StopReason::Lookups(LOOKUPS)));
        guard.begin_entry().unwrap();
        assert_eq!(guard.count_lookup(1), Ok(()));
    }
}
