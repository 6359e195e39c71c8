//! Takes over the keyring that the writer has changed, in a read-only mount.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kms::Kms;
use crate::store::{self, Store};
use crate::sync::{Condvar, Mutex, Rank};

use super::VaultError;
use super::cache::RecordCache;
use super::chronicle::Chronicle;
use super::host::memory::HostMemory;
use super::integrity::Guard;
use super::pause::pause;
use super::unlocked::{Unlocked, stored_keyring};

/// Interval at which a read-only mount looks for a new master key.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);
/// Limit on a request's wait for a master key that such a mount lacks.
const WAIT_FOR_KEY: Duration = Duration::from_secs(10);
/// Limit on that interval while the key is unavailable.
const FOLLOW_AT_LEAST: Duration = Duration::from_secs(30);

/// The parts that a follower needs.
pub(super) struct Sources {
    pub(super) store: Arc<dyn Store>,
    pub(super) keys: Arc<Unlocked>,
    pub(super) cache: Arc<RecordCache>,
    pub(super) chronicle: Arc<Mutex<Chronicle>>,
    pub(super) guard: Arc<Guard>,
    pub(super) host: Arc<HostMemory>,
    pub(super) kms: Arc<Kms>,
}

/// Follows the writer's keyring, as the module describes.
pub(super) struct Follower {
    from: Sources,
    /// A thread follows.
    running: Mutex<bool>,
    /// The digest of the last keyring record that could not be followed, and the reason.
    failed: Mutex<Option<([u8; 32], VaultError)>>,
    followed: Condvar,
}

impl Follower {
    pub(super) fn new(from: Sources) -> Self {
        Self {
            from,
            running: Mutex::new(Rank::Follower, false),
            failed: Mutex::new(Rank::FollowFailed, None),
            followed: Condvar::new(),
        }
    }

    /// Whether a keyring newer than sequence `before` is in use now. Asks KMS only if the stored
    /// keyring differs, and only for keys that it names.
    pub(super) fn has_newer_keyring(&self, before: u64) -> Result<bool, VaultError> {
        if self.sequence() != before {
            return Ok(true);
        }
        let stored = stored_keyring(&*self.from.store)?;
        if stored.sequence() == before {
            return Ok(false);
        }
        let mut running = self.running.lock();
        if !*running {
            drop(running);
            self.follow_once()?;
            return Ok(self.sequence() != before);
        }
        let deadline = Instant::now() + WAIT_FOR_KEY;
        loop {
            if self.sequence() != before {
                return Ok(true);
            }
            // Do not wait again for a keyring that has just failed.
            let failed = self.failed.lock();
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
            running = self.followed.wait_timeout(running, left);
        }
    }

    fn sequence(&self) -> u64 {
        self.from.keys.keyring().body().sequence
    }

    /// Follows the writer's keyring as long as `go_on` says so, on a thread of its own.
    pub(super) fn follow(&self, go_on: &dyn Fn() -> ControlFlow<()>) {
        let set = |running| {
            *self.running.lock() = running;
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
                    // Ask less often if KMS refuses, or the record is forged.
                    wait = (wait * 2).min(FOLLOW_AT_LEAST);
                }
            }
        }
        set(false);
    }

    fn follow_once(&self) -> Result<(), VaultError> {
        let from = &self.from;
        let stored = stored_keyring(&*from.store)?;
        let known = from.keys.keyring();
        if stored.sequence() == known.body().sequence {
            return Ok(());
        }
        let digest = stored.digest();
        let allowed = from.host.allowed_keys(known.vault());
        let followed = stored.follow(&known, &allowed, &*from.kms);
        let note = |failed| {
            *self.failed.lock() = failed;
            drop(self.running.lock());
            self.followed.notify_all();
        };
        let keyring = match followed {
            Ok(keyring) => keyring,
            Err(error) => {
                note(Some((digest, error.clone().into())));
                return Err(error.into());
            }
        };
        let head = keyring.body().history.clone();
        from.keys.use_keyring(keyring);
        // The retired key can be wiped: nothing in the cache needs it.
        from.cache.clear();
        note(None);
        // The history may have grown again meanwhile; the next round reads it.
        if from.guard.must_serve().is_ok() {
            let read = store::read(&*from.store, |records| Chronicle::read(records, &head));
            if let Ok(chronicle) = from.guard.noted(read) {
                *from.chronicle.lock() = chronicle;
            }
        }
        Ok(())
    }
}
