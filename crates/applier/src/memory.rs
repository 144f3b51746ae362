// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! One budget of memory for all layers that this process writes or has written ahead of their turn.
//!
//! | part | sixteenths | who takes of it |
//! |---|---|---|
//! | ahead | 3 | layers before their turn; those of one image no more than they leave for others |
//! | turn | 3 | layers whose turn it is, each at most one sixteenth, and no more than it leaves |
//! | large | 10 | one layer at a time, whose turn it is and for which that is not enough |
//!
//! Nobody waits for memory before its turn: the layer is given up, and written when its turn comes.
//! Who waits then, waits for one other layer, which waits for none: so it ends. What others have says
//! only when a layer is written, never whether: each may take as much as `large` has.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::pipeline::Stop;

/// How often who waits looks whether it still has to.
const LOOK: Duration = Duration::from_millis(50);

/// Why the work on a layer does not go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// It is written when its turn comes.
    #[error("before its turn there is no memory for it")]
    Ahead,
    /// It needs more than a layer may have.
    #[error(
        "it takes more than {0} bytes of memory, as many as one layer may (ten sixteenths of memory in the configuration): raise memory"
    )]
    Layer(u64),
    /// The window of the first zstd frame is more than a layer may have.
    #[error("its zstd window has {0} bytes, more than a layer may have in memory")]
    Window(u64),
    /// It writes to more directories that it does not state than any real layer, for the layers below.
    #[error("it takes looking up more than {0} directories in the layers below")]
    Looks(u64),
    /// Nobody wants it any more.
    #[error("it was stopped")]
    Stopped,
}

/// The memory that layers may take.
#[derive(Debug)]
pub(crate) struct Memory {
    limit: u64,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ahead: u64,
    turn: u64,
    /// Whether a layer has the large part.
    is_held: bool,
    /// Who waits for it, in order.
    waiting: VecDeque<u64>,
    next: u64,
}

/// What all layers of an image take before their turn.
#[derive(Debug, Clone, Default)]
pub(crate) struct Share(Arc<Mutex<u64>>);

/// The memory of one layer, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Allowance {
    memory: Arc<Memory>,
    share: Share,
    is_turn: Arc<AtomicBool>,
    taken: Mutex<Taken>,
}

/// What a layer has of each part.
#[derive(Debug, Default)]
struct Taken {
    ahead: u64,
    turn: u64,
    large: u64,
    holds: bool,
}

impl Memory {
    /// This many bytes for all.
    pub(crate) fn new(limit: u64) -> Arc<Self> {
        Arc::new(Self {
            limit,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// What a layer of an image takes, whose turn it is once that is set.
    pub(crate) fn allow(self: &Arc<Self>, share: &Share, is_turn: Arc<AtomicBool>) -> Allowance {
        Allowance {
            memory: Arc::clone(self),
            share: share.clone(),
            is_turn,
            taken: Mutex::default(),
        }
    }

    fn part(&self, sixteenths: u64) -> u64 {
        self.limit / 16 * sixteenths
    }

    /// As much as one layer may take.
    fn most(&self) -> u64 {
        self.part(10)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes so many bytes more of the part for turns, if that leaves as much as the layer has then:
    /// a few layers never keep others from what a usual one needs.
    fn take_turn(&self, bytes: u64, taken: &mut Taken, state: &mut State) -> bool {
        let wanted = taken.turn + bytes;
        if wanted > self.part(1) || state.turn + bytes + wanted > self.part(3) {
            return false;
        }
        state.turn += bytes;
        taken.turn += bytes;
        true
    }

    /// Takes so many bytes more of the part for turns, or else has the layer wait for the large part;
    /// while it waits, others may leave enough of the first.
    fn take_or_hold(&self, bytes: u64, taken: &mut Taken, stop: &Stop) -> Result<(), Denied> {
        let mut state = self.state();
        if self.take_turn(bytes, taken, &mut state) {
            return Ok(());
        }
        let number = state.next;
        state.next += 1;
        state.waiting.push_back(number);
        let ended = loop {
            if !state.is_held && state.waiting.front() == Some(&number) {
                state.is_held = true;
                taken.holds = true;
                // There is room for all of it, and others wait for the rest.
                state.turn -= taken.turn;
                taken.large = std::mem::take(&mut taken.turn) + bytes;
                break Ok(());
            }
            if self.take_turn(bytes, taken, &mut state) {
                break Ok(());
            }
            if stop.is_set() {
                break Err(Denied::Stopped);
            }
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        state.waiting.retain(|waiting| *waiting != number);
        self.changed.notify_all();
        ended
    }
}

impl Share {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Allowance {
    fn drop(&mut self) {
        self.give(u64::MAX);
    }
}

impl Allowance {
    /// Takes so many bytes before they are used. It may wait if it is the layer's turn, until `stop`.
    pub(crate) fn take(&self, bytes: u64, stop: &Stop) -> Result<(), Denied> {
        let memory = &self.memory;
        let mut taken = self.taken();
        if taken.ahead + taken.turn + taken.large + bytes > memory.most() {
            return Err(Denied::Layer(memory.most()));
        }
        let is_turn = self.is_turn.load(Ordering::Relaxed);
        match is_turn {
            false if self.take_ahead(bytes, &mut taken) => Ok(()),
            false => Err(Denied::Ahead),
            true if taken.holds => {
                taken.large += bytes;
                Ok(())
            }
            true => memory.take_or_hold(bytes, &mut taken, stop),
        }
    }

    /// Gives back what is not used any more.
    pub(crate) fn give(&self, bytes: u64) {
        let taken = &mut *self.taken();
        let large = bytes.min(taken.large);
        let turn = (bytes - large).min(taken.turn);
        let ahead = (bytes - large - turn).min(taken.ahead);
        taken.large -= large;
        taken.turn -= turn;
        taken.ahead -= ahead;
        let is_free = taken.holds && taken.large == 0;
        taken.holds &= !is_free;
        let mut state = self.memory.state();
        state.turn -= turn;
        state.ahead -= ahead;
        *self.share.lock() -= ahead;
        if is_free {
            state.is_held = false;
        }
        if is_free || turn > 0 && !state.waiting.is_empty() {
            self.memory.changed.notify_all();
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_ahead(&self, bytes: u64, taken: &mut Taken) -> bool {
        let mut state = self.memory.state();
        let mut share = self.share.lock();
        let left = self.memory.part(3).saturating_sub(state.ahead);
        if *share + 2 * bytes > left {
            return false;
        }
        *share += bytes;
        state.ahead += bytes;
        taken.ahead += bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use tokio::sync::watch;

    use super::*;

    const LIMIT: u64 = 1600;

    fn stop() -> (watch::Sender<bool>, Stop) {
        let (sender, receiver) = watch::channel(false);
        (sender, Stop(receiver))
    }

    fn allow(memory: &Arc<Memory>, share: &Share, is_turn: bool) -> Allowance {
        memory.allow(share, Arc::new(AtomicBool::new(is_turn)))
    }

    #[test]
    fn layers_ahead_leave_as_much_as_they_take() {
        let (_sender, stop) = stop();
        let memory = Memory::new(LIMIT);
        let shares = [Share::default(), Share::default()];
        let first = allow(&memory, &shares[0], false);
        let second = allow(&memory, &shares[0], false);
        let other = allow(&memory, &shares[1], false);
        assert_eq!(first.take(100, &stop), Ok(()));
        assert_eq!(second.take(50, &stop), Ok(()));
        assert_eq!(second.take(1, &stop), Err(Denied::Ahead));
        assert_eq!(other.take(75, &stop), Ok(()));
        assert_eq!(other.take(1, &stop), Err(Denied::Ahead));
        // What is given back is there for all.
        drop(second);
        assert_eq!(other.take(1, &stop), Ok(()));
        first.give(60);
        assert_eq!(first.take(60, &stop), Ok(()));
    }

    #[test]
    fn small_layers_never_wait_for_large_ones() {
        let (_sender, stop) = stop();
        let memory = Memory::new(LIMIT);
        let share = Share::default();
        let large = allow(&memory, &share, true);
        for _ in 0..10 {
            assert_eq!(large.take(100, &stop), Ok(()));
        }
        // Whatever others have.
        let most = Denied::Layer(1000);
        assert_eq!(large.take(1, &stop), Err(most.clone()));
        assert_eq!(allow(&memory, &share, false).take(1001, &stop), Err(most));
        let ahead = allow(&memory, &share, false);
        assert_eq!(ahead.take(150, &stop), Ok(()));
        let small = allow(&memory, &share, true);
        assert_eq!(small.take(100, &stop), Ok(()));
        assert_eq!(allow(&memory, &share, true).take(100, &stop), Ok(()));
    }

    #[test]
    fn few_layers_never_keep_all_that_is_for_turns() {
        let (_sender, stop) = stop();
        let memory = Memory::new(LIMIT);
        let share = Share::default();
        let large = allow(&memory, &share, true);
        for _ in 0..2 {
            assert_eq!(large.take(100, &stop), Ok(()));
        }
        // Each takes, bit by bit, what it gets without a wait.
        let others: Vec<_> = (0..4)
            .map(|_| {
                let other = allow(&memory, &share, true);
                while memory.take_turn(1, &mut other.taken(), &mut memory.state()) {}
                other
            })
            .collect();
        let taken: Vec<_> = others.iter().map(|other| other.taken().turn).collect();
        assert_eq!(taken, [100, 100, 50, 25]);
        assert_eq!(allow(&memory, &share, true).take(12, &stop), Ok(()));
    }

    #[test]
    fn who_waits_takes_what_others_give_back() {
        let (_sender, stop) = stop();
        let memory = Memory::new(LIMIT);
        let share = Share::default();
        let large = allow(&memory, &share, true);
        large.take(200, &stop).unwrap();
        let others = [100, 100].map(|bytes| {
            let other = allow(&memory, &share, true);
            other.take(bytes, &stop).unwrap();
            other
        });
        thread::scope(|scope| {
            let next = allow(&memory, &share, true);
            let waits = stop.clone();
            let next = scope.spawn(move || next.take(60, &waits));
            while memory.state().waiting.is_empty() {
                thread::yield_now();
            }
            assert!(!next.is_finished());
            drop(others);
            assert_eq!(next.join().unwrap(), Ok(()));
        });
        let state = memory.state();
        assert_eq!((state.turn, state.waiting.len()), (0, 0));
        assert!(state.is_held);
    }

    #[test]
    fn what_is_ahead_goes_on_when_its_turn_comes() {
        let (_sender, stop) = stop();
        let memory = Memory::new(LIMIT);
        let turn = Arc::new(AtomicBool::new(false));
        let layer = memory.allow(&Share::default(), Arc::clone(&turn));
        assert_eq!(layer.take(150, &stop), Ok(()));
        assert_eq!(layer.take(700, &stop), Err(Denied::Ahead));
        turn.store(true, Ordering::Relaxed);
        assert_eq!(layer.take(700, &stop), Ok(()));
        assert!(memory.state().is_held);
        drop(layer);
        let state = memory.state();
        assert_eq!((state.ahead, state.turn, state.is_held), (0, 0, false));
    }

    #[test]
    fn large_layers_come_one_after_the_other() {
        let (sender, stopped) = stop();
        let (_other, going) = stop();
        let memory = Memory::new(LIMIT);
        let share = Share::default();
        let first = allow(&memory, &share, true);
        first.take(500, &going).unwrap();
        thread::scope(|scope| {
            let wait = |stop: Stop| {
                let next = allow(&memory, &share, true);
                scope.spawn(move || next.take(500, &stop))
            };
            let cancelled = wait(stopped);
            while memory.state().waiting.is_empty() {
                thread::yield_now();
            }
            let second = wait(going.clone());
            sender.send_replace(true);
            assert_eq!(cancelled.join().unwrap(), Err(Denied::Stopped));
            assert!(!second.is_finished());
            first.give(500);
            assert_eq!(second.join().unwrap(), Ok(()));
        });
        let state = memory.state();
        assert_eq!((state.is_held, state.waiting.len()), (false, 0));
    }
}
