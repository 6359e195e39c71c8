//! What a vault says of its own integrity, and what it still serves.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::keyring::{Event, EventKind};

use super::integrity::{Findings, Integrity};
use super::node::Timestamp;
use super::{Vault, VaultError};

/// An event that is recorded this many seconds after what it tells of is marked as late.
const LATE: i64 = 10;

impl Vault {
    /// What is known of the vault as a whole.
    pub fn integrity(&self) -> Integrity {
        self.guard.integrity()
    }

    /// Records that were not what they should be.
    pub fn findings(&self) -> Findings {
        self.guard.findings()
    }

    /// Tells whom to tell, in words, when something is found.
    pub fn on_alarm(&self, alarm: impl Fn(&str) + Send + Sync + 'static) {
        self.guard.on_alarm(Box::new(alarm));
    }

    /// Waits until it is known whether the vault is what its sums say, at most so long; `None`: it is
    /// not known yet.
    ///
    /// # Errors
    /// When it is not, or could not be counted.
    pub fn await_verdict(&self, patience: Option<Duration>) -> Option<Result<(), VaultError>> {
        self.guard.await_verdict(patience)
    }

    /// Waits until it is known whether the vault may be served, if that is to be known first. False when
    /// that is never known, because it is to end.
    pub fn await_verdict_or_end(&self) -> bool {
        !self.guard.is_gated() || self.await_verdict(None).is_some()
    }

    /// Whether who uses the vault would have to wait for a verdict.
    pub fn is_awaited(&self) -> bool {
        self.guard.is_gated() && self.integrity() == Integrity::Counting
    }

    /// Waits until something of the vault may be served, or is to be written, by whoever has not been
    /// asked for it. Whether it may.
    pub fn await_service(&self) -> bool {
        !self.guard.is_gated() || matches!(self.await_verdict(None), Some(Ok(())))
    }

    /// Ends a count that is under way; what it was to show is never known then.
    pub fn stop_counting(&self) {
        self.guard.stop_counting();
    }

    /// Serves nothing more of a vault of which part was found to have been replayed, inserted or
    /// deleted: what is read may be old. Salvaging goes on.
    pub(super) fn condemn(&self, error: &VaultError) {
        self.guard.condemn(error, self.salvage);
    }

    /// Notes that records were found not to fit together, if that is what is wrong.
    pub fn note_damage(&self, error: &VaultError) {
        self.guard.note_damage(error);
    }

    /// Whether nothing of it is served any more.
    pub fn is_condemned(&self) -> bool {
        self.guard.is_condemned()
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

    /// Writes into the history what was found since the last time. A vault opened for reading has
    /// none to write to; one that is condemned has when it is as it should be again, by a count.
    ///
    /// # Errors
    /// When it cannot be written; it is tried again the next time.
    pub fn record_findings(&self) -> Result<(), VaultError> {
        if self.is_read_only() || !self.guard.is_unrecorded() {
            return Ok(());
        }
        if self.is_condemned() && !self.is_right_again() {
            return Ok(());
        }
        let found = self.guard.take_unrecorded();
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
            self.guard.leave_unrecorded(&found);
        }
        recorded
    }

    /// Whether what is stored is again what this process has written last.
    fn is_right_again(&self) -> bool {
        let counted = self.count(&|| self.guard.go_on());
        let counted = counted.ok().and_then(ControlFlow::continue_value);
        counted.is_some_and(|state| state.commit == self.lock_state().commit)
    }
}
