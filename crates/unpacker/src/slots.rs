// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Slots for writing layers, shared fairly by the jobs of an engine.
//!
//! Each job queues its own layers. A free slot goes to an urgent job before others, then to the
//! tenant with the fewest slots, then to the job with the fewest, then to the job that got its last
//! slot first. The writing of a layer is never interrupted. To keep slow layers of one image from
//! blocking others, an urgent job without a slot gets one beyond the limit, up to twice the limit.
//! To keep several images of one tenant from doing so, a job of a tenant without slots gets one up
//! to four times the limit. A tenant is a namespace of pods; all callers that name no pod are one
//! tenant.
//!
//! A job is urgent while callers wait for it, and for [`LINGER`] after the last one has gone, since
//! a kubelet retries some seconds after its deadline. The holder of a chain lock is as urgent as
//! those that wait for the lock: otherwise it would wait for them, and they for it.

use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use state::{Entry, Hold, State};

mod state;

/// The time for which a job stays urgent after its last waiter has gone: several times kubelet's retry
/// interval (11 to 15 s).
const LINGER: Duration = Duration::from_secs(60);

/// The slots of an engine. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Slots(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    count: usize,
    state: Mutex<State>,
    /// Notified whenever another job may be next.
    changed: Notify,
}

/// The share of a job in the slots.
#[derive(Debug)]
pub(crate) struct Share {
    slots: Slots,
    job: u64,
}

/// The right to write a layer, released on drop.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Slots,
    job: u64,
}

/// Makes a job urgent until dropped, on behalf of a waiter.
#[derive(Debug)]
pub(crate) struct Urgency {
    slots: Slots,
    job: u64,
}

/// The claim of a job on a chain lock, while it waits for or holds the lock.
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

    /// Registers a new job; [`Share::end`] removes it.
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

    /// Changes the entry of a job that has not ended, and notifies all that wait for slots.
    fn change(&self, job: u64, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.state().jobs.get_mut(&job) {
            change(entry);
        }
        self.0.changed.notify_waiters();
    }

    /// Takes a slot for a ticket of a job. If the ticket is not next, returns when that may change
    /// without a notification.
    fn take(&self, job: u64, ticket: u64) -> Result<Slot, Option<Instant>> {
        let now = Instant::now();
        let mut state = self.state();
        // A job that has ended gets a slot at once: its work no longer counts.
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
        // Another job may be next as well.
        self.0.changed.notify_waiters();
        Ok(Slot {
            slots: self.clone(),
            job,
        })
    }
}

impl Share {
    /// Makes the job urgent for a waiter, which is a pod (`namespace/name`) or no pod.
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

    /// Waits for the right to write one more layer. Requests of a job are served in their order.
    /// Cancel-safe.
    pub(crate) async fn slot(&self) -> Slot {
        let ticket = Ticket::new(self);
        loop {
            let mut changed = pin!(self.slots.0.changed.notified());
            // Before the attempt, so that no change is missed.
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

    /// Records that the job waits for the chain lock of this name. A job claims one lock at a time.
    pub(crate) fn claim_lock(&self, lock: &str) -> LockClaim {
        let claim = Some((lock.to_owned(), Hold::Waiting));
        self.slots.change(self.job, |entry| entry.lock = claim);
        LockClaim {
            slots: self.slots.clone(),
            job: self.job,
        }
    }

    /// Removes the job.
    pub(crate) fn end(&self) {
        self.slots.state().jobs.remove(&self.job);
        self.slots.0.changed.notify_waiters();
    }
}

impl LockClaim {
    /// Records that the job holds the lock.
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

/// A request in the queue of a job, removed on drop.
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
