// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! Slots for writing layers, shared fairly by the jobs of an engine.
//!
//! Each job queues its own layers, and free slots go to jobs in turn: to one that somebody waits
//! for before others, then to the one that has the fewest, then to the one whose turn is longest
//! ago. A layer that is being written is never stopped for another; so that one image cannot keep
//! another out by slow layers, a job that somebody waits for and that has no slot gets one beyond
//! the limit, up to as many again.
//!
//! A job stays urgent for [`LINGER`] after its last waiter has gone, as a kubelet asks again some
//! seconds after its deadline. A job that holds a chain's lock is as urgent as whoever waits for
//! that lock: else it would wait for them, and they for it.

use std::collections::{BTreeMap, VecDeque};
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
        let may = |entry: &Entry, rank: Rank| match rank {
            Rank::Urgent => is_free || entry.taken == 0 && self.taken < 2 * count,
            Rank::Left => is_free,
            Rank::Background => is_free && !anything_urgent,
        };
        ranks
            .filter(|(_, entry, rank)| !entry.queue.is_empty() && may(entry, *rank))
            .min_by_key(|(_, entry, rank)| (*rank, entry.taken, entry.turn))
            .map(|(job, ..)| *job)
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
    /// Notes that somebody waits for the job.
    pub(crate) fn wait(&self) -> Waiter {
        self.slots.change(self.job, |entry| entry.waiters += 1);
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
mod tests {
    use futures::FutureExt as _;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// A slot that is there at once.
    fn now(share: &Share) -> Option<Slot> {
        share.slot().now_or_never()
    }

    fn all_now(share: &Share) -> Vec<Slot> {
        std::iter::from_fn(|| now(share)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn alone_a_job_gets_all_and_no_more() {
        let slots = Slots::new(3);
        let share = slots.share(1);
        let waiter = share.wait();
        assert_eq!(all_now(&share).len(), 3);
        drop(waiter);
        assert_eq!(all_now(&share).len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_none_gets_one_beside_a_job_that_has_all() {
        let slots = Slots::new(2);
        let shares: Vec<Share> = (0..4).map(|job| slots.share(job)).collect();
        let waiters: Vec<Waiter> = shares.iter().map(Share::wait).collect();
        let all = all_now(&shares[0]);
        assert_eq!(all.len(), 2);
        let more: Vec<Vec<Slot>> = shares[1..].iter().map(all_now).collect();
        let counts: Vec<usize> = more.iter().map(Vec::len).collect();
        assert_eq!(counts, [1, 1, 0], "twice as many is the most");
        drop((waiters, more, all));
        assert_eq!(all_now(&shares[3]).len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn free_slots_go_round() {
        let slots = Slots::new(1);
        let order = Arc::new(Mutex::new(Vec::new()));
        let shares: Vec<Arc<Share>> = (0..3).map(|job| Arc::new(slots.share(job))).collect();
        let blocker = slots.share(9);
        let blocked = (blocker.wait(), now(&blocker));
        let mut tasks = Vec::new();
        // The first job asks for all it has before the others ask for anything.
        for share in &shares {
            for layer in 0..3 {
                let (share, order) = (Arc::clone(share), Arc::clone(&order));
                tasks.push(tokio::spawn(async move {
                    let slot = share.slot().await;
                    order.lock().unwrap().push((share.job, layer));
                    tokio::time::sleep(SECOND).await;
                    drop(slot);
                }));
                tokio::task::yield_now().await;
            }
        }
        assert_eq!(order.lock().unwrap().len(), 0);
        drop(blocked);
        for task in tasks {
            task.await.unwrap();
        }
        let order = order.lock().unwrap().clone();
        let jobs: Vec<u64> = order.iter().map(|(job, _)| *job).collect();
        assert_eq!(jobs, [0, 1, 2, 0, 1, 2, 0, 1, 2]);
        let first: Vec<i32> = order
            .iter()
            .filter(|(job, _)| *job == 0)
            .map(|(_, layer)| *layer)
            .collect();
        assert_eq!(first, [0, 1, 2], "a job's layers keep their order");
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_is_urgent_for_a_while_after_its_last_waiter() {
        let slots = Slots::new(1);
        let [left, idle] = [1, 2].map(|job| slots.share(job));
        let waiter = left.wait();
        assert!(now(&idle).is_none(), "it stands back for one that works");
        drop(waiter);
        tokio::time::sleep(59 * SECOND).await;
        assert!(now(&idle).is_none());
        // Nobody tells it.
        let start = Instant::now();
        drop(idle.slot().await);
        assert_eq!(start.elapsed(), SECOND);
        // Without a waiter one has no right beyond the limit, and with one again it has.
        let all = now(&idle);
        assert!(all.is_some() && now(&left).is_none());
        let waiter = left.wait();
        assert!(now(&left).is_some());
        drop(waiter);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_waited_for_takes_what_is_free_and_no_more() {
        let slots = Slots::new(2);
        let [left, urgent] = [1, 2].map(|job| slots.share(job));
        drop(left.wait());
        tokio::time::sleep(61 * SECOND).await;
        let waiter = urgent.wait();
        let one = now(&urgent);
        let rest = all_now(&left);
        assert!(one.is_some() && rest.len() == 1, "{}", rest.len());
        let waits = urgent.slot();
        let mut waits = pin!(waits);
        assert!(waits.as_mut().now_or_never().is_none());
        let queued = left.slot();
        let mut queued = pin!(queued);
        assert!(queued.as_mut().now_or_never().is_none());
        drop(rest);
        assert!(
            queued.as_mut().now_or_never().is_none(),
            "the urgent one is first"
        );
        assert!(waits.now_or_never().is_some());
        drop((waiter, one));
    }

    #[tokio::test(start_paused = true)]
    async fn who_holds_a_lock_is_as_urgent_as_who_waits_for_it() {
        let slots = Slots::new(1);
        let [holder, waiting, other] = [1, 2, 3].map(|job| slots.share(job));
        let waiter = waiting.wait();
        let held = holder.claim("chain-a");
        held.hold();
        assert!(now(&holder).is_none());
        let elsewhere = waiting.claim("chain-b");
        assert!(now(&holder).is_none());
        drop(elsewhere);
        let wanted = waiting.claim("chain-a");
        assert!(now(&holder).is_some() && now(&other).is_none());
        drop(wanted);
        assert!(now(&holder).is_none());
        drop((held, waiter));
    }

    #[tokio::test(start_paused = true)]
    async fn who_stops_waiting_leaves_no_place() {
        let slots = Slots::new(1);
        let [first, second] = [1, 2].map(|job| slots.share(job));
        let waiters = [first.wait(), second.wait()];
        let slot = now(&first);
        drop(first.slot());
        let waits = second.slot();
        let extra = waits.now_or_never();
        drop((slot, extra));
        first.end();
        assert_eq!(all_now(&second).len(), 1);
        drop(waiters);
    }
}
