//! The committer of a mount: it gathers jobs and commits them in one transaction and one fsync.
//!
//! A job that need not be on disk at once runs on the caller's thread if the turn is free, because
//! waking another thread costs more than the job. Everything else goes to the committer's own
//! thread, so that waiting for the disk never blocks the thread that reads requests. While the
//! committer syncs, other threads commit, and jobs that must be on disk gather for the next sync.
//!
//! A large content is stored in several steps, each in a transaction of its own. While several
//! users write, each step is synced before the next begins, so that other users wait for at most
//! one step.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::crypto::memory;
use crate::sync::{Mutex, Rank};
use crate::vault::{Tx, VaultError};

use super::batch::{Committed, Finished, commit, finish};
use super::job::{Done, Job, Refusal};
use super::queue::MAX_BATCH;
use super::ticket::{Ticket, Whose};
use super::transact::Transactions;
use super::waiting::{InLine, Thread};
use super::{CommitQueue, IS_COMMITTER, Turn};

/// Names and attributes are on disk within this time.
const SYNC_AFTER: Duration = Duration::from_millis(900);
/// How often a thread that has committed looks for new quick jobs, before it goes on.
const LOOKS: usize = 8;

/// The committer of a mount, as the module describes.
pub(crate) struct Committer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    on: Arc<Transactions>,
    /// A caller that leaves a job to another thread calls this; that thread will report the result.
    left_to_another: fn(),
}

impl Committer {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the thread cannot start, or the vault has one already.
    pub(in crate::vault) fn start(
        on: Arc<Transactions>,
        left_to_another: fn(),
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            on,
            left_to_another,
        });
        shared.open()?;
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("writer".into())
                .spawn(move || {
                    memory::keep_stack_in();
                    shared.serve_or_fail()
                })
        };
        let thread = thread.inspect_err(|_| shared.leave())?;
        Ok(Self {
            shared,
            thread: Mutex::new(Rank::CommitThread, Some(thread)),
        })
    }

    /// Runs `run` in a transaction and passes the result to `done`, on any thread. `run` may run
    /// more than once; the last result counts.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        ticket: Ticket,
        run: impl FnMut(&mut Tx<'_>) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) {
        self.shared.submit(Job::new(ticket, run, done));
    }

    /// Like [`submit`](Self::submit), for a job that must be on disk, and may have [several
    /// steps](Ticket::in_steps), each in its own transaction. `run` gets the step, counted from 0,
    /// and the result of the last step counts. The first step that fails is the last. Another
    /// thread calls `done`, so the caller may hold locks that `done` takes.
    ///
    /// # Errors
    /// When the queue is closed. The caller reports the error after it has released those locks.
    pub(crate) fn enqueue<T: Send + 'static>(
        &self,
        ticket: Ticket,
        run: impl FnMut(&mut Tx<'_>, u32) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) -> Result<(), Refusal> {
        self.shared.enqueue(Job::in_steps(ticket, run, done))
    }

    /// Like [`submit`](Self::submit), for a job that no program waits for: it joins the next
    /// commit, and needs no transaction of its own.
    pub(crate) fn submit_later<T: Send + 'static>(
        &self,
        run: impl FnMut(&mut Tx<'_>) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) {
        self.shared
            .submit_later(Job::new(Ticket::quick(Whose::Unknown), run, done));
    }

    /// Makes all earlier commits durable, then calls `done`.
    pub(crate) fn barrier(
        &self,
        ticket: Ticket,
        done: impl FnOnce(Result<(), VaultError>) + Send + 'static,
    ) {
        self.submit(ticket, |_| Ok(()), done);
    }

    /// Runs the queued jobs, makes everything durable, and ends the thread.
    pub(crate) fn close(&self) {
        self.shared.queue().lock().is_closed = true;
        self.shared.queue().work.notify_all();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the writer's thread has panicked");
        }
    }
}

/// A task of the committer's thread.
struct Task<'q> {
    /// The turn in which to commit `jobs`. Without jobs, it shows that no other thread commits.
    turn: Option<Turn<'q>>,
    jobs: Vec<Job>,
    /// Commits have waited long enough for a sync.
    is_overdue: bool,
    /// No new jobs come.
    is_closed: bool,
}

impl Shared {
    fn queue(&self) -> &CommitQueue {
        self.on.queue()
    }

    fn submit(&self, job: Job) {
        // A rotation writes much: the thread that takes requests would wait for the store to tidy up.
        let may_run_here = job.ticket.is_quick() && !self.on.is_rotating();
        if may_run_here && let Some(turn) = self.turn_before_all(&job.ticket) {
            let committed = commit(&self.on, vec![job], turn);
            finish(committed.soon);
            if committed.has_quick {
                self.help();
            }
            return;
        }
        if let Err(refusal) = self.enqueue(job) {
            return refusal.tell();
        }
        // The thread may be waiting for the disk, for other users.
        if may_run_here {
            self.help();
        }
    }

    /// The turn for a quick job that may run at once, because no thread is in line and programs
    /// cannot observe what it overtakes.
    fn turn_before_all(&self, ticket: &Ticket) -> Option<Turn<'_>> {
        let mut waiting = self.queue().lock();
        let may = !waiting.is_closed && waiting.jobs.may_overtake(ticket);
        let is_taken = may && waiting.take_if_free();
        drop(waiting);
        is_taken.then(|| self.queue().taken())
    }

    fn enqueue(&self, job: Job) -> Result<(), Refusal> {
        let ticket = job.ticket;
        let mut waiting = self.queue().lock();
        if waiting.is_closed {
            drop(waiting);
            return Err(Refusal(job.done));
        }
        waiting.users.note(ticket.whose(), Instant::now());
        waiting.jobs.push(ticket, job);
        let is_at_rest = waiting.is_thread_at_rest();
        drop(waiting);
        if !ticket.is_unattended() {
            (self.left_to_another)();
        }
        if is_at_rest {
            self.queue().work.notify_one();
        }
        Ok(())
    }

    fn submit_later(&self, job: Job) {
        let mut waiting = self.queue().lock();
        if waiting.is_closed {
            drop(waiting);
            return job.done.tell(Err(VaultError::Closed));
        }
        waiting.jobs.push_later(job);
        // Without other work, the thread wakes when it is time to sync.
        waiting.unsynced.get_or_insert_with(Instant::now);
        let is_to_come = match waiting.jobs.later() < MAX_BATCH {
            true => waiting.thread == Thread::Asleep,
            false => waiting.is_thread_at_rest(),
        };
        drop(waiting);
        if is_to_come {
            self.queue().work.notify_one();
        }
    }

    /// Commits queued quick jobs, unless another thread has the turn or is in line: threads that run
    /// jobs look for quick jobs at the end of their turn, and so does the committer's thread.
    fn help(&self) {
        for _ in 0..LOOKS {
            let mut waiting = self.queue().lock();
            if !waiting.jobs.has_quick() || !waiting.take_if_free() {
                return;
            }
            let jobs = waiting.jobs.take_quick();
            drop(waiting);
            let turn = self.queue().taken();
            if jobs.is_empty() {
                return;
            }
            finish(commit(&self.on, jobs, turn).soon);
        }
    }

    // --- the thread --------------------------------------------------------------------------

    /// Accepts jobs from now on, for the thread that is about to start.
    fn open(&self) -> std::io::Result<()> {
        let mut waiting = self.queue().lock();
        if waiting.thread != Thread::Absent {
            return Err(std::io::Error::other(
                "the vault has a thread that commits already",
            ));
        }
        waiting.is_closed = self.queue().has_failed();
        waiting.thread = Thread::Busy;
        Ok(())
    }

    /// Accepts no more jobs, because the thread is gone.
    fn leave(&self) {
        let mut waiting = self.queue().lock();
        waiting.is_closed = true;
        waiting.thread = Thread::Absent;
    }

    /// Serves the queue. After a panic, all waiting and later jobs get an error.
    fn serve_or_fail(&self) {
        IS_COMMITTER.set(true);
        let served = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.serve()));
        if served.is_err() {
            tracing::error!("internal error in the writer: nothing more is written");
            self.queue().fail(&mut self.queue().lock());
            // Make durable the commits that callers already have an answer to.
            if let Err(error) = self.on.sync() {
                tracing::error!("names and attributes could not be made durable: {error}");
            }
        }
        self.leave();
        let left = self.queue().lock().jobs.drain();
        for job in left {
            job.done.tell(Err(VaultError::Closed));
        }
    }

    fn serve(&self) {
        loop {
            let task = self.next_task();
            let is_idle = task.jobs.is_empty();
            let committed = match task.turn {
                Some(turn) if is_idle => {
                    drop(turn);
                    Committed::default()
                }
                Some(turn) => {
                    fail::fail_point!("writer-commits");
                    commit(&self.on, task.jobs, turn)
                }
                None => Committed::default(),
            };
            finish(committed.soon);
            if committed.has_more {
                fail::fail_point!("dies-between-steps", |_| std::process::abort());
                fail::fail_point!("writer-between-steps");
            }
            self.help();
            // Sync between steps, so that a new job need not wait for all commits so far. With a
            // lone user that would be useless.
            let is_shared = committed.has_more && self.are_several_users_about();
            if task.is_overdue || is_shared || !committed.now.is_empty() {
                finish(self.sync(committed.now));
            }
            if is_idle && task.is_closed {
                return;
            }
        }
    }

    fn are_several_users_about(&self) -> bool {
        self.queue().lock().users.are_several(Instant::now())
    }

    /// Waits for the next task, and for the turn if the task needs one.
    fn next_task(&self) -> Task<'_> {
        let queue = self.queue();
        let mut waiting = queue.lock();
        // Commits by others meanwhile are not older than this.
        let mut idle = Instant::now();
        let is_overdue = loop {
            let later = waiting.jobs.later();
            if waiting.is_closed || !waiting.jobs.is_empty() || later >= MAX_BATCH {
                break waiting.is_closed;
            }
            if later > 0 {
                waiting.unsynced.get_or_insert_with(Instant::now);
            }
            let since = waiting.unsynced.unwrap_or(idle);
            let rest = SYNC_AFTER.saturating_sub(since.elapsed());
            waiting = match (rest.is_zero(), waiting.unsynced) {
                (true, Some(_)) => break true,
                (true, None) => {
                    waiting.thread = Thread::Asleep;
                    let waiting = queue.work.wait(waiting);
                    idle = Instant::now();
                    waiting
                }
                (false, _) => {
                    waiting.thread = Thread::Resting;
                    queue.work.wait_timeout(waiting, rest)
                }
            };
            waiting.thread = Thread::Busy;
        };
        let mut task = Task {
            turn: None,
            jobs: Vec::new(),
            is_overdue,
            is_closed: waiting.is_closed,
        };
        // At the end, wait for the turn in any case: its holder may be committing a quick job, and
        // the last sync must come after that.
        if waiting.jobs.is_empty() && waiting.jobs.later() == 0 && !waiting.is_closed {
            return task;
        }
        if !waiting.take_if_free() {
            waiting.thread = Thread::InLine;
            while !waiting.take_if_given_to(InLine::Committer) {
                waiting = queue.given.wait(waiting);
            }
            waiting.thread = Thread::Busy;
        }
        task.jobs = waiting.jobs.take();
        let since = waiting.unsynced;
        drop(waiting);
        task.is_overdue |= since.is_some_and(|since| since.elapsed() >= SYNC_AFTER);
        task.turn = Some(queue.taken());
        task
    }

    /// Makes all commits durable, and returns `committed` with the outcome.
    fn sync(&self, committed: Finished) -> Finished {
        // Commits from now on may miss this sync.
        let since = self.queue().lock().unsynced.take();
        if !committed.is_empty() {
            fail::fail_point!("writer-syncs");
        }
        match self.on.sync() {
            Ok(()) => committed,
            Err(error) => {
                let mut waiting = self.queue().lock();
                waiting.unsynced.get_or_insert_with(Instant::now);
                drop(waiting);
                if committed.is_empty() && since.is_some() {
                    tracing::error!("names and attributes could not be made durable: {error}");
                }
                let failed =
                    |(done, outcome): (Done, Result<_, _>)| (done, outcome.and(Err(error.clone())));
                committed.into_iter().map(failed).collect()
            }
        }
    }
}
