//! The one place where a mount writes: jobs are gathered and committed in one transaction and one
//! fsync.
//!
//! A job that need not be on disk at once runs on the caller's thread when nothing is going on,
//! because waking another thread costs more than the job. Everything else goes to the writer's own
//! thread, so that nothing that waits for the disk stops the thread that reads requests.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::crypto::memory;
use crate::store::Durability;
use crate::vault::{Job as VaultJob, Tx, Vault, VaultError};

/// Names and attributes are on disk after this long at the latest.
const SYNC_AFTER: Duration = Duration::from_millis(900);
/// Most jobs in a transaction: bounds what one failure makes run again.
const MAX_BATCH: usize = 256;
/// How often the host's anchor of the vault is brought up to date.
const ANCHOR_EVERY: Duration = Duration::from_secs(60);

type Run = Box<dyn FnMut(&mut Tx<'_>) -> Result<(), VaultError> + Send>;
type Done = Box<dyn FnOnce(Result<(), VaultError>) + Send>;

struct Job {
    durability: Durability,
    run: Run,
    done: Done,
}

#[derive(Default)]
struct Queue {
    jobs: Vec<Job>,
    /// Since when something is committed but not on disk.
    unsynced: Option<Instant>,
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
    /// may be run more than once; the last result counts.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        durability: Durability,
        mut run: impl FnMut(&mut Tx<'_>) -> Result<T, VaultError> + Send + 'static,
        done: impl FnOnce(Result<T, VaultError>) + Send + 'static,
    ) {
        let value = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&value);
        let job = Job {
            durability,
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
        };
        self.shared.submit(job);
    }

    /// Makes durable what was committed before, then calls `done`.
    pub(super) fn barrier(&self, done: impl FnOnce(Result<(), VaultError>) + Send + 'static) {
        self.shared.submit(Job {
            durability: Durability::Now,
            run: Box::new(|_| Ok(())),
            done: Box::new(done),
        });
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
                queue.jobs.is_empty() && !queue.closed
            };
            if free {
                let finished = self.commit(vec![job], false);
                drop(running);
                finish(finished);
                // The thread must know that there is something to sync.
                self.wake.notify_one();
                return;
            }
        }
        let mut queue = self.lock();
        if queue.closed {
            drop(queue);
            (job.done)(Err(VaultError::Closed));
            return;
        }
        queue.jobs.push(job);
        drop(queue);
        self.wake.notify_one();
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
            std::mem::take(&mut queue.jobs)
        };
        for job in waiting {
            (job.done)(Err(VaultError::Closed));
        }
    }

    fn serve(&self) {
        let mut anchored = Instant::now();
        loop {
            let (sync, closed) = self.wait();
            let running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            let jobs = {
                let mut queue = self.lock();
                let count = queue.jobs.len().min(MAX_BATCH);
                queue.jobs.drain(..count).collect::<Vec<_>>()
            };
            let idle = jobs.is_empty();
            let overdue = self
                .lock()
                .unsynced
                .is_some_and(|since| since.elapsed() >= SYNC_AFTER);
            let finished = self.commit(jobs, overdue);
            if sync && idle {
                self.sync();
            }
            // While nobody can commit: the anchor must not be ahead of the disk.
            let due = anchored.elapsed() > ANCHOR_EVERY && self.lock().unsynced.is_none();
            let commit = due.then(|| self.vault.state().commit);
            drop(running);
            finish(finished);
            if idle && closed {
                return;
            }
            if let Some(commit) = commit {
                anchored = Instant::now();
                // A rotation commits beside this thread.
                let synced = self.vault.sync();
                if let Err(error) = synced.and_then(|()| self.vault.refresh_anchor(commit)) {
                    tracing::warn!("{error}");
                }
            }
        }
    }

    /// Waits until there is something to do: whether to sync, and whether this is the end.
    fn wait(&self) -> (bool, bool) {
        let mut queue = self.lock();
        loop {
            if !queue.jobs.is_empty() || queue.closed {
                return (queue.closed, queue.closed);
            }
            let Some(since) = queue.unsynced else {
                queue = self
                    .wake
                    .wait(queue)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let rest = SYNC_AFTER.saturating_sub(since.elapsed());
            if rest.is_zero() {
                return (true, false);
            }
            let waited = self.wake.wait_timeout(queue, rest);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn sync(&self) {
        match self.vault.sync() {
            Ok(()) => self.lock().unsynced = None,
            Err(error) => {
                tracing::error!("names and attributes could not be made durable: {error}");
                self.lock().unsynced = Some(Instant::now());
            }
        }
    }

    /// Runs jobs in one transaction; after a failure of the store each alone, so that one that
    /// does not fit on the disk does not take the others with it.
    fn commit(&self, mut jobs: Vec<Job>, overdue: bool) -> Vec<(Done, Result<(), VaultError>)> {
        let now = |job: &Job| job.durability == Durability::Now;
        // What waited too long goes along: one fsync serves all.
        let durability = if overdue || jobs.iter().any(now) {
            Durability::Now
        } else {
            Durability::Soon
        };
        if jobs.is_empty() {
            return Vec::new();
        }
        let outcomes = {
            let mut runs: Vec<VaultJob<'_>> = jobs
                .iter_mut()
                .map(|job| &mut *job.run as VaultJob<'_>)
                .collect();
            self.vault.transact(durability, &mut runs)
        };
        match outcomes {
            Ok(outcomes) => {
                let mut queue = self.lock();
                match durability {
                    Durability::Now => queue.unsynced = None,
                    Durability::Soon => {
                        queue.unsynced.get_or_insert_with(Instant::now);
                    }
                }
                jobs.into_iter().map(|job| job.done).zip(outcomes).collect()
            }
            Err(error) if jobs.len() == 1 => jobs
                .into_iter()
                .map(|job| (job.done, Err(error.clone())))
                .collect(),
            Err(_) => jobs
                .into_iter()
                .flat_map(|job| self.commit(vec![job], false))
                .collect(),
        }
    }
}

fn finish(finished: Vec<(Done, Result<(), VaultError>)>) {
    for (done, outcome) in finished {
        done(outcome);
    }
}
