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

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use state::{Entry, Hold, State};

mod state;

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
pub(crate) struct Urgency {
    slots: Slots,
    job: u64,
}

/// A job's wait for a chain's lock, and then the time it holds that.
#[derive(Debug)]
pub(crate) struct LockClaim {
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
            return Err(state.next_urgency_end(now));
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

impl Share {
    /// Notes that somebody waits for the job, for this pod (`namespace/name`) or for none.
    pub(crate) fn mark_urgent(&self, pod: Option<&str>) -> Urgency {
        let namespace = pod.and_then(|pod| pod.split('/').next()).unwrap_or("");
        self.slots.change(self.job, |entry| {
            entry.waiters += 1;
            entry.tenants.insert(namespace.to_owned());
        });
        Urgency {
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
            let urgency_end = match self.slots.take(self.job, ticket.number) {
                Ok(slot) => return slot,
                Err(urgency_end) => urgency_end,
            };
            let urgency_ended = async {
                match urgency_end {
                    Some(urgency_end) => tokio::time::sleep_until(urgency_end).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = urgency_ended => {}
            }
        }
    }

    /// Notes that the job waits for the chain's lock of this name. It waits for or holds one at a
    /// time.
    pub(crate) fn claim_lock(&self, lock: &str) -> LockClaim {
        let claim = Some((lock.to_owned(), Hold::Waiting));
        self.slots.change(self.job, |entry| entry.lock = claim);
        LockClaim {
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

impl LockClaim {
    /// Notes that the job has the lock now.
    pub(crate) fn set_held(&self) {
        self.slots.change(self.job, |entry| {
            if let Some((_, hold)) = &mut entry.lock {
                *hold = Hold::Held;
            }
        });
    }
}

impl Drop for LockClaim {
    fn drop(&mut self) {
        self.slots.change(self.job, |entry| entry.lock = None);
    }
}

impl Drop for Urgency {
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
