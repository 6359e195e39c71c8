//! For those who only read: taking over the keyring that the writer has changed.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::keyring::{Keyring, KeyringError, UnverifiedKeyring};
use crate::store::Read;

use super::chronicle::Chronicle;
use super::pause::pause;
use super::{Vault, VaultError};

/// How often a mount that only reads looks for a new master key.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);
/// How long a request of such a mount waits for a master key that it lacks.
const WAIT_FOR_KEY: Duration = Duration::from_secs(10);
/// And how often at least, while it cannot be had.
const FOLLOW_AT_LEAST: Duration = Duration::from_secs(30);

impl Vault {
    /// Whether there is a later keyring than the one with sequence `before`, and it is in use now.
    /// Asks KMS only if the stored keyring is another, and never for what it does not name.
    pub(super) fn has_newer_keyring(&self, before: u64) -> Result<bool, VaultError> {
        if self.keyring().body().sequence != before {
            return Ok(true);
        }
        if !self.is_read_only() {
            return Ok(false);
        }
        let stored = self.stored_keyring()?;
        if stored.sequence() == before {
            return Ok(false);
        }
        let mut follower = self.rotation.follower.lock();
        if !*follower {
            drop(follower);
            self.follow_once()?;
            return Ok(self.keyring().body().sequence != before);
        }
        let deadline = Instant::now() + WAIT_FOR_KEY;
        loop {
            if self.keyring().body().sequence != before {
                return Ok(true);
            }
            // What could not be had a moment ago is not waited for again.
            let failed = self.rotation.failed.lock();
            if let Some((digest, error)) = &*failed
                && *digest == stored.digest()
            {
                return Err(error.clone());
            }
            drop(failed);
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            follower = self.rotation.followed.wait_timeout(follower, left);
        }
    }

    /// Fails, so that it is run again with the keys of now, when a snapshot has another keyring
    /// than `keyring`.
    pub(super) fn must_be_current(
        &self,
        records: &mut dyn Read,
        keyring: &Keyring,
    ) -> Result<(), VaultError> {
        let (header, stored) = (records.header()?, records.keyring()?);
        let stored = header
            .zip(stored)
            .map(|(h, k)| UnverifiedKeyring::parse(&h, &k));
        match stored.transpose()? {
            Some(stored) if stored.sequence() == keyring.body().sequence => Ok(()),
            _ => Err(KeyringError::unknown(0, "the snapshot").into()),
        }
    }

    /// Follows the writer's keyring until `go_on` says no. For a thread of its own.
    pub fn follow(&self, go_on: &dyn Fn() -> ControlFlow<()>) {
        let set = |running| {
            *self.rotation.follower.lock() = running;
        };
        set(true);
        let mut wait = FOLLOW_EVERY;
        while pause(wait, go_on).is_continue() {
            match self.follow_once() {
                Ok(()) => wait = FOLLOW_EVERY,
                Err(error) => {
                    if wait == FOLLOW_EVERY {
                        tracing::error!("the vault's new keys cannot be had: {error}");
                    }
                    // A KMS that refuses, or a forged record, is not asked about at this pace.
                    wait = (wait * 2).min(FOLLOW_AT_LEAST);
                }
            }
        }
        set(false);
    }

    fn follow_once(&self) -> Result<(), VaultError> {
        let stored = self.stored_keyring()?;
        let known = self.keyring();
        if stored.sequence() == known.body().sequence {
            return Ok(());
        }
        let digest = stored.digest();
        let followed = stored.follow(&known, &self.pins_now(), &self.kms);
        let note = |failed| {
            *self.rotation.failed.lock() = failed;
            drop(self.rotation.follower.lock());
            self.rotation.followed.notify_all();
        };
        let keyring = match followed {
            Ok(keyring) => keyring,
            Err(error) => {
                note(Some((digest, error.clone().into())));
                return Err(error.into());
            }
        };
        let head = keyring.body().history.clone();
        *self.keyring.write() = Arc::new(keyring);
        // What was retired is wiped; nothing in the cache needs it.
        self.cache.clear();
        note(None);
        let chronicle = self.read(|records| Chronicle::read(records, &head));
        // It may have grown again meanwhile; the next round reads that.
        if let Ok(chronicle) = chronicle {
            *self.lock_chronicle() = chronicle;
        }
        Ok(())
    }
}
