//! The integrity of an open vault: whether it was counted, the findings, and whether it is still
//! served.

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

/// Limit on listed findings; more are only counted.
const MAX_LISTED: usize = 16;
/// Limit on listed findings of damage that readers met, of which one large file can cause any
/// number. The rest of the list is for records that were replayed, inserted or deleted.
const MAX_DAMAGED: usize = 8;

/// The verdict on the vault as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// The count is under way.
    Counting,
    /// The vault matched its sums.
    Verified {
        /// At this commit. Everything since was written by this process, or confirmed by a later
        /// count.
        commit: u64,
        /// When, in seconds since 1970.
        at: i64,
    },
    /// The vault does not match its sums, and nothing is served.
    Condemned {
        /// Why.
        why: String,
        /// When that was found, in seconds since 1970.
        at: i64,
    },
}

/// A record that was not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// When it was found, in seconds since 1970.
    pub at: i64,
    /// The record, by number, and its defect.
    pub what: String,
}

/// Records that were not as they should be, since the vault was opened. Findings are never
/// withdrawn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Number of reads that met one.
    pub count: u64,
    /// The first sixteen.
    pub listed: Vec<Finding>,
}

pub(super) type Alarm = Box<dyn Fn(&str) + Send + Sync>;

/// The integrity of an open vault, as the module describes.
pub(super) struct Guard {
    integrity: Mutex<Integrity>,
    /// Why the vault could not be verified, for those who wait.
    failure: Mutex<Option<VaultError>>,
    changed: Condvar,
    condemned: AtomicBool,
    stop: AtomicBool,
    /// Nothing is served or written before the verdict.
    gated: AtomicBool,
    counting: Mutex<Option<JoinHandle<()>>>,
    findings: Mutex<Findings>,
    /// Findings that are not in the history yet.
    unrecorded: Mutex<Findings>,
    alarm: OnceLock<Alarm>,
    /// A salvage reads what is left of the vault, so nothing is refused.
    salvage: bool,
}

impl Guard {
    /// The integrity of a vault that was just opened, for salvage or for use.
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

    /// The verdict on the vault as a whole.
    pub(super) fn integrity(&self) -> Integrity {
        self.integrity_now().clone()
    }

    /// The findings so far.
    pub(super) fn findings(&self) -> Findings {
        self.findings.lock().clone()
    }

    /// Sets the function that receives each finding, in words.
    pub(super) fn on_alarm(&self, alarm: Alarm) {
        // A second function would do the same.
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

    /// Whether a count may go on.
    pub(super) fn go_on(&self) -> ControlFlow<()> {
        match self.stop.load(Ordering::Relaxed) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Holds service and writes back until the verdict.
    pub(super) fn gate(&self) {
        self.gated.store(true, Ordering::Relaxed);
    }

    /// Whether they are held back until the verdict.
    pub(super) fn is_gated(&self) -> bool {
        self.gated.load(Ordering::Relaxed)
    }

    /// Sets the thread that counts.
    pub(super) fn is_counted_by(&self, thread: JoinHandle<()>) {
        *self.counting.lock() = Some(thread);
    }

    /// Waits for the verdict, at most `patience`; `None` without one by then.
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
                let failure = self.failure.lock().clone();
                Some(Err(
                    failure.unwrap_or_else(|| VaultError::Integrity(why.clone()))
                ))
            }
            Integrity::Counting | Integrity::Verified { .. } => Some(Ok(())),
        }
    }

    /// Waits for the verdict if service must wait for it. False if the vault is closed before there
    /// is one.
    pub(super) fn await_verdict_or_end(&self) -> bool {
        !self.is_gated() || self.await_verdict(None).is_some()
    }

    /// Whether a user of the vault would have to wait for the verdict.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_gated() && self.integrity() == Integrity::Counting
    }

    /// Waits until the vault may be served; for threads that read or write without a request.
    /// Returns whether it may.
    pub(super) fn await_service(&self) -> bool {
        !self.is_gated() || matches!(self.await_verdict(None), Some(Ok(())))
    }

    /// Stops a count under way, which then never reaches a verdict.
    pub(super) fn stop_counting(&self) {
        {
            let _integrity = self.integrity_now();
            self.stop.store(true, Ordering::Relaxed);
        }
        self.changed.notify_all();
        let counting = self.counting.lock().take();
        // The counting thread itself may be closing the vault.
        if let Some(thread) = counting.filter(|t| t.thread().id() != std::thread::current().id())
            && thread.join().is_err()
        {
            tracing::error!("the thread that counts has panicked");
        }
    }

    /// Notes that the sums have confirmed the count of this commit.
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

    /// Stops serving a vault after an attacker has replayed, inserted or deleted part of it, since
    /// records may be stale. A salvage goes on.
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

    /// Whether the vault is no longer served.
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

    /// Notes a finding if the error is damage.
    pub(super) fn note_damage(&self, error: &VaultError) {
        if error.is_damage() && self.note_up_to(MAX_DAMAGED, error.to_string()) {
            self.alarm(&error.to_string());
        }
    }

    /// Notes that a record is certainly not as it should be. The finding stays, whatever happens to
    /// the record.
    pub(super) fn note_doubt(&self, doubt: &Doubt) -> VaultError {
        let what = format!("{doubt}: it was replayed, inserted or deleted");
        if self.note_finding(what.clone()) {
            tracing::error!("integrity failure: {what}");
            self.alarm(&what);
        }
        VaultError::Integrity(what)
    }

    /// Notes a finding; returns whether it is new.
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

    /// Whether some findings are not in the history yet.
    pub(super) fn is_unrecorded(&self) -> bool {
        self.unrecorded.lock().count > 0
    }

    /// Takes those findings, for the caller to record.
    pub(super) fn take_unrecorded(&self) -> Findings {
        std::mem::take(&mut *self.unrecorded.lock())
    }

    /// Returns findings that could not be recorded.
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
