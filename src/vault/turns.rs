//! Whose turn it is to write.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Who waits to write. A rotation that wrote again and again would be let in before them each time.
#[derive(Debug, Default)]
pub(super) struct Turns {
    waiting: AtomicUsize,
    taken: AtomicU64,
}

impl Turns {
    pub(super) fn take<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let turn = wait();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.taken.fetch_add(1, Ordering::Relaxed);
        turn
    }

    /// Lets somebody who waits go first. Returns when somebody has begun, or soon in any case.
    pub(super) fn give_way(&self) {
        let taken = self.taken.load(Ordering::Relaxed);
        for _ in 0..100 {
            if self.waiting.load(Ordering::Relaxed) == 0
                || self.taken.load(Ordering::Relaxed) != taken
            {
                return;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}
