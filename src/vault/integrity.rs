//! What is known of the vault's integrity while it is open: whether it was counted, what was found that
//! should not be, and whether anything of it is still served.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::keyring::{Event, EventKind};

use super::current::Doubt;
use super::node::Timestamp;
use super::state::State;
use super::{Vault, VaultError};

/// More findings than these are counted, not listed.
const MAX_LISTED: usize = 16;

/// What is known of the vault as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// It is still being counted.
    Counting,
    /// It was what its sums say.
    Verified {
        /// As of this commit. What was written since was written by this process, or was found by a
        /// later count.
        commit: u64,
        /// When, in seconds since 1970.
        at: i64,
    },
    /// It is not what was stored: nothing of it is served.
    Condemned {
        /// Why.
        why: String,
        /// When that was found, in seconds since 1970.
        at: i64,
    },
}

/// A record that was not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// When it was found, in seconds since 1970.
    pub at: i64,
    /// Which record, by number, and what is wrong with it.
    pub what: String,
}

/// Records that were not what they should be, since the vault was opened. Nothing takes them back.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// How many reads met one.
    pub count: u64,
    /// The first sixteen of them.
    pub listed: Vec<Finding>,
}

type Alarm = Box<dyn Fn(&str) + Send + Sync>;

/// See the module.
pub(super) struct Guard {
    integrity: Mutex<Integrity>,
    /// Why it could not be verified, as it was told.
    failure: Mutex<Option<VaultError>>,
    changed: Condvar,
    condemned: AtomicBool,
    stop: AtomicBool,
    /// Nothing is served or written before there is a verdict.
    gated: AtomicBool,
    counting: Mutex<Option<JoinHandle<()>>>,
    findings: Mutex<Findings>,
    /// Those that the history does not have yet.
    unrecorded: Mutex<Findings>,
    alarm: OnceLock<Alarm>,
}

impl Default for Guard {
    fn default() -> Self {
        Self {
            integrity: Mutex::new(Integrity::Counting),
            failure: Mutex::default(),
            changed: Condvar::new(),
            condemned: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            gated: AtomicBool::new(false),
            counting: Mutex::default(),
            findings: Mutex::default(),
            unrecorded: Mutex::default(),
            alarm: OnceLock::new(),
        }
    }
}

impl Guard {
    fn integrity(&self) -> MutexGuard<'_, Integrity> {
        locked(&self.integrity)
    }

    /// Whether a count is to go on.
    pub(super) fn go_on(&self) -> ControlFlow<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Nothing is to be served or written before there is a verdict.
    pub(super) fn gate(&self) {
        self.gated.store(true, Ordering::Relaxed);
    }

    /// The thread that counts.
    pub(super) fn is_counted_by(&self, thread: JoinHandle<()>) {
        *locked(&self.counting) = Some(thread);
    }
}

impl Vault {
    /// What is known of the vault as a whole.
    pub fn integrity(&self) -> Integrity {
        self.guard.integrity().clone()
    }

    /// Records that were not what they should be.
    pub fn findings(&self) -> Findings {
        locked(&self.guard.findings).clone()
    }

    /// Tells whom to tell, in words, when something is found.
    pub fn on_alarm(&self, alarm: impl Fn(&str) + Send + Sync + 'static) {
        // A second one would only do the same.
        let _ = self.guard.alarm.set(Box::new(alarm));
        if let Integrity::Condemned { why, .. } = self.integrity() {
            self.alarm(&why);
        }
    }

    fn alarm(&self, why: &str) {
        if let Some(alarm) = self.guard.alarm.get() {
            alarm(why);
        }
    }

    /// Waits until it is known whether the vault is what its sums say, at most so long; `None`: it is
    /// not known yet.
    ///
    /// # Errors
    /// When it is not, or could not be counted.
    pub fn await_verdict(&self, patience: Option<Duration>) -> Option<Result<(), VaultError>> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut integrity = self.guard.integrity();
        while *integrity == Integrity::Counting {
            if self.guard.stop.load(Ordering::Relaxed) {
                return None;
            }
            integrity = match deadline {
                None => self.guard.changed.wait(integrity),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    match self.guard.changed.wait_timeout(integrity, left) {
                        Ok((integrity, _)) => Ok(integrity),
                        Err(poisoned) => Ok(poisoned.into_inner().0),
                    }
                }
            }
            .unwrap_or_else(PoisonError::into_inner);
        }
        match &*integrity {
            Integrity::Condemned { why, .. } => {
                let told = locked(&self.guard.failure).clone();
                Some(Err(
                    told.unwrap_or_else(|| VaultError::Integrity(why.clone()))
                ))
            }
            Integrity::Counting | Integrity::Verified { .. } => Some(Ok(())),
        }
    }

    /// Waits until it is known whether the vault may be served, if that is to be known first. False when
    /// that is never known, because it is to end.
    pub fn await_verdict_or_end(&self) -> bool {
        let is_gated = self.guard.gated.load(Ordering::Relaxed);
        !is_gated || self.await_verdict(None).is_some()
    }

    /// Whether who uses the vault would have to wait for a verdict.
    pub fn is_awaited(&self) -> bool {
        self.guard.gated.load(Ordering::Relaxed) && self.integrity() == Integrity::Counting
    }

    /// Waits until something of the vault may be served, or is to be written, by whoever has not been
    /// asked for it. Whether it may.
    pub fn await_service(&self) -> bool {
        let is_gated = self.guard.gated.load(Ordering::Relaxed);
        !is_gated || matches!(self.await_verdict(None), Some(Ok(())))
    }

    /// Ends a count that is under way; what it was to show is never known then.
    pub fn stop_counting(&self) {
        {
            let _integrity = self.guard.integrity();
            self.guard.stop.store(true, Ordering::Relaxed);
        }
        self.guard.changed.notify_all();
        let counting = locked(&self.guard.counting).take();
        // It may be the one that closes the vault.
        if let Some(thread) = counting.filter(|t| t.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            tracing::error!("the thread that counts has panicked");
        }
    }

    /// The sums have confirmed what was counted.
    pub(super) fn note_verified(&self, state: &State) {
        let mut integrity = self.guard.integrity();
        if !matches!(*integrity, Integrity::Condemned { .. }) {
            *integrity = Integrity::Verified {
                commit: state.commit,
                at: Timestamp::now().seconds,
            };
        }
        drop(integrity);
        self.guard.changed.notify_all();
    }

    /// Serves nothing more of a vault of which part was found to have been replayed, inserted or
    /// deleted: what is read may be old. Salvaging goes on.
    pub(super) fn condemn(&self, error: &VaultError) {
        if self.guard.condemned.swap(!self.salvage, Ordering::Relaxed) {
            return;
        }
        let why = error.to_string();
        match self.salvage {
            true => tracing::error!("{why}"),
            false => tracing::error!("nothing more is served: {why}"),
        }
        *locked(&self.guard.failure) = Some(error.clone());
        *self.guard.integrity() = Integrity::Condemned {
            why: why.clone(),
            at: Timestamp::now().seconds,
        };
        self.guard.changed.notify_all();
        if error.is_damage() {
            self.note_finding(why.clone());
        }
        self.alarm(&why);
    }

    /// Notes that records were found not to fit together, if that is what is wrong.
    pub fn note_damage(&self, error: &VaultError) {
        if error.is_damage() && self.note_finding(error.to_string()) {
            self.alarm(&error.to_string());
        }
    }

    /// Whether nothing of it is served any more.
    pub fn is_condemned(&self) -> bool {
        self.guard.condemned.load(Ordering::Relaxed)
    }

    pub(super) fn must_serve(&self) -> Result<(), VaultError> {
        if self.is_condemned() {
            return Err(VaultError::Integrity(
                "part of the vault was replayed, inserted or deleted, so nothing of it is served; \
                 restore it from a backup, or get out what is left with `-o ro,salvage`"
                    .into(),
            ));
        }
        Ok(())
    }

    /// A record is certainly not what it should be: that stays known, whatever becomes of the record.
    pub(super) fn found(&self, doubt: &Doubt) -> VaultError {
        let what = format!("{doubt}: it was replayed, inserted or deleted");
        if self.note_finding(what.clone()) {
            tracing::error!("integrity failure: {what}");
            self.alarm(&what);
        }
        VaultError::Integrity(what)
    }

    /// Notes what was found; whether that is news.
    pub(super) fn note_finding(&self, what: String) -> bool {
        let at = Timestamp::now().seconds;
        let is_news = locked(&self.guard.findings).note(at, &what);
        if is_news {
            locked(&self.guard.unrecorded).note(at, &what);
        }
        is_news
    }

    /// Writes into the history what was found since the last time. A vault opened for reading has
    /// none to write to; one that is condemned has when it is as it should be again, by a count.
    ///
    /// # Errors
    /// When it cannot be written; it is tried again the next time.
    pub fn record_findings(&self) -> Result<(), VaultError> {
        if self.is_read_only() || locked(&self.guard.unrecorded).count == 0 {
            return Ok(());
        }
        if self.is_condemned() && !self.is_right_again() {
            return Ok(());
        }
        let found = std::mem::take(&mut *locked(&self.guard.unrecorded));
        let Some(first) = found.listed.first() else {
            return Ok(());
        };
        let now = Timestamp::now().seconds;
        let event = Event {
            at: first.at,
            late: now.saturating_sub(first.at) > LATE,
            kind: EventKind::TamperingFound {
                count: found.count,
                what: found.listed.iter().map(|one| one.what.clone()).collect(),
            },
        };
        let recorded = self.change_keyring_all_the_same(
            |keyring| Ok(Some(keyring.record_event(&event))),
            |_| Ok(()),
        );
        if recorded.is_err() {
            let mut unrecorded = locked(&self.guard.unrecorded);
            for one in &found.listed {
                unrecorded.note(one.at, &one.what);
            }
        }
        recorded
    }
}

impl Vault {
    /// Whether what is stored is again what this process has written last.
    fn is_right_again(&self) -> bool {
        let counted = self.count(&|| self.guard.go_on());
        let counted = counted.ok().and_then(ControlFlow::continue_value);
        counted.is_some_and(|state| state.commit == self.lock_state().commit)
    }
}

/// An event that is recorded this many seconds after what it tells of is marked as late.
const LATE: i64 = 10;

impl Findings {
    fn note(&mut self, at: i64, what: &str) -> bool {
        self.count += 1;
        let is_news = self.listed.iter().all(|known| known.what != what);
        if is_news && self.listed.len() < MAX_LISTED {
            self.listed.push(Finding {
                at,
                what: what.to_owned(),
            });
            return true;
        }
        false
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
