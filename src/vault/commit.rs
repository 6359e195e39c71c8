//! The one queue of all that writes to a vault.
//!
//! Whoever runs a transaction has the [`Turn`]. There is one, and the [state](State) as of the last commit
//! is reached through it alone, so nobody can commit to a state that somebody else is changing. Two kinds
//! of work wait for it:
//!
//! - *Jobs* of programs, which a mount's [`Committer`] gathers into batches. A quick job runs on the
//!   caller's thread if nobody has the turn; all others run on the committer's thread.
//! - *Threads* that do something of the vault's own: a rotation, a change of the keyring or of the system
//!   node, the moment of quiet that a count needs, a repair. Such a thread waits in [`CommitQueue::turn`]
//!   and then works on its own stack, so that what it does may borrow. A vault without a mount has these
//!   only, and no committer.
//!
//! | file | knows |
//! |---|---|
//! | `ticket`, `queue` | what comes next; no threads, no clocks |
//! | `waiting` | who has the turn, and who gets it next; no locks |
//! | this one | how a thread waits for the turn, holds it and passes it on |
//! | `committer`, `batch`, `job` | when jobs run, on which thread, and whom they are told |
//! | `transact` | what a transaction does to the store and to what is cached |
//!
//! What the queue promises, and why it holds:
//!
//! - **Nobody waits in a circle.** The turn has a rank among the locks (`src/sync/order.rs`), and debug
//!   builds check it before a thread waits. Whoever has the turn takes only locks that rank after it, and
//!   waits for no thread of the queue: what came of a batch is told after its turn.
//! - **Nobody starves.** Whoever ends a turn [passes it on](Waiting::pass_on) under one lock, to the one
//!   that the [`Queue`](queue::Queue) names. The turn is free only while nobody is in line, so whoever takes
//!   a free turn passes nobody. The queue gives a share to every user, and one to the threads. While the
//!   committer waits for the disk it is not in line, and no thread waits for it; a job that cannot run on
//!   its caller's thread then does.
//! - **What programs can tell stays in order.** The queue keeps that order; only the holder of the turn
//!   takes jobs from it, and puts back what has further steps before the turn ends.
//! - **What is acknowledged as stored is on disk.** A job that asks for that is told its outcome after a
//!   sync that began when it was committed, and the sync's error if there is one.
//! - **A panic leaves nobody waiting.** The turn ends with the stack that holds it. The state is that of the
//!   last commit: a transaction changes a copy, which is taken up first once it is stored. Jobs that the panic cuts off are told so. If it was on the
//!   committer's thread, nothing more is written: that is noted before anybody else has the turn.

mod batch;
mod committer;
mod job;
mod queue;
#[cfg(test)]
mod tests;
mod ticket;
pub(super) mod transact;
mod users;
mod waiting;

use std::cell::Cell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::os::nice;
use crate::store::{StoreError, StoreErrorKind};
use crate::sync::{Condvar, Mutex, MutexGuard, Rank, RwLock};

use super::VaultError;
use super::state::State;
pub(crate) use committer::Committer;
pub(crate) use ticket::{Ticket, Whose};
use waiting::{InLine, Waiting};

/// See the module.
pub(super) struct CommitQueue {
    /// No job is dropped under it: what a job holds takes locks when it goes.
    waiting: Mutex<Waiting>,
    /// Wakes the committer's thread when there is work.
    work: Condvar,
    /// Wakes those in line when the turn was given to one of them.
    given: Condvar,
    /// As of the last commit. Only a [`Turn`] locks it, and there is one, so nobody ever waits for this lock.
    state: Mutex<State>,
    /// A copy for those who only look, and must not wait for a disk.
    seen: RwLock<State>,
    /// Beside the lock, so that asking for it costs none.
    has_failed: AtomicBool,
}

thread_local! {
    /// Whether this is a committer's thread, after whose panic nothing more is written.
    static IS_COMMITTER: Cell<bool> = const { Cell::new(false) };
}

/// The turn to commit: the state, which nobody else sees meanwhile. It stays with the thread that has it.
pub(super) struct Turn<'q> {
    // Let go of first: who comes next must not wait for it.
    state: MutexGuard<'q, State>,
    baton: Baton<'q>,
    /// Whoever is in line waits for nobody who has stepped back.
    _forward: nice::Forward,
}

/// Passes the turn on when it is dropped.
struct Baton<'q> {
    queue: &'q CommitQueue,
    is_over: bool,
}

impl CommitQueue {
    /// That of a vault whose state is `state`.
    pub(super) fn new(state: State) -> Self {
        Self {
            waiting: Mutex::new(Rank::CommitQueue, Waiting::default()),
            work: Condvar::new(),
            given: Condvar::new(),
            seen: RwLock::new(Rank::Seen, state.clone()),
            state: Mutex::new(Rank::Turn, state),
            has_failed: AtomicBool::new(false),
        }
    }

    /// Waits for the turn, in the order in which threads come, and beside jobs.
    pub(super) fn turn(&self) -> Turn<'_> {
        let _forward = nice::forward();
        // Before the thread waits, since it might wait for ever.
        self.state.check_order();
        let mut waiting = self.waiting.lock();
        if !waiting.take_if_free() {
            let number = waiting.jobs.push_turn();
            while !waiting.take_if_given_to(InLine::Caller(number)) {
                waiting = self.given.wait(waiting);
            }
        }
        drop(waiting);
        self.taken()
    }

    /// The same for who is going to write.
    ///
    /// # Errors
    /// When nothing more is written.
    pub(super) fn turn_to_write(&self) -> Result<Turn<'_>, VaultError> {
        let turn = self.turn();
        turn.must_be_good_for_writing()?;
        Ok(turn)
    }

    /// The turn that the calling thread has taken from those who wait.
    fn taken(&self) -> Turn<'_> {
        let forward = nice::forward();
        let baton = Baton {
            queue: self,
            is_over: false,
        };
        Turn {
            state: self.state.lock(),
            baton,
            _forward: forward,
        }
    }

    /// The state as of the last commit. Waits for nobody.
    pub(super) fn seen(&self) -> State {
        self.seen.read().clone()
    }

    /// Takes note of a state that another process has committed. What is known never goes back.
    pub(super) fn has_come_to(&self, state: &State) {
        let mut seen = self.seen.write();
        if seen.commit < state.commit {
            seen.clone_from(state);
        }
    }

    /// Whether nothing more is written, because the committer's thread has panicked.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    /// Takes in no more jobs, and lets nobody write who takes the turn after this.
    fn fail(&self, waiting: &mut Waiting) {
        waiting.is_closed = true;
        self.has_failed.store(true, Ordering::Release);
    }
}

impl Turn<'_> {
    /// Takes up the state that was committed.
    pub(super) fn commit(&mut self, state: State) {
        self.baton.queue.seen.write().clone_from(&state);
        *self.state = state;
    }

    /// # Errors
    /// When nothing more is written.
    fn must_be_good_for_writing(&self) -> Result<(), VaultError> {
        if self.baton.queue.has_failed() {
            return Err(VaultError::Store(StoreError::new(
                StoreErrorKind::Io,
                "nothing is written any more until the vault is reopened: the thread that commits was \
                 ended by an error in the program",
            )));
        }
        Ok(())
    }

    /// Ends it. `settle` is done before anybody else has it.
    fn end<T>(self, settle: impl FnOnce(&mut Waiting) -> T) -> T {
        let Self {
            state, mut baton, ..
        } = self;
        drop(state);
        baton.pass(settle)
    }
}

impl Deref for Turn<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Baton<'_> {
    fn pass<T>(&mut self, settle: impl FnOnce(&mut Waiting) -> T) -> T {
        let mut waiting = self.queue.lock();
        let settled = settle(&mut waiting);
        waiting.pass_on();
        self.is_over = true;
        let is_awaited = waiting.is_given();
        drop(waiting);
        if is_awaited {
            self.queue.given.notify_all();
        }
        settled
    }
}

impl Drop for Baton<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let queue = self.queue;
        let has_failed = IS_COMMITTER.get() && std::thread::panicking();
        self.pass(|waiting| {
            if has_failed {
                queue.fail(waiting);
            }
        });
    }
}
