//! Work shared among the processors. The driver reads and stores; other threads do the rest, and
//! the driver helps while they are busy.

use std::collections::VecDeque;
use std::num::NonZero;
use std::thread::{self, Builder};

use crate::crypto::memory;
use crate::os::nice;
use crate::sync::{Condvar, Mutex, MutexGuard, Rank};

/// Limit on threads, including the driver, which stores what all others prepare.
pub(super) const MOST: usize = 4;

/// Pieces of work, and their results.
pub(super) struct Crew<T, U> {
    queue: Mutex<WorkQueue<T, U>>,
    given: Condvar,
    done: Condvar,
    threads: usize,
}

struct WorkQueue<T, U> {
    given: VecDeque<T>,
    /// `None` for a piece whose thread panicked.
    done: VecDeque<Option<U>>,
    /// Number of pieces that threads are working on.
    held: usize,
    closed: bool,
}

impl<T: Send, U: Send> Crew<T, U> {
    /// Runs `drive` beside threads that do `work` on its pieces. There is one thread for each
    /// processor, including the driver; with one processor the driver does all work.
    pub(super) fn with<R>(
        work: &(dyn Fn(T) -> U + Sync),
        drive: impl FnOnce(&Self, &(dyn Fn(T) -> U + Sync)) -> R,
    ) -> R {
        Self::with_at_most(MOST, work, drive)
    }

    /// The same with at most `most` threads: for little work, starting threads is not worth it.
    pub(super) fn with_at_most<R>(
        most: usize,
        work: &(dyn Fn(T) -> U + Sync),
        drive: impl FnOnce(&Self, &(dyn Fn(T) -> U + Sync)) -> R,
    ) -> R {
        let threads = processors();
        let crew = Self {
            queue: Mutex::new(
                Rank::Crew,
                WorkQueue {
                    given: VecDeque::new(),
                    done: VecDeque::new(),
                    held: 0,
                    closed: false,
                },
            ),
            given: Condvar::new(),
            done: Condvar::new(),
            threads: threads.min(most),
        };
        let is_modest = nice::is_modest();
        thread::scope(|scope| {
            for _ in 1..crew.threads {
                // Without this thread there is less help, and nothing is lost.
                let _ = Builder::new().name("crew".into()).spawn_scoped(scope, || {
                    if is_modest {
                        nice::lower_priority();
                    }
                    crew.help(work);
                });
            }
            let _closed = Closed(&crew);
            drive(&crew, work)
        })
    }

    /// Number of pieces worth handing out before the driver takes a result.
    pub(super) fn room(&self) -> usize {
        let queue = self.queue();
        let under_way = queue.given.len() + queue.held + queue.done.len();
        (2 * self.threads).saturating_sub(under_way)
    }

    /// Hands out a piece of work.
    pub(super) fn give(&self, piece: T) {
        self.queue().given.push_back(piece);
        self.given.notify_one();
    }

    /// The result of a piece, in any order; `None` if nothing is under way.
    pub(super) fn take(&self, work: &(dyn Fn(T) -> U + Sync)) -> Option<U> {
        let mut queue = self.queue();
        loop {
            if let Some(done) = queue.done.pop_front() {
                // The panic would have reached here, too.
                return Some(done.unwrap_or_else(|| panic!("a thread of the crew panicked")));
            }
            if let Some(piece) = queue.given.pop_front() {
                drop(queue);
                return Some(work(piece));
            }
            if queue.held == 0 {
                return None;
            }
            queue = self.done.wait(queue);
        }
    }

    fn help(&self, work: &(dyn Fn(T) -> U + Sync)) {
        memory::keep_stack_in();
        loop {
            let mut queue = self.queue();
            let piece = loop {
                if queue.closed {
                    return;
                }
                if let Some(piece) = queue.given.pop_front() {
                    break piece;
                }
                queue = self.given.wait(queue);
            };
            queue.held += 1;
            drop(queue);
            let mut held = Held {
                crew: self,
                done: None,
            };
            held.done = Some(work(piece));
        }
    }

    fn queue(&self) -> MutexGuard<'_, WorkQueue<T, U>> {
        self.queue.lock()
    }
}

fn processors() -> usize {
    fail::fail_point!("crew", |number| {
        number.and_then(|number| number.parse().ok()).unwrap_or(1)
    });
    thread::available_parallelism().map_or(1, NonZero::get)
}

/// A piece under work, which returns its result, or `None` after a panic.
struct Held<'c, T: Send, U: Send> {
    crew: &'c Crew<T, U>,
    done: Option<U>,
}

impl<T: Send, U: Send> Drop for Held<'_, T, U> {
    fn drop(&mut self) {
        let mut queue = self.crew.queue();
        queue.held -= 1;
        queue.done.push_back(self.done.take());
        drop(queue);
        self.crew.done.notify_one();
    }
}

/// Ends the helper threads, even if the driver panics.
struct Closed<'c, T: Send, U: Send>(&'c Crew<T, U>);

impl<T: Send, U: Send> Drop for Closed<'_, T, U> {
    fn drop(&mut self) {
        self.0.queue().closed = true;
        self.0.given.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_of_work_is_done_once_whoever_does_it() {
        let work = |n: u64| n * n;
        let sum: u64 = Crew::with(&work, |crew, work| {
            let (mut next, mut sum) = (0, 0);
            loop {
                while next < 1000 && crew.room() > 0 {
                    crew.give(next);
                    next += 1;
                }
                match crew.take(work) {
                    Some(square) => sum += square,
                    None => return sum,
                }
            }
        });
        assert_eq!(sum, (0..1000).map(|n| n * n).sum::<u64>());
    }

    #[test]
    fn a_panic_on_another_thread_is_one_here_and_nobody_waits_for_ever() {
        let work = |n: u64| assert!(n != 17, "on purpose");
        let outcome = std::panic::catch_unwind(|| {
            Crew::with(&work, |crew, work| {
                for n in 0..40 {
                    crew.give(n);
                }
                while crew.take(work).is_some() {}
            });
        });
        assert!(outcome.is_err());
    }
}
