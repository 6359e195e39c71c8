//! The one place where a mount writes: jobs are gathered and committed in one transaction and one
//! fsync.
//!
//! A job that need not be on disk at once runs on the caller's thread when nothing else is committing,
//! because waking another thread costs more than the job. Everything else goes to the writer's own
//! thread, so that nothing that waits for the disk stops the thread that reads requests. While that
//! one syncs, others commit, and what is to be on disk gathers for the next sync.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::crypto::memory;
use crate::store::Durability;
use crate::vault::{Job as VaultJob, Tx, Vault, VaultError};

use super::readers;

/// Names and attributes are on disk after this long at the latest.
const SYNC_AFTER: Duration = Duration::from_millis(900);
/// Most jobs in a transaction: bounds what one failure makes run again.
const MAX_BATCH: usize = 256;

type Run = Box<dyn FnMut(&mut Tx<'_>) -> Result<(), VaultError> + Send>;
type Done = Box<dyn FnOnce(Result<(), VaultError>) + Send>;

struct Job {
    durability: Durability,
    /// Whoever made it waits for it and asks for nothing else before it is done, so that others may
    /// be done first.
    awaited: bool,
    run: Run,
    done: Done,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    /// How many of them must not be overtaken.
    in_order: usize,
    /// What goes along with the next ones.
    later: Vec<Job>,
    /// Since when something is committed but not on disk.
    unsynced: Option<Instant>,
    /// The thread does not come by itself to look for that.
    asleep: bool,
    closed: bool,
}

struct Shared {
    vault: Arc<Vault>,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Held while a transaction runs, and while jobs are taken for one: keeps them in order.
    running: Mutex<()>,
}

/// See the module.
pub(super) struct Writer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Writer {
    pub(super) fn start(vault: Arc<Vault>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            vault,
            queue: Mutex::default(),
            wake: Condvar::new(),
            running: Mutex::new(()),
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
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Runs `run` in a transaction and tells `done` what came of it, on whichever thread. `run`
    /// may be run more than once; the last result counts. What is submitted later is done later.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        durability: Durability,
        run: impl FnMut(&mut Tx<'_>) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) {
        self.shared.submit(Job::new(durability, false, run, done));
    }

    /// As [`submit`](Self::submit), and on disk, for somebody who waits for it. What others submit
    /// later may be done earlier.
    pub(super) fn submit_awaited<T: Send + 'static>(
        &self,
        run: impl FnMut(&mut Tx<'_>) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) {
        self.shared
            .submit(Job::new(Durability::Now, true, run, done));
    }

    /// As [`submit`](Self::submit), for what nobody waits for: it goes along with what is committed
    /// next, so that it costs no transaction of its own.
    pub(super) fn submit_later<T: Send + 'static>(
        &self,
        run: impl FnMut(&mut Tx<'_>) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) {
        self.shared
            .submit_later(Job::new(Durability::Soon, true, run, done));
    }

    /// Makes durable what was committed before, then calls `done`.
    pub(super) fn barrier(&self, done: impl FnOnce(Result<(), VaultError>) + Send + 'static) {
        self.submit_awaited(|_| Ok(()), done);
    }

    /// Runs what is queued, makes everything durable and ends the thread.
    pub(super) fn close(&self) {
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

impl Job {
    fn new<T: Send + 'static>(
        durability: Durability,
        awaited: bool,
        mut run: impl FnMut(&mut Tx<'_>) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) -> Self {
        let value = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&value);
        Self {
            durability,
            awaited,
            run: Box::new(move |tx| {
                let result = run(tx)?;
                *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                Ok(())
            }),
            done: Box::new(move |outcome| {
                let value = value.lock().unwrap_or_else(PoisonError::into_inner).take();
                // A job that succeeded has left its value.
                done(outcome.and_then(|()| value.ok_or(VaultError::Invalid)));
            }),
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(&self, job: Job) {
        // A rotation may hold what the job would wait for.
        if job.durability == Durability::Soon
            && !self.vault.is_rotating()
            && let Ok(running) = self.running.try_lock()
        {
            let free = {
                let queue = self.lock();
                queue.in_order == 0 && !queue.closed
            };
            if free {
                let (finished, _) = self.commit(vec![job]);
                drop(running);
                finish(finished);
                return self.wake_if_asleep(&self.lock());
            }
        }
        let mut queue = self.lock();
        if queue.closed {
            drop(queue);
            (job.done)(Err(VaultError::Closed));
            return;
        }
        queue.in_order += usize::from(!job.awaited);
        let nobody_waits = job.durability == Durability::Now && !job.awaited;
        queue.jobs.push(job);
        drop(queue);
        if !nobody_waits {
            readers::hand_over();
        }
        self.wake.notify_one();
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
    fn wake_if_asleep(&self, queue: &Queue) {
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
            queue.in_order = 0;
            let mut jobs = std::mem::take(&mut queue.jobs);
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
                let count = queue.jobs.len().min(MAX_BATCH);
                let mut jobs = queue.jobs.drain(..count).collect::<Vec<_>>();
                queue.in_order -= jobs.iter().filter(|job| !job.awaited).count();
                let room = queue.later.len().min(MAX_BATCH - count);
                jobs.extend(queue.later.drain(..room));
                (jobs, queue.unsynced)
            };
            let idle = jobs.is_empty();
            let overdue = overdue || since.is_some_and(|since| since.elapsed() >= SYNC_AFTER);
            let (soon, now) = self.commit(jobs);
            drop(running);
            finish(soon);
            if overdue || !now.is_empty() {
                finish(self.sync(now));
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
                    let woken = self.wake.wait(queue);
                    let mut queue = woken.unwrap_or_else(PoisonError::into_inner);
                    queue.asleep = false;
                    idle = Instant::now();
                    queue
                }
                (false, _) => {
                    let waited = self.wake.wait_timeout(queue, rest);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Makes durable all that was committed, and `waiting` with it.
    fn sync(&self, waiting: Finished) -> Finished {
        // What is committed from now on is not certain to go along.
        let since = self.lock().unsynced.take();
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
    /// does not fit on the disk does not take the others with it. Returns those that are done, and
    /// those that are when they are on disk.
    fn commit(&self, mut jobs: Vec<Job>) -> (Finished, Finished) {
        if jobs.is_empty() {
            return Default::default();
        }
        let outcomes = {
            let mut runs: Vec<VaultJob<'_>> = jobs
                .iter_mut()
                .map(|job| &mut *job.run as VaultJob<'_>)
                .collect();
            self.vault.transact(Durability::Soon, &mut runs)
        };
        match outcomes {
            Ok(outcomes) => {
                self.lock().unsynced.get_or_insert_with(Instant::now);
                let (mut soon, mut now) = (Vec::new(), Vec::new());
                for (job, outcome) in jobs.into_iter().zip(outcomes) {
                    match (job.durability, &outcome) {
                        (Durability::Now, Ok(())) => now.push((job.done, outcome)),
                        _ => soon.push((job.done, outcome)),
                    }
                }
                (soon, now)
            }
            Err(error) if jobs.len() == 1 => {
                let failed = jobs.into_iter().map(|job| (job.done, Err(error.clone())));
                (failed.collect(), Vec::new())
            }
            Err(_) => jobs.into_iter().map(|job| self.commit(vec![job])).fold(
                Default::default(),
                |(mut soon, mut now), more| {
                    soon.extend(more.0);
                    now.extend(more.1);
                    (soon, now)
                },
            ),
        }
    }
}

/// Jobs that have run, and what came of them.
type Finished = Vec<(Done, Result<(), VaultError>)>;

fn finish(finished: Finished) {
    for (done, outcome) in finished {
        done(outcome);
    }
}
