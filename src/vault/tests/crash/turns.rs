//! Threads that take turns, as a seed says: one runs, and all others wait until it passes the turn.
//!
//! A thread must hold no lock that another needs when it passes the turn.

use std::cell::Cell;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Numbers from a seed (SplitMix64).
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn of(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5EC2_E7F5)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

/// The turns of some threads.
pub(super) struct Turns {
    state: Mutex<State>,
    passed: Condvar,
}

struct State {
    numbers: Numbers,
    /// The share of each thread; 0 once it has ended.
    shares: Vec<usize>,
    running: Option<usize>,
}

thread_local! {
    static SELF: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The number of the calling thread; `None` for one that takes no turns.
pub(super) fn own_number() -> Option<usize> {
    SELF.get()
}

impl Turns {
    /// For as many threads as `shares`, each with its share of the turns.
    pub(super) fn new(numbers: Numbers, shares: Vec<usize>) -> Self {
        let mut state = State {
            numbers,
            shares,
            running: None,
        };
        state.choose();
        Self {
            state: Mutex::new(state),
            passed: Condvar::new(),
        }
    }

    /// Runs `body` as the thread with this number.
    pub(super) fn take<T>(&self, number: usize, body: impl FnOnce() -> T) -> T {
        SELF.set(Some(number));
        let _end = End(self, number);
        self.wait(self.state(), number);
        body()
    }

    /// Lets another thread run, or this one again. Does nothing on a thread that takes no turns.
    pub(super) fn pass(&self) {
        let Some(number) = SELF.get() else { return };
        let mut state = self.state();
        state.choose();
        self.passed.notify_all();
        self.wait(state, number);
    }

    fn wait(&self, mut state: MutexGuard<'_, State>, number: usize) {
        while state.running != Some(number) {
            let waited = self.passed.wait(state);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn choose(&mut self) {
        let all: usize = self.shares.iter().sum();
        self.running = None;
        if all == 0 {
            return;
        }
        let mut at = self.numbers.below(all);
        for (number, share) in self.shares.iter().enumerate() {
            if at < *share {
                self.running = Some(number);
                return;
            }
            at -= share;
        }
    }
}

/// Ends a thread's part, even by a panic.
struct End<'t>(&'t Turns, usize);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let Self(turns, number) = self;
        SELF.set(None);
        let mut state = turns.state();
        state.shares[*number] = 0;
        state.choose();
        turns.passed.notify_all();
    }
}
