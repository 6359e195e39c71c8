//! Drives the rotations from one durable state to the next; each step is a transaction of its own.
//!
//! Every step begins from the keyring record and from the results of a query, never from this
//! process's memory, so it does not matter which process did the earlier steps. One thread drives
//! at a time. KMS is never asked inside a transaction.

mod damage;
mod migrate;
mod names;
mod prepare;
mod progress;
mod request;
mod search;
mod system;
mod verify;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crate::crypto::schedule::digest;
use crate::keyring::{self, Keyring, RotationKind, RotationPhase, is_final};
use crate::kms::{KeyUri, Kms, Provider};
use crate::store::Scrub;
use crate::sync::{Mutex, Rank};

use super::chronicle::Chronicle;
use super::commit::transact::Transactions;
use super::host::apart::must_be_apart;
use super::host::memory::HostMemory;
use super::integrity::Guard;
use super::node::Timestamp;
use super::pause::pause;
use super::records::Records;
use super::{Failure, VaultError};
pub use progress::{Outcome, Phase, Progress};
pub use request::Request;

use damage::Damage;
use migrate::Migration;
use progress::{Figures, Standing};
use system::Renewal;
use verify::Verification;

/// Time between storing a new key and using it, if other processes read the vault: they fetch the
/// key meanwhile, and never wait for it.
const OFFER: Duration = Duration::from_millis(600);
/// First pause before another attempt to end, if readers are in the way.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// Limit on that pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

fn offer() -> Duration {
    fail::fail_point!("offer", |_| Duration::ZERO);
    OFFER
}

/// The remedies for a blocked rotation.
pub const BLOCKED: &str = "restore what is damaged, have `secretfs check --repair` move it aside while \
                           the vault is not mounted, or give it up with --retire-despite";

fn now() -> i64 {
    Timestamp::now().seconds
}

/// The parts that a rotation needs.
pub(super) struct Parts {
    pub(super) records: Arc<Records>,
    pub(super) transactions: Arc<Transactions>,
    pub(super) guard: Arc<Guard>,
    pub(super) host: Arc<HostMemory>,
    pub(super) chronicle: Arc<Mutex<Chronicle>>,
    pub(super) kms: Arc<Kms>,
}

/// The rotations of a vault, as the module describes.
pub(super) struct Rotation {
    records: Arc<Records>,
    transactions: Arc<Transactions>,
    guard: Arc<Guard>,
    host: Arc<HostMemory>,
    chronicle: Arc<Mutex<Chronicle>>,
    kms: Arc<Kms>,
    /// Held by the thread that begins or drives a rotation.
    driving: Mutex<()>,
    standing: Standing,
    renewal: Renewal,
}

impl Rotation {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts {
            records,
            transactions,
            guard,
            host,
            chronicle,
            kms,
        } = parts;
        Self {
            renewal: Renewal::new(Arc::clone(&transactions)),
            records,
            transactions,
            guard,
            host,
            chronicle,
            kms,
            driving: Mutex::new(Rank::Driving, ()),
            standing: Standing::default(),
        }
    }

    fn under_way(&self) -> Option<keyring::Rotation> {
        self.records.keyring().body().change.clone()
    }

    /// The progress of the rotation under way, if any.
    pub(super) fn progress(&self) -> Option<Progress> {
        let change = self.under_way()?;
        Some(self.standing.progress_of(&change))
    }

    /// Begins a rotation, and asks KMS. After this returns, the rotation will be finished whatever
    /// happens, unless KMS does not unwrap what it has just wrapped. [`drive`](Self::drive) does
    /// the rest.
    ///
    /// # Errors
    /// `Busy` when a rotation is under way; and when KMS does not wrap, does not unwrap what it
    /// wrapped, or the intent cannot be stored. Nothing has changed then.
    pub(super) fn begin(&self, request: &Request) -> Result<(), VaultError> {
        if self.records.is_read_only() {
            return Err(VaultError::ReadOnly);
        }
        if matches!(request, Request::Despite(_)) && self.guard.is_condemned() {
            return Err(VaultError::Integrity(
                "nothing of a vault is read of which part was replayed, inserted or deleted; unmount \
                 it, and give this command the vault's directory"
                    .into(),
            ));
        }
        if self.insists(request) {
            return Ok(());
        }
        if self.is_rotating() {
            return Err(self.busy());
        }
        // Wait for the thread that drove the last rotation to leave.
        let _driving = self.driving.lock();
        let keyring = self.records.keyring();
        if keyring.body().change.is_some() {
            return Err(self.busy());
        }
        // This host must be able to open existing copies of the vault.
        keyring.prove_active(&*self.kms)?;
        *self.standing.figures() = Figures::default();
        *self.standing.damage() = Damage::default();
        let despite = matches!(request, Request::Despite(_));
        self.standing.insist(despite);
        match request {
            Request::Despite(RotationKind::Rewrap) => Err(VaultError::Invalid),
            Request::Rotate | Request::Reencrypt | Request::Despite(_) => {
                let kind = match request {
                    Request::Reencrypt | Request::Despite(RotationKind::Reencrypt) => {
                        RotationKind::Reencrypt
                    }
                    _ => RotationKind::Rotate,
                };
                // A later program may have recorded the active generation in an event that this one
                // does not know.
                let newest = self.chronicle.lock().newest_generation;
                let number = newest.max(keyring.active()).saturating_add(1);
                let new =
                    keyring.make_generation(number, &keyring.kms_keys()?, &*self.kms, now())?;
                self.transactions.change_keyring(
                    |keyring| Ok(Some(keyring.prepare(kind, new, now())?)),
                    |_| Ok(()),
                )
            }
            Request::Rewrap { to, leave_aws } => {
                let now_under = keyring.kms_keys()?;
                let to = match to.is_empty() {
                    true => now_under.clone(),
                    false => to.clone(),
                };
                let is_aws = |key: &KeyUri| key.provider() == Provider::Aws;
                if now_under.iter().any(is_aws) && !to.iter().any(is_aws) && !leave_aws {
                    return Err(VaultError::Setting(
                        "the vault would leave AWS KMS for keys that are files on this host; if \
                         that is what you want, say so with --yes-leave-aws"
                            .into(),
                    ));
                }
                if !to.iter().all(is_aws) {
                    must_be_apart(self.kms.local()?.dir(), self.records.path())?;
                }
                let wraps = keyring.make_wraps(&to, &*self.kms, now())?;
                // Pin first: this host could no longer mount the vault if it did not know the new
                // keys.
                self.host.pin(&to)?;
                self.transactions.change_keyring(
                    |keyring| Ok(Some(keyring.replace_wraps(wraps, now())?)),
                    |_| Ok(()),
                )
            }
        }
    }

    /// Whether `request` insists on the rotation that is under way.
    fn insists(&self, request: &Request) -> bool {
        let change = self.under_way();
        let joins = change.is_some_and(|change| *request == Request::Despite(change.kind));
        if joins {
            self.standing.insist(true);
            // No longer blocked; `drive` sets it again if it still is.
            self.standing.note_trouble(None);
        }
        joins
    }

    /// Whether a rotation is under way.
    pub(super) fn is_rotating(&self) -> bool {
        self.records.keyring().body().change.is_some()
    }

    /// The time until the master key is `every` old.
    pub(super) fn until_rotation(&self, every: Duration) -> Duration {
        let keyring = self.records.keyring();
        let made = keyring.body().active().map_or(0, |active| active.created);
        // Even if the clock was set back, the time is at most `every`.
        let age = u64::try_from(now().saturating_sub(made)).unwrap_or(0);
        every.saturating_sub(Duration::from_secs(age))
    }

    fn busy(&self) -> VaultError {
        VaultError::Busy(match self.progress() {
            Some(p) => format!(
                "{} is under way since {} s, {} of {} keys done; {}",
                p.change,
                now().saturating_sub(p.started).max(0),
                p.done,
                p.total,
                match (p.blocked, p.trouble) {
                    (true, Some(trouble)) => format!("it is blocked: {trouble}; {BLOCKED}"),
                    _ => "wait until it has ended".into(),
                }
            ),
            None => "another rotation is just being begun; wait until it has ended".into(),
        })
    }

    /// Drives the rotation under way to its end, whichever process began it. Asks `go_on` between
    /// steps and batches.
    ///
    /// # Errors
    /// When a record does not authenticate, or the store fails. The rotation keeps its state, and
    /// the next call continues.
    pub(super) fn drive(&self, go_on: &dyn Fn() -> ControlFlow<()>) -> Result<Outcome, VaultError> {
        let _driving = self.driving.try_lock().ok_or_else(|| self.busy())?;
        self.standing.note_trouble(None);
        *self.standing.damage() = Damage::default();
        while let Some(change) = self.under_way() {
            if go_on().is_break() {
                return Ok(Outcome::Stopped);
            }
            let despite = self.standing.is_despite();
            match self.step(&change, go_on) {
                Ok(ControlFlow::Continue(())) => self.standing.note_trouble(None),
                Ok(ControlFlow::Break(())) => return Ok(Outcome::Stopped),
                Err(error) => {
                    self.standing.note_trouble(Some(&error));
                    // A user may have insisted meanwhile: try again for that user.
                    let insists = !despite && self.standing.is_despite();
                    if !insists || error.failure() != Failure::Integrity {
                        return Err(error);
                    }
                    *self.standing.damage() = Damage::default();
                    self.standing.note_trouble(None);
                }
            }
        }
        Ok(Outcome::Done)
    }

    /// Does one step.
    fn step(
        &self,
        change: &keyring::Rotation,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let proceed = |()| ControlFlow::Continue(());
        match change.phase {
            RotationPhase::Prepared => self.activate(change, go_on),
            RotationPhase::Active => self.advance(RotationPhase::Migrating).map(proceed),
            RotationPhase::Migrating => match self.migration(go_on).run(change)? {
                ControlFlow::Continue(()) => self.advance(RotationPhase::Verifying).map(proceed),
                stopped => Ok(stopped),
            },
            RotationPhase::Verifying => self.retire(change, go_on),
            RotationPhase::Retired => self.advance(RotationPhase::Scrubbing).map(proceed),
            RotationPhase::Scrubbing => self.scrub(go_on),
        }
    }

    fn migration<'a>(&'a self, go_on: &'a dyn Fn() -> ControlFlow<()>) -> Migration<'a> {
        Migration {
            records: &self.records,
            transactions: &self.transactions,
            standing: &self.standing,
            go_on,
        }
    }

    fn verification(&self) -> Verification<'_> {
        Verification {
            records: &self.records,
            transactions: &self.transactions,
            guard: &self.guard,
            standing: &self.standing,
        }
    }

    fn advance(&self, to: RotationPhase) -> Result<(), VaultError> {
        let advance = |keyring: &mut Keyring| keyring.advance(to).map(|()| None);
        self.transactions.change_keyring(advance, |_| Ok(()))
    }

    /// Proves the stored wraps of the pending key, and activates it.
    fn activate(
        &self,
        change: &keyring::Rotation,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let (stored, keyring) = (self.records.stored_keyring()?, self.records.keyring());
        if stored.digest() != digest(&[&keyring.encode()]) && keyring.holds(change.to) {
            return Err(VaultError::tampered(
                "the keyring record",
                "is not the one that was stored",
            ));
        }
        let proved = match keyring.prove(change.to, &*self.kms) {
            Ok(proved) => proved,
            Err(error) if is_final(&error) => {
                tracing::error!("the new master key cannot be used and is dropped: {error}");
                let abandon = |keyring: &mut Keyring| Ok(Some(keyring.abandon(now())?));
                self.transactions.change_keyring(abandon, |_| Ok(()))?;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        };
        if self.records.place().has_readers() && pause(offer(), go_on).is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let activate = |keyring: &mut Keyring| Ok(Some(keyring.activate(proved, now())?));
        self.transactions.change_keyring(activate, |_| Ok(()))?;
        Ok(ControlFlow::Continue(()))
    }

    /// Shows that the old key wraps only the system node's key, replaces that, and removes the old
    /// key.
    fn retire(
        &self,
        change: &keyring::Rotation,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        self.renewal.begin(change)?;
        let counted = match self.verification().run(change, go_on)? {
            ControlFlow::Continue(counted) => counted,
            ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
        };
        let damage = self.standing.damage().clone();
        match damage.first() {
            Some(error) if !self.standing.is_despite() => return Err(error),
            Some(error) => tracing::warn!(
                "{} records do not open, and the old key is removed all the same: {error}",
                damage.count
            ),
            None => {}
        }
        if !self.renewal.end(change, &counted, damage.count > 0)? {
            // Back to migrating.
            return Ok(ControlFlow::Continue(()));
        }
        let left = std::cell::Cell::new(0);
        let retired = self.transactions.change_keyring(
            |keyring| {
                Ok(Some(match damage.count {
                    0 => keyring.retire(now())?,
                    count => keyring.retire_despite(count, damage.named.clone(), now())?,
                }))
            },
            |records| {
                left.set(damage.others_left(records, change.to)?);
                match left.get() {
                    0 => Ok(()),
                    left => Err(VaultError::Busy(format!(
                        "{left} keys are still under generation {}",
                        change.from
                    ))),
                }
            },
        );
        match retired {
            // Old records have appeared meanwhile: back to migrating.
            Err(_) if left.get() > 0 => self.advance(RotationPhase::Migrating)?,
            other => other?,
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Removes replaced records from the medium.
    fn scrub(&self, go_on: &dyn Fn() -> ControlFlow<()>) -> Result<ControlFlow<()>, VaultError> {
        die_at!("scrub-before");
        // Readers may be in the way, and an attempt blocks writers, so attempts get rarer and
        // rarer.
        let mut wait = TRY_AGAIN;
        let scrub = || {
            // Hold the turn, because no other thread can write meanwhile.
            let _turn = self.transactions.queue().turn_to_write()?;
            Ok::<_, VaultError>(self.records.store().scrub()?)
        };
        while scrub()? == Scrub::ReaderInTheWay {
            self.standing.figures().trouble =
                Some("waits for readers of older states to come to their end".into());
            if pause(wait, go_on).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            wait = (wait * 2).min(LONGEST_PAUSE);
        }
        die_at!("scrub-after");
        let finish = |keyring: &mut Keyring| Ok(Some(keyring.finish(now())?));
        self.transactions.change_keyring(finish, |_| Ok(()))?;
        self.standing.insist(false);
        *self.standing.damage() = Damage::default();
        Ok(ControlFlow::Continue(()))
    }
}
