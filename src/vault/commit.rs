//! The commit queue: everything that writes to a vault goes through it.
//!
//! A transaction needs the [`Turn`]. There is only one, and only it gives access to the
//! [state](State) of the last commit, so no thread can commit to a state that another is changing.
//! Two kinds of work wait for the turn:
//!
//! - *Jobs* of programs, which a mount's [`Committer`] gathers into batches. A quick job runs on the
//!   caller's thread if the turn is free; all others run on the committer's thread.
//! - *Threads* with work of the vault itself: a rotation, a change of the keyring or of the system
//!   node, the pause in writing that a count needs, a repair. Such a thread waits in
//!   [`CommitQueue::turn`] and then works on its own stack, so that its work may borrow. A vault
//!   without a mount has only these, and no committer.
//!
//! | file | knows |
//! |---|---|
//! | `ticket`, `queue` | the order of jobs; no threads, no clocks |
//! | `waiting` | the holder of the turn, and the next one; no locks |
//! | this one | how a thread waits for the turn, holds it and passes it on |
//! | `committer`, `batch`, `job` | when and on which thread a job runs, and who gets its result |
//! | `transact` | the effect of a transaction on the store and on the caches |
//!
//! The queue keeps these promises, for these reasons:
//!
//! - **No deadlock.** The turn has a rank among the locks (`src/sync/order.rs`), and debug builds
//!   check it before a thread waits. The holder of the turn takes only locks that rank after it, and
//!   waits for no thread of the queue: callers get the results of a batch after its turn.
//! - **No starvation.** The holder that ends a turn [passes it on](Waiting::pass_on) under one lock,
//!   to the one that the [`Queue`](queue::Queue) names. The turn is free only while no one is in
//!   line, so a thread that takes a free turn overtakes no other. The queue gives a share to each
//!   user, and one to the threads. While the committer waits for the disk, it is not in line, and no
//!   thread waits for it; only a job that cannot run on its caller's thread does.
//! - **Jobs keep the order that programs can observe.** The queue keeps it; only the holder of the
//!   turn takes jobs from it, and puts back jobs with further steps before the turn ends.
//! - **A job that is acknowledged as stored is on disk.** Its caller gets the result after a sync
//!   that began after the commit, and the error of that sync, if any.
//! - **A panic leaves no thread waiting.** The turn ends with the stack that holds it. The state is
//!   that of the last commit: a transaction changes a copy, which replaces the state as soon as it is
//!   stored. Jobs that the panic cuts off get an error. After a panic on the committer's thread,
//!   nothing more is written: a flag says so before the turn passes on.

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

/// The commit queue, as the module describes.
pub(super) struct CommitQueue {
    /// No thread may drop a job while it holds this lock: dropping a job's parts takes locks.
    waiting: Mutex<Waiting>,
    /// Wakes the committer's thread when there is work.
    work: Condvar,
    /// Wakes the threads in line when the turn goes to one of them.
    given: Condvar,
    /// The state of the last commit. Only the [`Turn`] locks it, and there is only one, so no
    /// thread ever waits for this lock.
    state: Mutex<State>,
    /// A copy for threads that only look, and must not wait for the disk.
    seen: RwLock<State>,
    /// Outside of the lock, so that reading it takes no lock.
    has_failed: AtomicBool,
}

thread_local! {
    /// Whether this is a committer's thread. After a panic there, nothing more is written.
    static IS_COMMITTER: Cell<bool> = const { Cell::new(false) };
}

/// The turn to commit, with the state, which no other thread sees meanwhile. It stays on its
/// thread.
pub(super) struct Turn<'q> {
    // Declared first, so dropped first: the next holder must not wait for this lock.
    state: MutexGuard<'q, State>,
    baton: Baton<'q>,
    /// Holds this thread's priority up, because threads in line wait for it.
    _forward: nice::Forward,
}

/// Passes the turn on when dropped.
struct Baton<'q> {
    queue: &'q CommitQueue,
    is_over: bool,
}

impl CommitQueue {
    /// The queue of a vault in this state.
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

    /// Waits for the turn. Threads get it in order of arrival, in between jobs.
    pub(super) fn turn(&self) -> Turn<'_> {
        let _forward = nice::forward();
        // Check before waiting, which might last for ever.
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

    /// Like [`turn`](Self::turn), for a thread that will write.
    ///
    /// # Errors
    /// When the queue has failed, and nothing more may be written.
    pub(super) fn turn_to_write(&self) -> Result<Turn<'_>, VaultError> {
        let turn = self.turn();
        turn.must_be_good_for_writing()?;
        Ok(turn)
    }

    /// The turn that the calling thread has just taken from `waiting`.
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

    /// The state of the last commit. It does not wait for the turn.
    pub(super) fn seen(&self) -> State {
        self.seen.read().clone()
    }

    /// Notes a state that another process has committed. The known state never goes back.
    pub(super) fn has_come_to(&self, state: &State) {
        let mut seen = self.seen.write();
        if seen.commit < state.commit {
            seen.clone_from(state);
        }
    }

    /// Whether a panic on the committer's thread has stopped all writing.
    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock()
    }

    /// Accepts no more jobs, and refuses writing to later holders of the turn.
    fn fail(&self, waiting: &mut Waiting) {
        waiting.is_closed = true;
        self.has_failed.store(true, Ordering::Release);
    }
}

impl Turn<'_> {
    /// Replaces the state by the one just committed.
    pub(super) fn commit(&mut self, state: State) {
        self.baton.queue.seen.write().clone_from(&state);
        *self.state = state;
    }

    /// # Errors
    /// When the queue has failed, and nothing more may be written.
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

    /// Ends the turn, and runs `finish` before the next holder gets it.
    fn end<T>(self, finish: impl FnOnce(&mut Waiting) -> T) -> T {
        let Self {
            state, mut baton, ..
        } = self;
        drop(state);
        baton.pass(finish)
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
    fn pass<T>(&mut self, finish: impl FnOnce(&mut Waiting) -> T) -> T {
        let mut waiting = self.queue.lock();
        let finished = finish(&mut waiting);
        waiting.pass_on();
        self.is_over = true;
        let is_awaited = waiting.is_given();
        drop(waiting);
        if is_awaited {
            self.queue.given.notify_all();
        }
        finished
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
