// SPDX-License-Identifier: Apache-2.0
// Copyright The resnap Authors

//! The memory budget of all layers that this process writes, or has written ahead of their turn.
//!
//! | part | sixteenths | used by |
//! |---|---|---|
//! | ahead | 3 | layers before their turn; those of one image take no more than they leave for others |
//! | turn | 3 | layers whose turn it is; each takes at most one sixteenth, and no more than it leaves |
//! | large | 10 | one layer at a time whose turn it is and that needs more |
//!
//! A layer never waits for memory before its turn: it is given up, and written when its turn comes. A
//! layer that waits in its turn waits for one other layer, which waits for none, so the wait ends. Other
//! layers only delay a layer, and never cause it to fail: each may take as much as `large` has.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// The interval in which a waiting layer checks for cancellation.
const POLL: Duration = Duration::from_millis(50);

/// The reason why the work on a layer stops.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StopReason {
    /// There is no memory for the layer before its turn.
    #[error("there is no memory for it before its turn")]
    Ahead,
    /// The layer needs more memory than a layer may take.
    #[error(
        "it takes more than {0} bytes of memory, the limit of a layer (ten sixteenths of memory in the configuration): raise memory"
    )]
    LayerMemory(u64),
    /// The window of the first zstd frame is larger than a layer's memory.
    #[error("its zstd window has {0} bytes, more than a layer may take of memory")]
    Window(u64),
    /// The layer writes to more directories that it does not state than any real layer.
    #[error("it takes more than {0} lookups of directories in the layers below")]
    Lookups(u64),
    /// The layer is no longer wanted.
    #[error("it was cancelled")]
    Cancelled,
}

/// The memory that layers take of the budget. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct MemoryUse(Arc<AtomicU64>);

impl MemoryUse {
    /// Returns the bytes that are taken now.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The memory budget of all layers.
#[derive(Debug)]
pub(crate) struct MemoryBudget {
    limit: u64,
    used: MemoryUse,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ahead: u64,
    turn: u64,
    /// Whether a layer holds the large part.
    is_large_held: bool,
    /// The tickets of the layers that wait for it, in order.
    waiting: VecDeque<u64>,
    next_ticket: u64,
}

/// The memory that the layers of one image take before their turn.
#[derive(Debug, Clone, Default)]
pub(crate) struct ImageMemory(Arc<Mutex<u64>>);

/// The memory of one layer. It is given back on drop.
#[derive(Debug)]
pub(crate) struct LayerMemory {
    budget: Arc<MemoryBudget>,
    image: ImageMemory,
    is_turn: Arc<AtomicBool>,
    taken: Mutex<Taken>,
}

/// The bytes that a layer has taken of each part.
#[derive(Debug, Default)]
struct Taken {
    ahead: u64,
    turn: u64,
    large: u64,
    holds_large: bool,
}

impl MemoryBudget {
    /// Returns a budget of this many bytes, of which `used` tells how many are taken.
    pub(crate) fn new(limit: u64, used: MemoryUse) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used,
            state: Mutex::default(),
            changed: Condvar::new(),
        })
    }

    /// Returns the memory of a layer of an image. `is_turn` is set when the layer's turn comes.
    pub(crate) fn layer(
        self: &Arc<Self>,
        image: &ImageMemory,
        is_turn: Arc<AtomicBool>,
    ) -> LayerMemory {
        LayerMemory {
            budget: Arc::clone(self),
            image: image.clone(),
            is_turn,
            taken: Mutex::default(),
        }
    }

    fn part(&self, sixteenths: u64) -> u64 {
        self.limit / 16 * sixteenths
    }

    /// Returns the most that one layer may take.
    fn layer_limit(&self) -> u64 {
        self.part(10)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes bytes of the part for turns, if that leaves as much as the layer then has: a few layers
    /// never keep others from what a usual layer needs.
    fn take_turn(&self, bytes: u64, taken: &mut Taken, state: &mut State) -> bool {
        let wanted = taken.turn + bytes;
        if wanted > self.part(1) || state.turn + bytes + wanted > self.part(3) {
            return false;
        }
        state.turn += bytes;
        taken.turn += bytes;
        true
    }

    /// Takes bytes of the part for turns, or waits for the large part. Meanwhile other layers may free
    /// enough of the part for turns.
    fn take_or_wait(
        &self,
        bytes: u64,
        taken: &mut Taken,
        cancellation: &CancellationToken,
    ) -> Result<(), StopReason> {
        let mut state = self.state();
        if self.take_turn(bytes, taken, &mut state) {
            return Ok(());
        }
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        state.waiting.push_back(ticket);
        let result = loop {
            if !state.is_large_held && state.waiting.front() == Some(&ticket) {
                state.is_large_held = true;
                taken.holds_large = true;
                // The large part is enough for the whole layer; others wait for the part for turns.
                state.turn -= taken.turn;
                taken.large = std::mem::take(&mut taken.turn) + bytes;
                break Ok(());
            }
            if self.take_turn(bytes, taken, &mut state) {
                break Ok(());
            }
            if cancellation.is_cancelled() {
                break Err(StopReason::Cancelled);
            }
            let waited = self.changed.wait_timeout(state, POLL);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        };
        state.waiting.retain(|waiting| *waiting != ticket);
        self.changed.notify_all();
        result
    }
}

impl ImageMemory {
    fn lock(&self) -> MutexGuard<'_, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LayerMemory {
    fn drop(&mut self) {
        self.give(u64::MAX);
    }
}

impl LayerMemory {
    /// Takes bytes before they are allocated. In the layer's turn this may wait, until it is cancelled.
    pub(crate) fn take(
        &self,
        bytes: u64,
        cancellation: &CancellationToken,
    ) -> Result<(), StopReason> {
        let budget = &self.budget;
        let mut taken = self.taken();
        if taken.ahead + taken.turn + taken.large + bytes > budget.layer_limit() {
            return Err(StopReason::LayerMemory(budget.layer_limit()));
        }
        let is_turn = self.is_turn.load(Ordering::Relaxed);
        match is_turn {
            false if self.take_ahead(bytes, &mut taken) => {}
            false => return Err(StopReason::Ahead),
            true if taken.holds_large => taken.large += bytes,
            true => budget.take_or_wait(bytes, &mut taken, cancellation)?,
        }
        budget.used.0.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    /// Gives back bytes that are no longer used.
    pub(crate) fn give(&self, bytes: u64) {
        let taken = &mut *self.taken();
        let large = bytes.min(taken.large);
        let turn = (bytes - large).min(taken.turn);
        let ahead = (bytes - large - turn).min(taken.ahead);
        taken.large -= large;
        taken.turn -= turn;
        taken.ahead -= ahead;
        let given = large + turn + ahead;
        self.budget.used.0.fetch_sub(given, Ordering::Relaxed);
        let is_free = taken.holds_large && taken.large == 0;
        taken.holds_large &= !is_free;
        let mut state = self.budget.state();
        state.turn -= turn;
        state.ahead -= ahead;
        *self.image.lock() -= ahead;
        if is_free {
            state.is_large_held = false;
        }
        if is_free || turn > 0 && !state.waiting.is_empty() {
            self.budget.changed.notify_all();
        }
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_ahead(&self, bytes: u64, taken: &mut Taken) -> bool {
        let mut state = self.budget.state();
        let mut image = self.image.lock();
        let left = self.budget.part(3).saturating_sub(state.ahead);
        if *image + 2 * bytes > left {
            return false;
        }
        *image += bytes;
        state.ahead += bytes;
        taken.ahead += bytes;
        true
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    const LIMIT: u64 = 1600;

    fn layer(budget: &Arc<MemoryBudget>, image: &ImageMemory, is_turn: bool) -> LayerMemory {
        budget.layer(image, Arc::new(AtomicBool::new(is_turn)))
    }

    #[test]
    fn layers_ahead_leave_as_much_as_they_take() {
        let token = CancellationToken::new();
        let budget = MemoryBudget::new(LIMIT, MemoryUse::default());
        let images = [ImageMemory::default(), ImageMemory::default()];
        let first = layer(&budget, &images[0], false);
        let second = layer(&budget, &images[0], false);
        let other = layer(&budget, &images[1], false);
        let used = budget.used.clone();
        assert_eq!(first.take(100, &token), Ok(()));
        assert_eq!(used.bytes(), 100);
        assert_eq!(second.take(50, &token), Ok(()));
        assert_eq!(second.take(1, &token), Err(StopReason::Ahead));
        assert_eq!(other.take(75, &token), Ok(()));
        assert_eq!(other.take(1, &token), Err(StopReason::Ahead));
        // Memory that is given back is available to all.
        drop(second);
        assert_eq!(other.take(1, &token), Ok(()));
        first.give(60);
        assert_eq!(first.take(60, &token), Ok(()));
    }

    #[test]
    fn small_layers_never_wait_for_large_ones() {
        let token = CancellationToken::new();
        let budget = MemoryBudget::new(LIMIT, MemoryUse::default());
        let image = ImageMemory::default();
        let large = layer(&budget, &image, true);
        for _ in 0..10 {
            assert_eq!(large.take(100, &token), Ok(()));
        }
        // Other layers do not matter.
        let most = StopReason::LayerMemory(1000);
        assert_eq!(large.take(1, &token), Err(most.clone()));
        assert_eq!(layer(&budget, &image, false).take(1001, &token), Err(most));
        let ahead = layer(&budget, &image, false);
        assert_eq!(ahead.take(150, &token), Ok(()));
        let small = layer(&budget, &image, true);
        assert_eq!(small.take(100, &token), Ok(()));
        assert_eq!(layer(&budget, &image, true).take(100, &token), Ok(()));
    }

    #[test]
    fn a_few_layers_never_take_all_memory_for_turns() {
        let token = CancellationToken::new();
        let budget = MemoryBudget::new(LIMIT, MemoryUse::default());
        let image = ImageMemory::default();
        let large = layer(&budget, &image, true);
        for _ in 0..2 {
            assert_eq!(large.take(100, &token), Ok(()));
        }
        // Each takes byte by byte what it gets without waiting.
        let others: Vec<_> = (0..4)
            .map(|_| {
                let other = layer(&budget, &image, true);
                while budget.take_turn(1, &mut other.taken(), &mut budget.state()) {}
                other
            })
            .collect();
        let taken: Vec<_> = others.iter().map(|other| other.taken().turn).collect();
        assert_eq!(taken, [100, 100, 50, 25]);
        assert_eq!(layer(&budget, &image, true).take(12, &token), Ok(()));
    }

    #[test]
    fn waiting_layers_take_memory_that_others_give_back() {
        let token = CancellationToken::new();
        let budget = MemoryBudget::new(LIMIT, MemoryUse::default());
        let image = ImageMemory::default();
        let large = layer(&budget, &image, true);
        large.take(200, &token).unwrap();
        let others = [100, 100].map(|bytes| {
            let other = layer(&budget, &image, true);
            other.take(bytes, &token).unwrap();
            other
        });
        thread::scope(|scope| {
            let next = layer(&budget, &image, true);
            let waits = token.clone();
            let next = scope.spawn(move || next.take(60, &waits));
            while budget.state().waiting.is_empty() {
                thread::yield_now();
            }
            assert!(!next.is_finished());
            drop(others);
            assert_eq!(next.join().unwrap(), Ok(()));
        });
        let state = budget.state();
        assert_eq!((state.turn, state.waiting.len()), (0, 0));
        assert!(state.is_large_held);
    }

    #[test]
    fn layers_ahead_continue_when_their_turn_comes() {
        let token = CancellationToken::new();
        let budget = MemoryBudget::new(LIMIT, MemoryUse::default());
        let turn = Arc::new(AtomicBool::new(false));
        let ahead = budget.layer(&ImageMemory::default(), Arc::clone(&turn));
        assert_eq!(ahead.take(150, &token), Ok(()));
        assert_eq!(ahead.take(700, &token), Err(StopReason::Ahead));
        turn.store(true, Ordering::Relaxed);
        assert_eq!(ahead.take(700, &token), Ok(()));
        assert!(budget.state().is_large_held);
        drop(ahead);
        let state = budget.state();
        assert_eq!(
            (state.ahead, state.turn, state.is_large_held),
            (0, 0, false)
        );
    }

    #[test]
    fn large_layers_are_written_one_at_a_time() {
        let (token, other) = (CancellationToken::new(), CancellationToken::new());
        let budget = MemoryBudget::new(LIMIT, MemoryUse::default());
        let image = ImageMemory::default();
        let first = layer(&budget, &image, true);
        first.take(500, &other).unwrap();
        thread::scope(|scope| {
            let wait = |token: CancellationToken| {
                let next = layer(&budget, &image, true);
                scope.spawn(move || next.take(500, &token))
            };
            let cancelled = wait(token.clone());
            while budget.state().waiting.is_empty() {
                thread::yield_now();
            }
            let second = wait(other.clone());
            token.cancel();
            assert_eq!(cancelled.join().unwrap(), Err(StopReason::Cancelled));
            assert!(!second.is_finished());
            first.give(500);
            assert_eq!(second.join().unwrap(), Ok(()));
        });
        let state = budget.state();
        assert_eq!((state.is_large_held, state.waiting.len()), (false, 0));
    }
}
