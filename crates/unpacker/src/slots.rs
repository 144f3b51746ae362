// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Slots for writing layers, shared fairly by the jobs of an engine.
//!
//! Each job queues its own layers, and free slots go to jobs in turn: to one that somebody waits
//! for before others, then to one of the tenant that has the fewest, then to the one that has the
//! fewest itself, then to the one whose turn is longest ago. A layer that is being written is never
//! stopped for another. So that slow layers of one image cannot keep others out, a job that somebody
//! waits for and that has no slot gets one beyond the limit, up to as many again. So that several
//! images of one tenant cannot either, a job of a tenant that has none gets one up to four times the
//! limit. A tenant is a namespace of pods; callers that name no pod are one tenant together.
//!
//! A job stays urgent for [`LINGER`] after its last waiter has gone, as a kubelet asks again some
//! seconds after its deadline. A job that holds a chain's lock is as urgent as whoever waits for
//! that lock: else it would wait for them, and they for it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a job stays urgent that nobody waits for any more: several times what kubelet takes
/// until it tries again (11 to 15 s).
const LINGER: Duration = Duration::from_secs(60);

/// The slots of an engine. Clones are the same slots.
#[derive(Debug, Clone)]
pub(crate) struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    count: usize,
    state: Mutex<State>,
    /// Told whenever somebody else may be next.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    taken: usize,
    /// By the jobs' numbers.
    jobs: BTreeMap<u64, Entry>,
    /// Numbers tickets and turns.
    last: u64,
}

/// What is known of a job.
#[derive(Debug, Default)]
struct Entry {
    /// Tickets of the layers that wait, in their order.
    queue: VecDeque<u64>,
    taken: usize,
    /// When it last got a slot.
    turn: u64,
    waiters: usize,
    /// Those who have waited for it.
    tenants: BTreeSet<String>,
    /// Until when it is urgent without waiters; `None` if it never had any.
    urgent_until: Option<Instant>,
    /// The chain's lock that it waits for or holds.
    lock: Option<(String, Hold)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    Wanted,
    Held,
}

/// Which jobs get slots first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Somebody waits for it, or will soon again.
    Urgent,
    /// Somebody waited for it.
    Left,
    /// Nobody ever did.
    Background,
}

/// A job's part in the slots.
#[derive(Debug)]
pub(crate) struct Share {
    slots: Slots,
    job: u64,
}

/// The right to write a layer, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Slots,
    job: u64,
}

/// Somebody who waits for a job.
#[derive(Debug)]
pub(crate) struct Waiter {
    slots: Slots,
    job: u64,
}

/// A job's wait for a chain's lock, and then the time it holds that.
#[derive(Debug)]
pub(crate) struct Claim {
    slots: Slots,
    job: u64,
}

impl Slots {
    pub(crate) fn new(count: usize) -> Self {
        Self(Arc::new(Inner {
            count,
            state: Mutex::default(),
            changed: Notify::new(),
        }))
    }

    /// The part of a new job; [`Share::end`] ends it.
    pub(crate) fn share(&self, job: u64) -> Share {
        self.state().jobs.insert(job, Entry::default());
        Share {
            slots: self.clone(),
            job,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known of a job, if it has not ended, and has all look who is next.
    fn change(&self, job: u64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.state().jobs.get_mut(&job) {
            change(entry);
        }
        self.0.changed.notify_waiters();
    }

    /// Takes a slot for this ticket of a job; if it is not next, answers with when that may change
    /// without anybody telling.
    fn take(&self, job: u64, ticket: u64) -> Result<Slot, Option<Instant>> {
        let now = Instant::now();
        let mut state = self.state();
        // A job that has ended asks for nothing that counts.
        if let Some(entry) = state.jobs.get(&job)
            && (entry.queue.front() != Some(&ticket) || state.next(self.0.count, now) != Some(job))
        {
            return Err(state.next_lapse(now));
        }
        state.taken += 1;
        state.last += 1;
        let turn = state.last;
        if let Some(entry) = state.jobs.get_mut(&job) {
            entry.queue.pop_front();
            entry.taken += 1;
            entry.turn = turn;
        }
        drop(state);
        // There may be one for the next as well.
        self.0.changed.notify_waiters();
        Ok(Slot {
            slots: self.clone(),
            job,
        })
    }
}

impl State {
    /// The job that gets a slot now, if any does.
    fn next(&self, count: usize, now: Instant) -> Option<u64> {
        let is_free = self.taken < count;
        let ranks = self
            .jobs
            .iter()
            .map(|(job, entry)| (job, entry, self.rank(entry, now)));
        let anything_urgent = ranks.clone().any(|(_, _, rank)| rank == Rank::Urgent);
        let by_tenant = self.taken_by_tenant();
        let of_tenant = |entry: &Entry| {
            let taken = entry
                .tenants
                .iter()
                .filter_map(|tenant| by_tenant.get(&**tenant));
            taken.min().copied().unwrap_or(entry.taken)
        };
        let may = |entry: &Entry, rank: Rank| match rank {
            Rank::Urgent => {
                is_free
                    || entry.taken == 0 && self.taken < 2 * count
                    || of_tenant(entry) == 0 && self.taken < 4 * count
            }
            Rank::Left => is_free,
            Rank::Background => is_free && !anything_urgent,
        };
        ranks
            .filter(|(_, entry, rank)| !entry.queue.is_empty() && may(entry, *rank))
            .min_by_key(|(_, entry, rank)| (*rank, of_tenant(entry), entry.taken, entry.turn))
            .map(|(job, ..)| *job)
    }

    /// Returns how many slots the jobs of each tenant have.
    fn taken_by_tenant(&self) -> BTreeMap<&str, usize> {
        let mut taken = BTreeMap::new();
        for entry in self.jobs.values() {
            for tenant in &entry.tenants {
                *taken.entry(&**tenant).or_default() += entry.taken;
            }
        }
        taken
    }

    fn rank(&self, entry: &Entry, now: Instant) -> Rank {
        let own = entry.rank(now);
        let Some((held, Hold::Held)) = &entry.lock else {
            return own;
        };
        // Who waits for a lock holds none, so there are no chains of these.
        let waiting = self.jobs.values().filter(|other| {
            let lock = other.lock.as_ref();
            lock.is_some_and(|(name, hold)| *hold == Hold::Wanted && name == held)
        });
        waiting.map(|other| other.rank(now)).fold(own, Rank::min)
    }

    /// When the first job stops being urgent.
    fn next_lapse(&self, now: Instant) -> Option<Instant> {
        let lapses = self.jobs.values().filter_map(|entry| entry.urgent_until);
        lapses.filter(|lapse| *lapse > now).min()
    }
}

impl Entry {
    fn rank(&self, now: Instant) -> Rank {
        match self.urgent_until {
            _ if self.waiters > 0 => Rank::Urgent,
            Some(until) if now < until => Rank::Urgent,
            Some(_) => Rank::Left,
            None => Rank::Background,
        }
    }
}

impl Share {
    /// Notes that somebody waits for the job, for this pod (`namespace/name`) or for none.
    pub(crate) fn wait(&self, pod: Option<&str>) -> Waiter {
        let namespace = pod.and_then(|pod| pod.split('/').next()).unwrap_or("");
        self.slots.change(self.job, |entry| {
            entry.waiters += 1;
            entry.tenants.insert(namespace.to_owned());
        });
        Waiter {
            slots: self.slots.clone(),
            job: self.job,
        }
    }

    /// Waits until the job may write one more layer. Layers come to it in the order in which they
    /// asked. Cancel-safe.
    pub(crate) async fn slot(&self) -> Slot {
        let ticket = Ticket::new(self);
        loop {
            let mut changed = pin!(self.slots.0.changed.notified());
            // Before the look, so that no change goes unnoticed.
            changed.as_mut().enable();
            let lapse = match self.slots.take(self.job, ticket.number) {
                Ok(slot) => return slot,
                Err(lapse) => lapse,
            };
            let lapsed = async {
                match lapse {
                    Some(lapse) => tokio::time::sleep_until(lapse).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = lapsed => {}
            }
        }
    }

    /// Notes that the job waits for the chain's lock of this name. It waits for or holds one at a
    /// time.
    pub(crate) fn claim(&self, lock: &str) -> Claim {
        let wanted = Some((lock.to_owned(), Hold::Wanted));
        self.slots.change(self.job, |entry| entry.lock = wanted);
        Claim {
            slots: self.slots.clone(),
            job: self.job,
        }
    }

    /// The job has ended.
    pub(crate) fn end(&self) {
        self.slots.state().jobs.remove(&self.job);
        self.slots.0.changed.notify_waiters();
    }
}

impl Claim {
    /// Notes that the job has the lock now.
    pub(crate) fn hold(&self) {
        self.slots.change(self.job, |entry| {
            if let Some((_, hold)) = &mut entry.lock {
                *hold = Hold::Held;
            }
        });
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.slots.change(self.job, |entry| entry.lock = None);
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.slots.change(self.job, |entry| {
            entry.waiters -= 1;
            entry.urgent_until = Some(Instant::now() + LINGER);
        });
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.state().taken -= 1;
        self.slots.change(self.job, |entry| entry.taken -= 1);
    }
}

/// A layer's place in its job's queue.
struct Ticket<'a> {
    share: &'a Share,
    number: u64,
}

impl<'a> Ticket<'a> {
    fn new(share: &'a Share) -> Self {
        let mut state = share.slots.state();
        state.last += 1;
        let number = state.last;
        if let Some(entry) = state.jobs.get_mut(&share.job) {
            entry.queue.push_back(number);
        }
        Self { share, number }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let Share { slots, job } = self.share;
        slots.change(*job, |entry| {
            entry.queue.retain(|number| *number != self.number)
        });
    }
}

#[cfg(test)]
mod tests;
