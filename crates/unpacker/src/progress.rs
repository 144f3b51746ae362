// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The progress of a job.

use std::collections::BTreeMap;

use crate::{Event, Phase};

/// The progress of a job, computed from its events: the bytes of the layer blobs that have been
/// read, where a ready layer counts as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    bytes: u64,
    ready_layers: usize,
    ready_bytes: u64,
    /// The bytes read of each layer in progress, by its number.
    read: BTreeMap<usize, u64>,
}

impl Progress {
    /// Records an event. Events must be recorded in their order.
    pub fn record(&mut self, event: &Event) {
        match event.phase {
            Phase::Planned => self.bytes = self.bytes.saturating_add(event.bytes),
            Phase::Progress => {
                let read = event.read.unwrap_or(0).min(event.bytes);
                self.read.insert(event.layer, read);
            }
            phase if phase.is_ready() => {
                self.ready_layers += 1;
                self.read.remove(&event.layer);
                self.ready_bytes = self.ready_bytes.saturating_add(event.bytes);
            }
            _ => {}
        }
    }

    /// Returns the bytes of all layer blobs. A descriptor may state any size, so sums saturate.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns the number of ready layers.
    pub fn ready_layers(&self) -> usize {
        self.ready_layers
    }

    /// Returns the bytes of the blobs of ready layers.
    pub fn ready_bytes(&self) -> u64 {
        self.ready_bytes
    }

    /// Returns the bytes read so far.
    pub fn read_bytes(&self) -> u64 {
        let read = self.read.values();
        read.fold(self.ready_bytes, |sum, read| sum.saturating_add(*read))
    }

    /// Returns the share of bytes read in percent, 0 to 100.
    pub fn percent(&self) -> u8 {
        percent(self.read_bytes(), self.bytes)
    }
}

pub(crate) fn percent(read: u64, all: u64) -> u8 {
    let percent = u128::from(read) * 100 / u128::from(all.max(1));
    u8::try_from(percent).unwrap_or(100).min(100)
}
