// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! How far a job is.

use std::collections::BTreeMap;

use crate::{Event, Phase};

/// How far a job is, by its events, whoever reads them: of the bytes of the layers' blobs those that
/// have been read, a layer that is ready counting as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    bytes: u64,
    ready_layers: usize,
    ready_bytes: u64,
    /// Of the layers at work, by their numbers.
    read: BTreeMap<usize, u64>,
}

impl Progress {
    /// Counts an event; they come in the order in which they are told.
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

    /// Bytes of all layers. A descriptor may state any size: sums stop at the largest number.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Layers that are ready.
    pub fn ready_layers(&self) -> usize {
        self.ready_layers
    }

    /// Bytes of those.
    pub fn ready_bytes(&self) -> u64 {
        self.ready_bytes
    }

    /// Bytes that have been read.
    pub fn read_bytes(&self) -> u64 {
        let read = self.read.values();
        read.fold(self.ready_bytes, |sum, read| sum.saturating_add(*read))
    }

    /// The same of all bytes, 0 to 100.
    pub fn percent(&self) -> u8 {
        percent(self.read_bytes(), self.bytes)
    }
}

pub(crate) fn percent(read: u64, all: u64) -> u8 {
    let percent = u128::from(read) * 100 / u128::from(all.max(1));
    u8::try_from(percent).unwrap_or(100).min(100)
}
