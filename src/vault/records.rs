//! The stored records: every read of an open vault goes through here.
//!
//! Callers get a record only once it is known to be current. They open it themselves, with the keys
//! of [`keyring`](Records::keyring).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::keyring::{Keyring, KeyringError, UnverifiedKeyring};
use crate::store::{self, LocalPlace, Read, ReadRecords as _, Record, Store};

use super::VaultError;
use super::cache::{RecordCache, SealedCache};
use super::commit::CommitQueue;
use super::content::Version;
use super::counting::names::names_in;
use super::current::{Checked, Current, Doubt, Following, Place};
use super::follow::Follower;
use super::integrity::Guard;
use super::node::{Node, SYSTEM};
use super::state::{State, SystemKeys};
use super::unlocked::{Unlocked, stored_keyring};

/// The parts that a vault's records come from.
pub(super) struct Sources {
    pub(super) store: Arc<dyn Store>,
    pub(super) place: LocalPlace,
    pub(super) keys: Arc<Unlocked>,
    pub(super) cache: Arc<RecordCache>,
    pub(super) guard: Arc<Guard>,
    /// Has the state of the last commit, too.
    pub(super) queue: Arc<CommitQueue>,
    /// Takes over the writer's changes of the keyring; `None` in the writer itself.
    pub(super) follower: Option<Arc<Follower>>,
}

/// A read that failed.
pub(super) struct Failed {
    pub(super) error: VaultError,
    evidence: Evidence,
}

/// What a failed read has found out about the vault.
enum Evidence {
    /// Nothing.
    None,
    /// A record is damaged, as the error says.
    Damage,
    /// A record is not the current one.
    Doubt(Doubt),
}

impl Failed {
    /// Whether it is a finding.
    pub(super) fn is_finding(&self) -> bool {
        !matches!(self.evidence, Evidence::None)
    }
}

impl From<VaultError> for Failed {
    fn from(error: VaultError) -> Self {
        Self {
            error,
            evidence: Evidence::None,
        }
    }
}

/// The stored records of an open vault.
pub(super) struct Records {
    from: Sources,
    /// Used by a writer only: a reader must read again what another process may have changed.
    sealed: SealedCache,
    /// The marks of its current records, after a count.
    current: Current,
    foreign: AtomicU64,
    /// The vault is open for salvage: records that do not match are passed over.
    salvage: bool,
}

impl Records {
    /// The records of an unlocked vault.
    ///
    /// # Errors
    /// The store's.
    pub(super) fn new(from: Sources, salvage: bool) -> Result<Self, VaultError> {
        let foreign = AtomicU64::new(from.store.foreign_changes()?);
        Ok(Self {
            from,
            sealed: SealedCache::default(),
            current: Current::new(),
            foreign,
            salvage,
        })
    }

    // --- what it is made of ------------------------------------------------------------------

    /// The vault's directory.
    pub(super) fn path(&self) -> &Path {
        self.from.place.directory()
    }

    /// Whether the vault was opened for reading only.
    pub(super) fn is_read_only(&self) -> bool {
        self.from.follower.is_some()
    }

    /// Whether records that do not match are passed over instead of being errors.
    pub(super) fn is_salvage(&self) -> bool {
        self.salvage
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.from.store
    }

    /// The vault's place on this host.
    pub(super) fn place(&self) -> &LocalPlace {
        &self.from.place
    }

    pub(super) fn cache(&self) -> &RecordCache {
        &self.from.cache
    }

    pub(super) fn sealed(&self) -> &SealedCache {
        &self.sealed
    }

    pub(super) fn current(&self) -> &Current {
        &self.current
    }

    /// The present keyring.
    pub(super) fn keyring(&self) -> Arc<Keyring> {
        self.from.keys.keyring()
    }

    /// The present keys of the system node.
    pub(super) fn system(&self) -> Arc<SystemKeys> {
        self.from.keys.system()
    }

    /// The keys in use, for callers that change them.
    pub(super) fn keys(&self) -> &Unlocked {
        &self.from.keys
    }

    /// Makes all commits durable.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn sync(&self) -> Result<(), VaultError> {
        Ok(self.store().sync()?)
    }

    // --- reading -----------------------------------------------------------------------------

    /// Runs `body` in a read transaction. Runs it again if a record is under a master key that was
    /// retired since the snapshot, or that this process does not have yet.
    pub(super) fn read<T>(
        &self,
        body: impl FnMut(&mut dyn Read) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        self.try_read(body).map_err(|failed| self.note(failed))
    }

    /// The same, without noting what it has found, for a caller that tries another way first.
    pub(super) fn try_read<T>(
        &self,
        mut body: impl FnMut(&mut dyn Read) -> Result<T, VaultError>,
    ) -> Result<T, Failed> {
        self.from.guard.must_serve()?;
        loop {
            let before = self.keyring().body().sequence;
            match self.read_current(&mut body) {
                Err(Failed {
                    error: VaultError::Keyring(KeyringError::UnknownGeneration(..)),
                    ..
                }) if self.has_newer_keyring(before)? => {}
                other => return other,
            }
        }
    }

    /// Notes what a failed read has found; returns its error.
    pub(super) fn note(&self, failed: Failed) -> VaultError {
        let Failed { error, evidence } = failed;
        match evidence {
            Evidence::None => {}
            Evidence::Damage => self.from.guard.note_damage(&error),
            Evidence::Doubt(doubt) => return self.from.guard.note_doubt(&doubt),
        }
        error
    }

    /// Whether a later keyring than the one with sequence `before` exists and is in use now.
    pub(super) fn has_newer_keyring(&self, before: u64) -> Result<bool, VaultError> {
        match &self.from.follower {
            Some(follower) => follower.has_newer_keyring(before),
            None => Ok(self.keyring().body().sequence != before),
        }
    }

    /// Runs `body` on current records. A record may be stale because another thread has committed,
    /// or read, a newer one since the snapshot; then `body` runs again.
    fn read_current<T>(
        &self,
        body: &mut impl FnMut(&mut dyn Read) -> Result<T, VaultError>,
    ) -> Result<T, Failed> {
        loop {
            let commits = self.current.commits();
            let failed = match self.read_once(body, false) {
                Err(failed) if matches!(failed.evidence, Evidence::Doubt(_)) => failed,
                result => return result,
            };
            if self.is_read_only() {
                break;
            }
            // This takes no lock: a reader may hold a lock that a job waits for.
            let now = self.current.commits();
            match (now.is_multiple_of(2), now == commits) {
                (true, true) => return Err(failed),
                (true, false) => {}
                (false, _) => std::thread::sleep(Duration::from_micros(50)),
            }
        }
        let _no_other = self.current.alone();
        self.read_once(body, true)
    }

    fn read_once<T>(
        &self,
        body: &mut impl FnMut(&mut dyn Read) -> Result<T, VaultError>,
        alone: bool,
    ) -> Result<T, Failed> {
        let (mut doubt, mut is_miscounted) = (None, false);
        let count_names = |records: &mut dyn Read, directory, record: &_| {
            let names = names_in(records, (&self.keyring(), &self.current), directory, record);
            self.current.adopt(directory, record, names?, alone);
            Ok(())
        };
        let following = Following {
            is_authentic: &|place, record| self.is_authentic(place, record),
            count_names: &count_names,
            alone,
        };
        let result = store::read(self.store(), |records| {
            let mut checked = match self.is_read_only() {
                true => Checked::following(&self.current, records, following),
                false => Checked::new(&self.current, records),
            };
            let result = body(&mut checked);
            doubt = checked.doubt.take();
            let failure = checked.failure.take();
            is_miscounted = failure.is_some();
            match (result, failure) {
                (Err(_), Some(failure)) => Err(failure),
                (result, _) => result,
            }
        });
        result.map_err(|error| {
            let is_certain = !self.salvage && error.is_certain_damage();
            let evidence = match doubt {
                Some(doubt) => Evidence::Doubt(doubt),
                None if is_miscounted || is_certain => Evidence::Damage,
                None => Evidence::None,
            };
            Failed { error, evidence }
        })
    }

    fn is_authentic(&self, place: &Place, record: &Record) -> bool {
        let keyring = self.keyring();
        match *place {
            Place::Node(id) => Node::open(&keyring, id, record).is_ok(),
            Place::Version(node, number) => Version::open(&keyring, node, number, record).is_ok(),
            Place::Entry(..) => false,
        }
    }

    /// Clears all caches of records.
    pub(super) fn forget_all(&self) {
        self.cache().clear();
        self.sealed.clear();
    }

    /// Clears the caches if another process has written since the last call.
    pub(super) fn refresh(&self) -> Result<(), VaultError> {
        if self.is_read_only() {
            let changes = self.store().foreign_changes()?;
            if self.foreign.swap(changes, Ordering::AcqRel) != changes {
                self.cache().clear();
                self.look()?;
            }
        }
        Ok(())
    }

    // --- the state ---------------------------------------------------------------------------

    /// The state of the last commit, by this process or by the writer beside it.
    pub(super) fn state(&self) -> State {
        if self.is_read_only()
            && !self.from.guard.is_condemned()
            && let Err(error) = self.look()
        {
            tracing::error!("{error}");
        }
        self.seen()
    }

    /// The state that this process has seen last. It does not wait.
    pub(super) fn seen(&self) -> State {
        self.from.queue.seen()
    }

    /// Notes a state that another process has committed. The known state never goes back.
    pub(super) fn has_come_to(&self, state: &State) {
        self.from.queue.has_come_to(state);
    }

    /// Checks the keyring and the state on disk: the vault must not have gone back, and in the
    /// writer, both must be those that it stored last.
    ///
    /// # Errors
    /// When they are unreadable, or the vault has gone back.
    pub(super) fn look(&self) -> Result<(), VaultError> {
        match self.is_read_only() {
            true => self.look_at_writer(),
            false => self.look_at_own(),
        }
    }

    /// In a read-only mount: reads the present state, and refuses one that goes back.
    fn look_at_writer(&self) -> Result<(), VaultError> {
        let guard = &self.from.guard;
        // Read this before the snapshot, which may miss later commits.
        let floor = self.seen().commit;
        let state = self.read(|records| self.stored_state(records))?;
        if state.commit < floor {
            let error = VaultError::went_back(floor, state.commit);
            guard.condemn(&error);
            return Err(error);
        }
        self.has_come_to(&state);
        let known = self.keyring().body().sequence;
        let stored = self.stored_keyring()?.sequence();
        if stored < known {
            let error = VaultError::Rollback(format!(
                "the keyring record was put back under the mount: it had sequence {known}, and has {stored}"
            ));
            guard.condemn(&error);
            return Err(error);
        }
        Ok(())
    }

    /// In a mount for writing: checks that keyring and state record are those that it has stored
    /// last, and notes a finding if not. The next change of the keyring stores both again.
    fn look_at_own(&self) -> Result<(), VaultError> {
        loop {
            let commits = self.current.commits();
            let (keyring, commit) = (self.keyring(), self.seen().commit);
            let found = store::read(self.store(), |records| {
                let stored = records.keyring()?;
                let state = self.stored_state(records).map(|state| state.commit);
                Ok::<_, VaultError>((stored, state))
            })?;
            let why = match found {
                (stored, _) if stored.as_deref() != Some(&keyring.encode()[..]) => {
                    "the keyring record"
                }
                (_, Ok(stored)) if stored == commit => return Ok(()),
                (_, Ok(_) | Err(VaultError::Integrity(_) | VaultError::Damaged(_))) => {
                    "the state record"
                }
                (_, Err(error)) => return Err(error),
            };
            let now = self.current.commits();
            if now == commits && now.is_multiple_of(2) {
                let error = VaultError::tampered(why, "is not the one that was stored last");
                self.from.guard.note_damage(&error);
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The state record of a snapshot.
    pub(super) fn stored_state(&self, records: &mut dyn Read) -> Result<State, VaultError> {
        let sealed = records
            .state()?
            .ok_or_else(|| VaultError::tampered("the state record", "is missing"))?;
        let system = self.system_in(records)?;
        system.open(self.keyring().vault(), &sealed)
    }

    /// The system node's keys in the transaction's snapshot.
    pub(super) fn system_in(&self, records: &mut dyn Read) -> Result<Arc<SystemKeys>, VaultError> {
        let known = self.system();
        let record = records
            .node(SYSTEM)?
            .ok_or_else(|| VaultError::tampered("the system node", "is missing"))?;
        if known.record == (record.generation, Node::revision_in(&record.value)) {
            return Ok(known);
        }
        let keys = Arc::new(SystemKeys::of(&Node::open(
            &self.keyring(),
            SYSTEM,
            &record,
        )?));
        if self.is_read_only() {
            self.keys().use_system(Arc::clone(&keys));
        }
        Ok(keys)
    }

    /// The keyring record on disk, unverified.
    pub(super) fn stored_keyring(&self) -> Result<UnverifiedKeyring, VaultError> {
        stored_keyring(self.store())
    }
}
