// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The order in which jobs get slots.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::time::Instant;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) taken: usize,
    /// By the jobs' numbers.
    pub(super) jobs: BTreeMap<u64, Entry>,
    /// The last number of a ticket or a turn.
    pub(super) last: u64,
}

/// The entry of a job.
#[derive(Debug, Default)]
pub(super) struct Entry {
    /// The tickets of the waiting layers, in order.
    pub(super) queue: VecDeque<u64>,
    pub(super) taken: usize,
    /// The turn in which the job got its last slot.
    pub(super) turn: u64,
    pub(super) waiters: usize,
    /// The tenants that have waited for the job.
    pub(super) tenants: BTreeSet<String>,
    /// The end of the urgency without waiters; `None` if the job never had any.
    pub(super) urgent_until: Option<Instant>,
    /// The chain lock that the job waits for or holds.
    pub(super) lock: Option<(String, Hold)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    Waiting,
    Held,
}

/// The order of jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// The job has waiters, or had them until shortly.
    Urgent,
    /// The job had waiters.
    Abandoned,
    /// The job never had waiters.
    Background,
}

impl State {
    /// Returns the job that gets a slot now, if any.
    pub(super) fn next(&self, count: usize, now: Instant) -> Option<u64> {
        let is_free = self.taken < count;
        let priorities = self
            .jobs
            .iter()
            .map(|(job, entry)| (job, entry, self.priority(entry, now)));
        let anything_urgent = priorities
            .clone()
            .any(|(_, _, priority)| priority == Priority::Urgent);
        let taken_by_tenant = self.taken_by_tenant();
        let tenant_taken = |entry: &Entry| {
            let taken = entry
                .tenants
                .iter()
                .filter_map(|tenant| taken_by_tenant.get(&**tenant));
            taken.min().copied().unwrap_or(entry.taken)
        };
        let may = |entry: &Entry, priority: Priority| match priority {
            Priority::Urgent => {
                is_free
                    || entry.taken == 0 && self.taken < 2 * count
                    || tenant_taken(entry) == 0 && self.taken < 4 * count
            }
            Priority::Abandoned => is_free,
            Priority::Background => is_free && !anything_urgent,
        };
        priorities
            .filter(|(_, entry, priority)| !entry.queue.is_empty() && may(entry, *priority))
            .min_by_key(|(_, entry, priority)| {
                (*priority, tenant_taken(entry), entry.taken, entry.turn)
            })
            .map(|(job, ..)| *job)
    }

    /// Returns the number of slots held by each tenant.
    fn taken_by_tenant(&self) -> BTreeMap<&str, usize> {
        let mut taken = BTreeMap::new();
        for entry in self.jobs.values() {
            for tenant in &entry.tenants {
                *taken.entry(&**tenant).or_default() += entry.taken;
            }
        }
        taken
    }

    fn priority(&self, entry: &Entry, now: Instant) -> Priority {
        let own = entry.priority(now);
        let Some((held, Hold::Held)) = &entry.lock else {
            return own;
        };
        // A job that waits for a lock holds none, so the relation has no chains.
        let waiting = self.jobs.values().filter(|other| {
            let lock = other.lock.as_ref();
            lock.is_some_and(|(name, hold)| *hold == Hold::Waiting && name == held)
        });
        waiting
            .map(|other| other.priority(now))
            .fold(own, Priority::min)
    }

    /// Returns when the next job stops being urgent.
    pub(super) fn next_urgency_end(&self, now: Instant) -> Option<Instant> {
        let ends = self.jobs.values().filter_map(|entry| entry.urgent_until);
        ends.filter(|end| *end > now).min()
    }
}

impl Entry {
    fn priority(&self, now: Instant) -> Priority {
        match self.urgent_until {
            _ if self.waiters > 0 => Priority::Urgent,
            Some(until) if now < until => Priority::Urgent,
            Some(_) => Priority::Abandoned,
            None => Priority::Background,
        }
    }
}
