//! The progress of a rotation, and this process's own facts about it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;

use crate::keyring::{Rotation, RotationKind, RotationPhase};
use crate::sync::{Mutex, MutexGuard, Rank};

use super::super::{Failure, VaultError};
use super::damage::Damage;

/// The phase of a rotation.
pub type Phase = RotationPhase;

/// The progress of a rotation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// Its kind.
    pub change: RotationKind,
    /// Its durable state.
    pub phase: Phase,
    /// The generation that it leaves.
    pub from: u64,
    /// The generation that it enters.
    pub to: u64,
    /// When it began, in seconds since 1970.
    pub started: i64,
    /// Number of keys under the new generation.
    pub done: u64,
    /// Number of all keys.
    pub total: u64,
    /// Keys per second in this run.
    pub rate: f64,
    /// Seconds left, if known.
    pub eta_seconds: Option<u64>,
    /// The reason why it waits, or has stopped.
    pub trouble: Option<String>,
    /// It does not continue by itself, because a record is damaged.
    pub blocked: bool,
    /// Number of records that do not open, and of wrong sums.
    pub damaged: u64,
    /// Some of them, by number.
    pub records: Vec<String>,
}

/// The end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The rotation is finished.
    Done,
    /// The caller has stopped it; the next run continues.
    Stopped,
}

#[derive(Clone, Default)]
pub(super) struct Figures {
    pub(super) done: u64,
    pub(super) total: u64,
    /// When this run began to migrate, and the number of keys done by then.
    pub(super) since: Option<(Instant, u64)>,
    pub(super) trouble: Option<String>,
    pub(super) blocked: bool,
}

/// The facts about a rotation that only this process knows.
pub(super) struct Standing {
    /// A user insists on removing the old key although records do not open. It is not stored.
    despite: AtomicBool,
    damage: Mutex<Damage>,
    figures: Mutex<Figures>,
}

impl Default for Standing {
    fn default() -> Self {
        Self {
            despite: AtomicBool::new(false),
            damage: Mutex::new(Rank::Damage, Damage::default()),
            figures: Mutex::new(Rank::Figures, Figures::default()),
        }
    }
}

impl Standing {
    pub(super) fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock()
    }

    pub(super) fn damage(&self) -> MutexGuard<'_, Damage> {
        self.damage.lock()
    }

    /// Whether the old key goes although records do not open.
    pub(super) fn is_despite(&self) -> bool {
        self.despite.load(Ordering::Relaxed)
    }

    /// Sets whether a user insists on removing the old key.
    pub(super) fn insist(&self, despite: bool) {
        self.despite.store(despite, Ordering::Relaxed);
    }

    /// Sets the error that stops the rotation; `None` when it goes on.
    pub(super) fn note_trouble(&self, error: Option<&VaultError>) {
        let mut figures = self.figures();
        figures.trouble = error.map(ToString::to_string);
        figures.blocked = error.is_some_and(|error| error.failure() == Failure::Integrity);
    }

    /// Notes an integrity failure, and returns any other.
    pub(super) fn verified(
        &self,
        what: impl std::fmt::Display,
        result: Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        match result {
            Err(error) if error.failure() == Failure::Integrity => {
                self.damage().note(what, error);
                Ok(())
            }
            result => result,
        }
    }

    /// The progress of `change`.
    pub(super) fn progress_of(&self, change: &Rotation) -> Progress {
        let figures = self.figures().clone();
        let damage = self.damage().clone();
        let rate = figures.since.map_or(0.0, |(since, done)| {
            figures.done.saturating_sub(done) as f64 / since.elapsed().as_secs_f64().max(1e-3)
        });
        let left = figures.total.saturating_sub(figures.done);
        let eta_seconds =
            (rate > 0.0 && figures.trouble.is_none()).then(|| (left as f64 / rate).ceil() as u64);
        Progress {
            change: change.kind,
            phase: change.phase,
            from: change.from,
            to: change.to,
            started: change.started,
            done: figures.done,
            total: figures.total,
            rate,
            eta_seconds,
            trouble: figures.trouble,
            blocked: figures.blocked,
            damaged: damage.count,
            records: damage.named,
        }
    }
}
