//! The one place where a mount writes: jobs are gathered and committed in one transaction and one
//! fsync.
//!
//! A job that need not be on disk at once runs on the caller's thread when nothing else is committing,
//! because waking another thread costs more than the job. Everything else goes to the writer's own
//! thread, so that nothing that waits for the disk stops the thread that reads requests. While that
//! one syncs, others commit, and what is to be on disk gathers for the next sync.
//!
//! A large content is stored in several steps, each in a transaction of its own. While several users
//! are about, each is synced before the next begins: what others wait for is on disk when no more than
//! one step is.
//!
//! Which of the jobs that wait come next, and which must not overtake which, is the [`Queue`]'s to say.

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::crypto::memory;
use crate::store::Durability;
use crate::sync::{Condvar, Mutex, MutexGuard, Rank};
use crate::vault::{Job as VaultJob, Tx, Vault, VaultError};

use super::job::{Done, Job, Refusal};
use super::queue::{MAX_BATCH, Queue};
use super::ticket::{Ticket, Whose};
use super::users::Users;

/// Names and attributes are on disk after this long at the latest.
const SYNC_AFTER: Duration = Duration::from_millis(900);
/// How often whoever has committed looks for quick jobs that came meanwhile, before it goes on to what
/// others wait for.
const LOOKS: usize = 8;

#[derive(Default)]
struct Waiting {
    jobs: Queue<Job>,
    /// What the daemon does of its own accord: goes along with the next ones.
    later: Vec<Job>,
    /// Since when something is committed but not on disk.
    unsynced: Option<Instant>,
    users: Users,
    /// The thread does not come by itself to look for that.
    asleep: bool,
    closed: bool,
}

struct Shared {
    vault: Arc<Vault>,
    /// Called by whoever leaves a job to another thread, which is going to tell what came of it.
    left_to_another: fn(),
    /// No job is dropped under it: what a job holds takes locks when it goes.
    queue: Mutex<Waiting>,
    wake: Condvar,
    /// Held while a transaction runs, and while jobs are taken for one: keeps them in order. Who lets
    /// go of it looks for quick jobs that came meanwhile.
    running: std::sync::Mutex<()>,
}

/// See the module.
pub(crate) struct CommitQueue {
    shared: Arc<Shared>,
    thread: std::sync::Mutex<Option<JoinHandle<()>>>,
}

impl CommitQueue {
    pub(crate) fn start(vault: Arc<Vault>, left_to_another: fn()) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            vault,
            left_to_another,
            queue: Mutex::new(Rank::CommitQueue, Waiting::default()),
            wake: Condvar::new(),
            running: std::sync::Mutex::new(()),
        });
        let thread = {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("writer".into())
                .spawn(move || {
                    memory::keep_stack_in();
                    shared.serve_or_fail()
                })?
        };
        Ok(Self {
            shared,
            thread: std::sync::Mutex::new(Some(thread)),
        })
    }

    /// Runs `run` in a transaction and tells `done` what came of it, on whichever thread. `run`
    /// may be run more than once; the last result counts.
    pub(crate) fn submit<T: Send + 'static>(
        &self,
        ticket: Ticket,
        run: impl FnMut(&mut Tx<'_>) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) {
        self.shared.submit(Job::new(ticket, run, done));
    }

    /// As [`submit`](Self::submit), for what is to be on disk, and may have [several
    /// steps](Ticket::in_steps), each in a transaction of its own: `run` is told which, counted from 0,
    /// and the last one's result counts. The first step that fails is the last. `done` is called by
    /// another thread, so that the caller may hold locks which `done` takes.
    ///
    /// # Errors
    /// When nothing more is written: to be told once those locks are let go of.
    pub(crate) fn enqueue<T: Send + 'static>(
        &self,
        ticket: Ticket,
        run: impl FnMut(&mut Tx<'_>, u32) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) -> Result<(), Refusal> {
        self.shared.enqueue(Job::in_steps(ticket, run, done))
    }

    /// As [`submit`](Self::submit), for what nobody waits for: it goes along with what is committed
    /// next, so that it costs no transaction of its own.
    pub(crate) fn submit_later<T: Send + 'static>(
        &self,
        run: impl FnMut(&mut Tx<'_>) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) {
        self.shared
            .submit_later(Job::new(Ticket::quick(Whose::Unknown), run, done));
    }

    /// Makes durable what was committed before, then calls `done`.
    pub(crate) fn barrier(
        &self,
        ticket: Ticket,
        done: impl FnOnce(Result<(), VaultError>) + Send + 'static,
    ) {
        self.submit(ticket, |_| Ok(()), done);
    }

    /// Runs what is queued, makes everything durable and ends the thread.
    pub(crate) fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.wake.notify_all();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the writer's thread has panicked");
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.queue.lock()
    }

    fn submit(&self, job: Job) {
        let ticket = job.ticket;
        // A rotation may hold what the job would wait for.
        let may_run_here = ticket.is_quick() && !self.vault.is_rotating();
        if may_run_here && let Ok(running) = self.running.try_lock() {
            let free = {
                let queue = self.lock();
                queue.jobs.may_overtake(&ticket) && !queue.closed
            };
            if free {
                let committed = self.commit(vec![job]);
                drop(running);
                finish(committed.soon);
                let has_quick = {
                    let queue = self.lock();
                    self.wake_if_asleep(&queue);
                    queue.jobs.has_quick()
                };
                if has_quick {
                    self.help();
                }
                return;
            }
        }
        if let Err(refusal) = self.enqueue(job) {
            return refusal.tell();
        }
        // The writer's thread may be waiting for the disk, on behalf of others.
        if may_run_here {
            self.help();
        }
    }

    fn enqueue(&self, job: Job) -> Result<(), Refusal> {
        let ticket = job.ticket;
        let mut queue = self.lock();
        if queue.closed {
            return Err(Refusal(job.done));
        }
        queue.users.note(ticket.whose(), Instant::now());
        queue.jobs.push(ticket, job);
        drop(queue);
        if !ticket.is_unattended() {
            (self.left_to_another)();
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Commits quick jobs that are queued, unless somebody is committing: who is looks for them when it
    /// is through.
    fn help(&self) {
        for _ in 0..LOOKS {
            if !self.lock().jobs.has_quick() {
                return;
            }
            let Ok(running) = self.running.try_lock() else {
                return;
            };
            let jobs = self.lock().jobs.take_quick();
            if jobs.is_empty() {
                return;
            }
            let committed = self.commit(jobs);
            drop(running);
            finish(committed.soon);
        }
    }

    fn submit_later(&self, job: Job) {
        let mut queue = self.lock();
        if queue.closed {
            drop(queue);
            return (job.done)(Err(VaultError::Closed));
        }
        queue.later.push(job);
        // With nothing else to do, the thread comes by when it is time to sync.
        queue.unsynced.get_or_insert_with(Instant::now);
        match queue.later.len() < MAX_BATCH {
            true => self.wake_if_asleep(&queue),
            false => self.wake.notify_one(),
        }
    }

    /// There is something to sync: the thread must know, unless it looks soon. To wake it for
    /// nothing would cost as much as a commit.
    fn wake_if_asleep(&self, queue: &Waiting) {
        if queue.asleep {
            self.wake.notify_one();
        }
    }

    /// Serves; should that ever panic, whoever waits is told, and so is whoever comes.
    fn serve_or_fail(&self) {
        let served = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.serve()));
        if served.is_ok() {
            return;
        }
        tracing::error!("internal error in the writer: nothing more is written");
        let waiting = {
            let mut queue = self.lock();
            queue.closed = true;
            let mut jobs = queue.jobs.drain();
            jobs.append(&mut queue.later);
            jobs
        };
        for job in waiting {
            (job.done)(Err(VaultError::Closed));
        }
    }

    fn serve(&self) {
        loop {
            let (overdue, closed) = self.wait();
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let (jobs, since) = {
                let mut queue = self.lock();
                let mut jobs = queue.jobs.take();
                // Programs wait for no more of the daemon's own than as many jobs make, and one.
                let room = match jobs.len() {
                    count if count > 0 && queue.later.len() < MAX_BATCH => count + 1,
                    _ => MAX_BATCH,
                };
                let room = room.min(MAX_BATCH - jobs.len()).min(queue.later.len());
                jobs.extend(queue.later.drain(..room));
                (jobs, queue.unsynced)
            };
            let idle = jobs.is_empty();
            let overdue = overdue || since.is_some_and(|since| since.elapsed() >= SYNC_AFTER);
            if !idle {
                fail::fail_point!("writer-commits");
            }
            let committed = self.commit(jobs);
            drop(running);
            finish(committed.soon);
            if committed.has_more {
                fail::fail_point!("dies-between-steps", |_| std::process::abort());
                fail::fail_point!("writer-between-steps");
            }
            self.help();
            // Who comes is not to wait for all that was committed so far. With nobody else about, that
            // would be to no purpose.
            let is_shared = committed.has_more && self.lock().users.are_several(Instant::now());
            if overdue || is_shared || !committed.now.is_empty() {
                finish(self.sync(committed.now));
            }
            if idle && closed {
                return;
            }
        }
    }

    /// Waits until there is something to do: whether to sync, and whether this is the end.
    fn wait(&self) -> (bool, bool) {
        let mut queue = self.lock();
        // What others commit meanwhile is not older than this.
        let mut idle = Instant::now();
        loop {
            if !queue.jobs.is_empty() || queue.later.len() >= MAX_BATCH || queue.closed {
                return (queue.closed, queue.closed);
            }
            if !queue.later.is_empty() {
                queue.unsynced.get_or_insert_with(Instant::now);
            }
            let since = queue.unsynced.unwrap_or(idle);
            let rest = SYNC_AFTER.saturating_sub(since.elapsed());
            queue = match (rest.is_zero(), queue.unsynced) {
                (true, Some(_)) => return (true, false),
                (true, None) => {
                    queue.asleep = true;
                    let mut queue = self.wake.wait(queue);
                    queue.asleep = false;
                    idle = Instant::now();
                    queue
                }
                (false, _) => self.wake.wait_timeout(queue, rest),
            };
        }
    }

    /// Makes durable all that was committed, and `waiting` with it.
    fn sync(&self, waiting: Finished) -> Finished {
        // What is committed from now on is not certain to go along.
        let since = self.lock().unsynced.take();
        if !waiting.is_empty() {
            fail::fail_point!("writer-syncs");
        }
        match self.vault.sync() {
            Ok(()) => waiting,
            Err(error) => {
                self.lock().unsynced.get_or_insert_with(Instant::now);
                if waiting.is_empty() && since.is_some() {
                    tracing::error!("names and attributes could not be made durable: {error}");
                }
                let failed =
                    |(done, outcome): (Done, Result<_, _>)| (done, outcome.and(Err(error.clone())));
                waiting.into_iter().map(failed).collect()
            }
        }
    }

    /// Runs jobs in one transaction; after a failure of the store each alone, so that one that
    /// does not fit on the disk does not take the others with it. To be called with `running` held:
    /// what is not through with all its steps is queued again before anybody takes anything else.
    fn commit(&self, mut jobs: Vec<Job>) -> Committed {
        let mut committed = Committed::default();
        if jobs.is_empty() {
            return committed;
        }
        let outcomes = {
            let mut runs: Vec<_> = jobs
                .iter_mut()
                .map(|job| {
                    let step = job.step;
                    let run = &mut job.run;
                    move |tx: &mut Tx<'_>| run(tx, step)
                })
                .collect();
            let mut runs: Vec<_> = runs.iter_mut().map(|run| run as VaultJob<'_>).collect();
            self.vault.transact(Durability::Soon, &mut runs)
        };
        match outcomes {
            Ok(outcomes) => {
                // Dropped after the queue is let go of.
                let mut over = Vec::with_capacity(jobs.len());
                let mut queue = self.lock();
                queue.unsynced.get_or_insert_with(Instant::now);
                for (mut job, outcome) in jobs.into_iter().zip(outcomes) {
                    if let (Ok(()), Some(next)) = (&outcome, job.ticket.next_step()) {
                        (job.ticket, job.step) = (next, job.step + 1);
                        queue.jobs.resume(next, job);
                        committed.has_more = true;
                        continue;
                    }
                    let Job {
                        ticket, run, done, ..
                    } = job;
                    queue.jobs.give_up(&ticket);
                    match (ticket.is_quick(), &outcome) {
                        (false, Ok(())) => committed.now.push((done, outcome)),
                        _ => committed.soon.push((done, outcome)),
                    }
                    over.push(run);
                }
            }
            Err(error) if jobs.len() == 1 => {
                for job in jobs {
                    self.lock().jobs.give_up(&job.ticket);
                    committed.soon.push((job.done, Err(error.clone())));
                }
            }
            Err(_) => {
                for job in jobs {
                    let one = self.commit(vec![job]);
                    committed.soon.extend(one.soon);
                    committed.now.extend(one.now);
                    committed.has_more |= one.has_more;
                }
            }
        }
        committed
    }
}

/// What came of a transaction.
#[derive(Default)]
struct Committed {
    /// What is done.
    soon: Finished,
    /// What is done when it is on disk.
    now: Finished,
    /// Something has further steps.
    has_more: bool,
}

/// Jobs that have run, and what came of them.
type Finished = Vec<(Done, Result<(), VaultError>)>;

fn finish(finished: Finished) {
    for (done, outcome) in finished {
        done(outcome);
    }
}
