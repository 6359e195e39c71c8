//! What is known of the vault's integrity while it is open: whether it was counted, what was found that
//! should not be, and whether anything of it is still served.

use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::sync::{Condvar, Mutex, MutexGuard, Rank};

use super::VaultError;
use super::current::Doubt;
use super::node::Timestamp;

/// More findings than these are counted, not listed.
const MAX_LISTED: usize = 16;
/// More of these may not be damage that readers met, of which one large file can have any number: there is
/// room for records that were replayed, inserted or deleted.
const MAX_DAMAGED: usize = 8;

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

pub(super) type Alarm = Box<dyn Fn(&str) + Send + Sync>;

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
    /// What is left of the vault is to be got out: nothing is refused.
    salvage: bool,
}

impl Guard {
    /// Of a vault that was just opened, to be salvaged or to be used.
    pub(super) fn new(salvage: bool) -> Self {
        Self {
            integrity: Mutex::new(Rank::Verdict, Integrity::Counting),
            failure: Mutex::new(Rank::VerdictFailure, None),
            changed: Condvar::new(),
            condemned: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            gated: AtomicBool::new(false),
            counting: Mutex::new(Rank::CountingThread, None),
            findings: Mutex::new(Rank::Findings, Findings::default()),
            unrecorded: Mutex::new(Rank::Unrecorded, Findings::default()),
            alarm: OnceLock::new(),
            salvage,
        }
    }

    fn integrity_now(&self) -> MutexGuard<'_, Integrity> {
        self.integrity.lock()
    }

    /// What is known of the vault as a whole.
    pub(super) fn integrity(&self) -> Integrity {
        self.integrity_now().clone()
    }

    /// Records that were not what they should be.
    pub(super) fn findings(&self) -> Findings {
        self.findings.lock().clone()
    }

    /// Tells whom to tell, in words, when something is found.
    pub(super) fn on_alarm(&self, alarm: Alarm) {
        // A second one would only do the same.
        let _ = self.alarm.set(alarm);
        if let Integrity::Condemned { why, .. } = self.integrity() {
            self.alarm(&why);
        }
    }

    fn alarm(&self, why: &str) {
        if let Some(alarm) = self.alarm.get() {
            alarm(why);
        }
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

    /// Whether that is so.
    pub(super) fn is_gated(&self) -> bool {
        self.gated.load(Ordering::Relaxed)
    }

    /// The thread that counts.
    pub(super) fn is_counted_by(&self, thread: JoinHandle<()>) {
        *self.counting.lock() = Some(thread);
    }

    /// Waits until it is known whether the vault is what its sums say, at most so long; `None`: it is
    /// not known yet.
    pub(super) fn await_verdict(
        &self,
        patience: Option<Duration>,
    ) -> Option<Result<(), VaultError>> {
        let deadline = patience.map(|patience| Instant::now() + patience);
        let mut integrity = self.integrity_now();
        while *integrity == Integrity::Counting {
            if self.stop.load(Ordering::Relaxed) {
                return None;
            }
            integrity = match deadline {
                None => self.changed.wait(integrity),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    self.changed.wait_timeout(integrity, left)
                }
            };
        }
        match &*integrity {
            Integrity::Condemned { why, .. } => {
                let told = self.failure.lock().clone();
                Some(Err(
                    told.unwrap_or_else(|| VaultError::Integrity(why.clone()))
                ))
            }
            Integrity::Counting | Integrity::Verified { .. } => Some(Ok(())),
        }
    }

    /// Waits until it is known whether the vault may be served, if that is to be known first. False when
    /// that is never known, because the vault is to be closed.
    pub(super) fn await_verdict_or_end(&self) -> bool {
        !self.is_gated() || self.await_verdict(None).is_some()
    }

    /// Whether whoever uses the vault would have to wait for a verdict.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_gated() && self.integrity() == Integrity::Counting
    }

    /// Waits until something of the vault may be served, or is to be written, by whoever has not been
    /// asked for it. Whether it may.
    pub(super) fn await_service(&self) -> bool {
        !self.is_gated() || matches!(self.await_verdict(None), Some(Ok(())))
    }

    /// Ends a count that is under way; what it was to show is never known then.
    pub(super) fn stop_counting(&self) {
        {
            let _integrity = self.integrity_now();
            self.stop.store(true, Ordering::Relaxed);
        }
        self.changed.notify_all();
        let counting = self.counting.lock().take();
        // It may be the one that closes the vault.
        if let Some(thread) = counting.filter(|t| t.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            tracing::error!("the thread that counts has panicked");
        }
    }

    /// The sums have confirmed what was counted as of this commit.
    pub(super) fn note_verified(&self, commit: u64) {
        let mut integrity = self.integrity_now();
        if !matches!(*integrity, Integrity::Condemned { .. }) {
            *integrity = Integrity::Verified {
                commit,
                at: Timestamp::now().seconds,
            };
        }
        drop(integrity);
        self.changed.notify_all();
    }

    /// Serves nothing more of a vault of which part was found to have been replayed, inserted or
    /// deleted: what is read may be old. Salvaging goes on.
    pub(super) fn condemn(&self, error: &VaultError) {
        if self.condemned.swap(!self.salvage, Ordering::Relaxed) {
            return;
        }
        let why = error.to_string();
        match self.salvage {
            true => tracing::error!("{why}"),
            false => tracing::error!("nothing more is served: {why}"),
        }
        *self.failure.lock() = Some(error.clone());
        *self.integrity_now() = Integrity::Condemned {
            why: why.clone(),
            at: Timestamp::now().seconds,
        };
        self.changed.notify_all();
        if error.is_damage() {
            self.note_finding(why.clone());
        }
        self.alarm(&why);
    }

    /// Whether nothing of it is served any more.
    pub(super) fn is_condemned(&self) -> bool {
        self.condemned.load(Ordering::Relaxed)
    }

    /// Refuses everything once nothing of the vault is served any more.
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

    /// Damage that a reader met stays known, as what is not current does.
    pub(super) fn noted<T>(&self, result: Result<T, VaultError>) -> Result<T, VaultError> {
        result.inspect_err(|error| {
            if !self.salvage && error.is_certain_damage() {
                self.note_damage(error);
            }
        })
    }

    /// Notes that records were found not to fit together, if that is what is wrong.
    pub(super) fn note_damage(&self, error: &VaultError) {
        if error.is_damage() && self.note_up_to(MAX_DAMAGED, error.to_string()) {
            self.alarm(&error.to_string());
        }
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
        self.note_up_to(MAX_LISTED, what)
    }

    fn note_up_to(&self, most: usize, what: String) -> bool {
        let at = Timestamp::now().seconds;
        let is_news = self.findings.lock().note(most, at, &what);
        if is_news {
            self.unrecorded.lock().note(MAX_LISTED, at, &what);
        }
        is_news
    }

    /// Whether the history does not have all findings yet.
    pub(super) fn is_unrecorded(&self) -> bool {
        self.unrecorded.lock().count > 0
    }

    /// Those findings, for whoever records them now.
    pub(super) fn take_unrecorded(&self) -> Findings {
        std::mem::take(&mut *self.unrecorded.lock())
    }

    /// They could not be recorded, and are left for another time.
    pub(super) fn leave_unrecorded(&self, found: &Findings) {
        let mut unrecorded = self.unrecorded.lock();
        for one in &found.listed {
            unrecorded.note(MAX_LISTED, one.at, &one.what);
        }
    }
}

impl Findings {
    fn note(&mut self, most: usize, at: i64, what: &str) -> bool {
        self.count += 1;
        let is_news = self.listed.iter().all(|known| known.what != what);
        if is_news && self.listed.len() < most {
            self.listed.push(Finding {
                at,
                what: what.to_owned(),
            });
            return true;
        }
        false
    }
}
