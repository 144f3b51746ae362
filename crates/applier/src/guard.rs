// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What goes with the work on one layer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use resnap_erofs::{Governor, Refusal};

use crate::memory::{Allowance, Denied};
use crate::pipeline::Stop;
use crate::progress::Progress;

/// Whether the work on a layer goes on, what memory it may take, and how far it is.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    pub(crate) stop: Stop,
    pub(crate) progress: Arc<Progress>,
    allowance: Arc<Allowance>,
    looks: Arc<Looks>,
}

/// Directories that may be looked up in the layers below, besides those for each entry: one of them
/// in one layer is one. The directories that a layer writes to are hardly more than its entries, and
/// no kernel mounts more than 500 layers.
const LOOKS: u64 = 1 << 22;

/// The same for each entry.
const PER_ENTRY: u64 = 512;

/// How many have been looked up.
#[derive(Debug, Default)]
struct Looks {
    entries: AtomicU64,
    count: AtomicU64,
}

impl Guard {
    pub(crate) fn new(stop: Stop, allowance: Allowance) -> Self {
        Self {
            stop,
            progress: Arc::default(),
            allowance: Arc::new(allowance),
            looks: Arc::default(),
        }
    }

    /// Begins with another entry.
    pub(crate) fn entry(&self) -> Result<(), Denied> {
        self.looks.entries.fetch_add(1, Ordering::Relaxed);
        self.step()
    }

    /// Looks a directory up in so many layers below.
    pub(crate) fn look(&self, layers: usize) -> Result<(), Denied> {
        let Looks { entries, count } = &*self.looks;
        let looked = count.fetch_add(layers as u64, Ordering::Relaxed);
        let limit = LOOKS + PER_ENTRY * entries.load(Ordering::Relaxed);
        match looked > limit {
            true => Err(Denied::Looks(limit)),
            false => self.step(),
        }
    }

    /// Goes on.
    pub(crate) fn step(&self) -> Result<(), Denied> {
        self.progress.step();
        match self.is_over() {
            true => Err(Denied::Stopped),
            false => Ok(()),
        }
    }

    /// Whether nobody wants it any more, or nothing comes of it.
    pub(crate) fn is_over(&self) -> bool {
        self.stop.is_set() || self.progress.is_over()
    }

    /// Takes so many bytes of memory before they are used.
    pub(crate) fn take(&self, bytes: u64) -> Result<(), Denied> {
        // Whom it may wait for makes progress of its own.
        let _waiting = self.progress.wait();
        self.allowance.take(bytes, &self.stop)
    }

    /// Gives back what is not used any more.
    pub(crate) fn give(&self, bytes: u64) {
        self.allowance.give(bytes);
    }
}

impl Governor for Guard {
    fn take(&mut self, bytes: u64) -> Result<(), Refusal> {
        Ok(Self::take(self, bytes)?)
    }

    fn entry(&mut self) -> Result<(), Refusal> {
        Ok(Self::entry(self)?)
    }
}

/// With as much memory as it takes.
#[cfg(any(test, feature = "testing"))]
impl From<Stop> for Guard {
    fn from(stop: Stop) -> Self {
        let is_turn = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let memory = crate::memory::Memory::new(u64::MAX);
        Self::new(stop, memory.allow(&Default::default(), is_turn))
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;

    #[test]
    fn looks_are_bounded_by_entries() {
        let (_sender, stopped) = watch::channel(false);
        let guard = Guard::from(Stop(stopped));
        let layers = usize::try_from(LOOKS).unwrap();
        assert_eq!(guard.look(layers), Ok(()));
        assert_eq!(guard.look(1), Ok(()));
        assert_eq!(guard.look(1), Err(Denied::Looks(LOOKS)));
        guard.entry().unwrap();
        assert_eq!(guard.look(1), Ok(()));
    }
}
