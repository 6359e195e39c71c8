//! How far a rotation has come, and what this process knows of it besides what is stored.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use serde::Serialize;

use crate::keyring::{ChangeKind, ChangePhase};
use crate::sync::{Condvar, Mutex, MutexGuard, Rank};

use super::super::VaultError;
use super::damage::Damage;

/// Where a rotation is.
pub type Phase = ChangePhase;

/// How far a rotation has come.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Progress {
    /// Which one.
    pub change: ChangeKind,
    /// Its durable state.
    pub phase: Phase,
    /// Generation that is left.
    pub from: u64,
    /// Generation that is entered.
    pub to: u64,
    /// When it began, in seconds since 1970.
    pub started: i64,
    /// Keys that stand under the new generation.
    pub done: u64,
    /// All keys.
    pub total: u64,
    /// Keys for each second, as of this run.
    pub rate: f64,
    /// Seconds left, if that can be told.
    pub eta_seconds: Option<u64>,
    /// What it waits for, or what has stopped it.
    pub trouble: Option<String>,
    /// It is not tried again by itself: a record is not what was stored.
    pub blocked: bool,
    /// Number of records that do not open, or sums that are not right.
    pub damaged: u64,
    /// Some of them, by number.
    pub records: Vec<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left to do.
    Done,
    /// It was told to stop, and goes on the next time.
    Stopped,
}

/// What this process knows of the rotation besides what is stored.
pub(in crate::vault) struct Rotation {
    /// Held by whoever begins or drives one.
    pub(super) driving: Mutex<()>,
    /// Somebody insists that the old key goes although records do not open. Not remembered beyond
    /// this process.
    pub(super) despite: AtomicBool,
    /// The generation under which this process has replaced the system node's key last.
    pub(super) renewed: AtomicU64,
    damage: Mutex<Damage>,
    figures: Mutex<Figures>,
    pub(in crate::vault) follower: Mutex<bool>,
    /// The keyring record that could not be followed last, by its digest, and why.
    pub(in crate::vault) failed: Mutex<Option<([u8; 32], VaultError)>>,
    pub(in crate::vault) followed: Condvar,
}

#[derive(Clone, Default)]
pub(super) struct Figures {
    pub(super) done: u64,
    pub(super) total: u64,
    /// When this run began to migrate, and how much was done by then.
    pub(super) since: Option<(Instant, u64)>,
    pub(super) trouble: Option<String>,
    pub(super) blocked: bool,
}

impl Default for Rotation {
    fn default() -> Self {
        Self {
            driving: Mutex::new(Rank::Driving, ()),
            despite: AtomicBool::new(false),
            renewed: AtomicU64::new(0),
            damage: Mutex::new(Rank::Damage, Damage::default()),
            figures: Mutex::new(Rank::Figures, Figures::default()),
            follower: Mutex::new(Rank::Follower, false),
            failed: Mutex::new(Rank::FollowFailed, None),
            followed: Condvar::new(),
        }
    }
}

impl Rotation {
    pub(super) fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock()
    }

    pub(super) fn damage(&self) -> MutexGuard<'_, Damage> {
        self.damage.lock()
    }

    pub(super) fn is_despite(&self) -> bool {
        self.despite.load(Ordering::Relaxed)
    }

    pub(super) fn drive(&self) -> Option<MutexGuard<'_, ()>> {
        self.driving.try_lock()
    }
}
