// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! What goes with the work on one layer.

use std::sync::Arc;

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
}

impl Guard {
    pub(crate) fn new(stop: Stop, allowance: Allowance) -> Self {
        Self {
            stop,
            progress: Arc::default(),
            allowance: Arc::new(allowance),
        }
    }

    /// Begins with another entry, or another directory.
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
        Ok(self.step()?)
    }
}

/// With as much memory as it takes.
#[cfg(test)]
impl From<Stop> for Guard {
    fn from(stop: Stop) -> Self {
        let is_turn = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let memory = crate::memory::Memory::new(u64::MAX);
        Self::new(stop, memory.allow(&Default::default(), is_turn))
    }
}
