// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The events of a job, kept for callers that join later.

use std::collections::BTreeMap;

use crate::{Event, Phase, Progress};

/// The events of a job. Only the latest progress of a layer is kept: a large layer has hundreds.
#[derive(Debug, Default)]
pub(crate) struct EventLog {
    /// All events but progress.
    steps: Vec<Event>,
    /// The latest progress of each layer in progress, with its sequence number.
    progress: BTreeMap<usize, (u64, Event)>,
    sequence: u64,
    totals: Progress,
}

/// The position of a reader in an [`EventLog`].
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Cursor {
    steps: usize,
    sequence: u64,
}

impl EventLog {
    pub(crate) fn push(&mut self, event: Event) {
        self.totals.record(&event);
        if event.phase == Phase::Progress {
            self.sequence += 1;
            self.progress.insert(event.layer, (self.sequence, event));
            return;
        }
        if event.phase.is_ready() || event.phase == Phase::Failed {
            self.progress.remove(&event.layer);
        }
        self.steps.push(event);
    }

    /// Returns the event after `cursor`, and the cursor after it. Steps come before progress, of
    /// which a slow reader misses some.
    pub(crate) fn next(&self, cursor: Cursor) -> Option<(Event, Cursor)> {
        if let Some(event) = self.steps.get(cursor.steps) {
            let steps = cursor.steps + 1;
            return Some((event.clone(), Cursor { steps, ..cursor }));
        }
        let news = self
            .progress
            .values()
            .filter(|(sequence, _)| *sequence > cursor.sequence);
        let (sequence, event) = news.min_by_key(|(sequence, _)| *sequence)?;
        Some((
            event.clone(),
            Cursor {
                sequence: *sequence,
                ..cursor
            },
        ))
    }

    /// Returns the last step.
    pub(crate) fn last(&self) -> Option<&Event> {
        self.steps.last()
    }

    /// Returns the progress of the job.
    pub(crate) fn progress(&self) -> &Progress {
        &self.totals
    }
}

#[cfg(test)]
mod tests {
    use resnap_core::{ChainId, DiffId, Digest};

    use super::*;

    fn event(layer: usize, phase: Phase, read: Option<u64>) -> Event {
        let digest = Digest::sha256(&layer.to_le_bytes());
        Event {
            image: "web".to_owned(),
            snapshotter: "erofs".to_owned(),
            phase,
            layer,
            layers: 2,
            chain_id: ChainId::of(None, &DiffId(digest.clone())),
            digest,
            bytes: 1000,
            seconds: 0.0,
            waits_for: None,
            read,
        }
    }

    fn rest(log: &EventLog, cursor: &mut Cursor) -> Vec<(usize, Phase, Option<u64>)> {
        let next = || {
            let (event, next) = log.next(*cursor)?;
            *cursor = next;
            Some((event.layer, event.phase, event.read))
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn of_progress_the_latest_is_told_once() {
        let mut log = EventLog::default();
        (1..=2).for_each(|layer| log.push(event(layer, Phase::Planned, None)));
        let mut early = Cursor::default();
        assert_eq!(rest(&log, &mut early).len(), 2);
        for read in 1..=500 {
            log.push(event(2, Phase::Progress, Some(read)));
            log.push(event(1, Phase::Progress, Some(2 * read)));
        }
        assert_eq!((log.steps.len(), log.progress.len()), (2, 2));
        let latest = [
            (2, Phase::Progress, Some(500)),
            (1, Phase::Progress, Some(1000)),
        ];
        assert_eq!(rest(&log, &mut early), latest);
        assert_eq!(rest(&log, &mut early), []);
        assert_eq!(log.progress().read_bytes(), 1500);
        assert_eq!(
            (log.progress().percent(), log.progress().ready_layers()),
            (75, 0)
        );
        log.push(event(1, Phase::Committed, None));
        assert_eq!(rest(&log, &mut early), [(1, Phase::Committed, None)]);
        // A late reader gets all steps, and the current progress.
        let late = rest(&log, &mut Cursor::default());
        let layers: Vec<usize> = late.iter().map(|(layer, ..)| *layer).collect();
        assert_eq!(layers, [1, 2, 1, 2]);
        assert_eq!(late[3], (2, Phase::Progress, Some(500)));
        assert_eq!(log.progress().ready_bytes(), 1000);
    }
}
