//! The rotation driver: a thread that continues rotations to their end, and begins those that are
//! due.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::crypto::memory;
use crate::os::nice;
use crate::sync::{Condvar, Mutex, MutexGuard, Rank};
use crate::vault::{BLOCKED, Failure, Outcome, Request, Vault};

/// The pause before a rotation continues after a failure.
const TRY_AGAIN: Duration = Duration::from_secs(5);
/// The pause before a due rotation that did not begin is tried again.
const BEGIN_AGAIN: Duration = Duration::from_secs(60);
/// The longest sleep: the operator may set the clock, so the thread reads it now and then.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// The thread that drives this mount's rotations, or follows those of the writer.
pub(super) struct RotationDriver {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    stop: AtomicBool,
    /// A rotation may be waiting to begin.
    wanted: Mutex<bool>,
    wake: Condvar,
}

impl Shared {
    fn wanted(&self) -> MutexGuard<'_, bool> {
        self.wanted.lock()
    }

    fn go_on(&self) -> ControlFlow<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Waits for a wake-up, at most until `until`; false when the thread is to stop.
    fn wait(&self, until: Option<Instant>) -> bool {
        let mut wanted = self.wanted();
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return false;
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if std::mem::take(&mut *wanted) || left.is_some_and(|left| left.is_zero()) {
                return true;
            }
            wanted = match left {
                None => self.wake.wait(wanted),
                Some(left) => self.wake.wait_timeout(wanted, left),
            };
        }
    }

    /// Continues a rotation that has begun, and begins one that is due.
    fn drive(&self, vault: &Vault, every: Option<Duration>) {
        let mut again = None;
        let mut not_before = Instant::now();
        loop {
            let idle = vault.progress().is_none();
            let due = every.filter(|_| idle).map(|every| {
                let due = Instant::now() + vault.until_rotation(every).min(LONGEST_WAIT);
                due.max(not_before)
            });
            if !self.wait([again, due].into_iter().flatten().min()) {
                return;
            }
            again = None;
            if vault.progress().is_none() {
                let is_due = every.is_some_and(|every| vault.until_rotation(every).is_zero());
                if !is_due || Instant::now() < not_before {
                    continue;
                }
                if let Err(error) = vault.begin(&Request::Rotate) {
                    tracing::warn!("the rotation that is due cannot begin: {error}");
                    not_before = Instant::now() + BEGIN_AGAIN;
                    continue;
                }
                tracing::info!("a rotation is due and has begun");
            }
            again = match vault.drive(&|| self.go_on()) {
                Ok(Outcome::Done) => {
                    tracing::info!("the rotation has ended");
                    None
                }
                Ok(Outcome::Stopped) => return,
                // A retry would find the same records.
                Err(error) if error.failure() == Failure::Integrity => {
                    tracing::error!("the rotation is blocked: {error}; {BLOCKED}");
                    not_before = Instant::now() + LONGEST_WAIT;
                    None
                }
                Err(error) => {
                    tracing::warn!("the rotation will be gone on with: {error}");
                    Some(Instant::now() + TRY_AGAIN)
                }
            };
        }
    }
}

impl RotationDriver {
    pub(super) fn start(vault: Arc<Vault>, every: Option<Duration>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            // A rotation that an earlier mount left continues at once.
            wanted: Mutex::new(Rank::RotationWanted, true),
            wake: Condvar::new(),
        });
        let driver = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("keys".into())
            .spawn(move || {
                memory::keep_stack_in();
                if !vault.await_service() {
                    return;
                }
                match vault.is_read_only() {
                    true => vault.follow(&|| driver.go_on()),
                    false => {
                        nice::lower_priority_outside_locks();
                        driver.drive(&vault, every);
                    }
                }
            })?;
        Ok(Self {
            shared,
            thread: Mutex::new(Rank::MountThread, Some(thread)),
        })
    }

    /// A rotation may be waiting to begin.
    pub(super) fn wake(&self) {
        *self.shared.wanted() = true;
        self.shared.wake.notify_all();
    }

    /// Asks the thread to stop. A rotation stays where it is; the next mount continues it.
    pub(super) fn begin_to_stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Stops the thread, and waits for it.
    pub(super) fn stop(&self) {
        self.begin_to_stop();
        let thread = self.thread.lock().take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the keys' thread has panicked");
        }
    }
}

impl Drop for RotationDriver {
    fn drop(&mut self) {
        self.stop();
    }
}
