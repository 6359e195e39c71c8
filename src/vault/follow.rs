//! For those who only read: taking over the keyring that the writer has changed.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::kms::Kms;
use crate::store::{self, SqliteStore};
use crate::sync::{Condvar, Mutex, Rank};

use super::VaultError;
use super::cache::RecordCache;
use super::chronicle::Chronicle;
use super::host::memory::HostMemory;
use super::integrity::Guard;
use super::pause::pause;
use super::unlocked::{Unlocked, stored_keyring};

/// How often a mount that only reads looks for a new master key.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);
/// How long a request of such a mount waits for a master key that it lacks.
const WAIT_FOR_KEY: Duration = Duration::from_secs(10);
/// And how often at least, while it cannot be had.
const FOLLOW_AT_LEAST: Duration = Duration::from_secs(30);

/// What following takes.
pub(super) struct Sources {
    pub(super) store: Arc<SqliteStore>,
    pub(super) keys: Arc<Unlocked>,
    pub(super) cache: Arc<RecordCache>,
    pub(super) chronicle: Arc<Mutex<Chronicle>>,
    pub(super) guard: Arc<Guard>,
    pub(super) host: Arc<HostMemory>,
    pub(super) kms: Arc<Kms>,
}

/// See the module.
pub(super) struct Follower {
    from: Sources,
    /// A thread follows.
    running: Mutex<bool>,
    /// The keyring record that could not be followed last, by its digest, and why.
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

    /// Whether there is a later keyring than the one with sequence `before`, and it is in use now.
    /// Asks KMS only if the stored keyring is another, and never for what it does not name.
    pub(super) fn has_newer_keyring(&self, before: u64) -> Result<bool, VaultError> {
        if self.sequence() != before {
            return Ok(true);
        }
        let stored = stored_keyring(&self.from.store)?;
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
            // What could not be had a moment ago is not waited for again.
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

    /// Follows the writer's keyring until `go_on` says no. For a thread of its own.
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
                    // A KMS that refuses, or a forged record, is not asked about at this pace.
                    wait = (wait * 2).min(FOLLOW_AT_LEAST);
                }
            }
        }
        set(false);
    }

    fn follow_once(&self) -> Result<(), VaultError> {
        let from = &self.from;
        let stored = stored_keyring(&from.store)?;
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
        // What was retired is wiped; nothing in the cache needs it.
        from.cache.clear();
        note(None);
        // It may have grown again meanwhile; the next round reads that.
        if from.guard.must_serve().is_ok() {
            let read = store::read(&*from.store, |records| Chronicle::read(records, &head));
            if let Ok(chronicle) = from.guard.noted(read) {
                *from.chronicle.lock() = chronicle;
            }
        }
        Ok(())
    }
}
