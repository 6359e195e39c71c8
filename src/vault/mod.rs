//! What a vault is: nodes, names and contents, opened from records and sealed into them, in
//! transactions that keep the whole provably consistent.
//!
//! Nothing here knows of file descriptors, kernels or processes. Every record that comes out of
//! the store is authenticated before anything in it is used.

/// Where the tests have the process die, as if it were killed there. Compiled into tests only.
macro_rules! die_at {
    ($point:literal) => {
        fail::fail_point!($point, |_| std::process::abort())
    };
}

mod afresh;
mod anchoring;
mod backup;
mod cache;
mod check;
mod chronicle;
mod content;
mod counting;
mod crew;
mod current;
mod dates;
pub mod decode;
mod entry;
mod error;
mod history;
mod host;
mod integrity;
mod keys;
mod node;
mod open;
mod ops;
mod options;
mod pieces;
mod reading;
mod repair;
mod rotation;
mod state;
mod summary;
#[cfg(test)]
mod tests;
mod turns;
mod tx;
mod verdict;
mod writing;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::keyring::{Keyring, KeyringError};
use crate::kms::{KeyUri, Kms};
use crate::os::nice;
use crate::store::{self, KeyedRecord, NodeId, Read, SqliteStore, Store as _};
use crate::sync::{Mutex, MutexGuard, RwLock};

pub use afresh::{Footprint, Since};
pub use backup::{CopyReport, NeededKey, backup, restore};
pub use check::{CheckReport, Problem, check};
pub use chronicle::RetiredGeneration;
pub use content::{CHUNK, Version};
pub use dates::{SUFFIX as TIME_SUFFIX, rfc3339, time_of, with_times};
pub use entry::{Entry, MAX_NAME};
pub use error::{Failure, VaultError};
pub use history::HistoryLine;
pub use host::anchor::{Anchor, Anchors, decode as decode_anchor};
pub(crate) use host::apart::real_path;
pub use host::memory::AnchorSummary;
pub use integrity::{Finding, Findings, Integrity};
pub use node::{
    Attributes, Body, DirectoryBody, FileBody, Kind, Node, ROOT, Remainder, SYSTEM, Timestamp,
};
pub use open::{Created, Verify, id_at, init};
pub use ops::{
    AttributeChange, MAX_LINKS, MAX_XATTRS, NewNode, NothingOpen, OpenFiles, Publication,
    RenameMode,
};
pub use options::{InitOptions, OpenOptions};
pub use pieces::LastChunk;
pub use reading::{Content, Listing};
pub use repair::{RepairReport, Repairs, repair};
pub use rotation::{BLOCKED, Outcome, Phase, Progress, Request};
pub use state::State;
pub use summary::{GenerationSummary, Summary, WrapSummary};
pub use tx::{PIECE, Tx, pieces_of};

use cache::{RecordCache, SealedCache};
use chronicle::Chronicle;
use current::{Checked, Current, Doubt, Following, Place};
use host::memory::HostMemory;
use integrity::Guard;
use state::SystemKeys;
use turns::Turns;

/// A job of a write transaction. It may be run more than once.
pub type Job<'j> = &'j mut dyn FnMut(&mut Tx<'_>) -> Result<(), VaultError>;

/// An open, unlocked vault.
pub struct Vault {
    store: SqliteStore,
    keyring: RwLock<Arc<Keyring>>,
    /// What unwraps and wraps its master keys, and which keys it may be asked for.
    kms: Kms,
    pins: Vec<KeyUri>,
    /// Those of them that were named when it was opened.
    named_keys: Vec<KeyUri>,
    rotation: rotation::Rotation,
    system: RwLock<Arc<SystemKeys>>,
    cache: RecordCache,
    /// Of a writer only: what another process may change is read again.
    sealed: SealedCache,
    /// As of the last commit; locked while a transaction runs.
    state: Mutex<State>,
    turns: Turns,
    /// The same for those who only look, and must not wait for a disk.
    seen: RwLock<State>,
    foreign: AtomicU64,
    path: PathBuf,
    read_only: bool,
    /// What is left of it is to be got out: what does not fit together is passed over.
    salvage: bool,
    /// What is current of it, once it was counted.
    current: Current,
    guard: Guard,
    /// What this host remembers of it.
    host: HostMemory,
    /// What the key-management history comes to.
    chronicle: Mutex<Chronicle>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({})", self.path.display())
    }
}

impl Vault {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory, which nobody else writes to; not for a vault opened for reading.
    ///
    /// # Errors
    /// The store's.
    pub fn locked_directory(&self) -> Result<std::fs::File, VaultError> {
        Ok(self.store.locked_directory()?)
    }

    /// Fails when what is at its path is no longer this vault.
    ///
    /// # Errors
    /// The store's.
    pub fn check_unmoved(&self) -> Result<(), VaultError> {
        Ok(self.store.check_unmoved()?)
    }

    /// Whether it was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether what does not fit together is passed over and not an error.
    pub fn is_salvage(&self) -> bool {
        self.salvage
    }

    /// The keyring as it is now.
    pub fn keyring(&self) -> Arc<Keyring> {
        Arc::clone(&self.keyring.read())
    }

    /// Runs `body` in a read transaction. What it finds may stand under a master key that was
    /// retired since its snapshot was taken, or that this process has not fetched yet: then it is
    /// run again.
    fn read<T>(
        &self,
        mut body: impl FnMut(&mut dyn Read) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        self.must_serve()?;
        loop {
            let before = self.keyring().body().sequence;
            let result = self.read_current(&mut body);
            match result {
                Err(VaultError::Keyring(KeyringError::UnknownGeneration(..)))
                    if self.has_newer_keyring(before)? => {}
                other => return other,
            }
        }
    }

    /// Runs `body` on records that are current. That one is not can be because another thread has
    /// committed, or read, what came after this snapshot: then once more.
    fn read_current<T>(
        &self,
        body: &mut impl FnMut(&mut dyn Read) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        loop {
            let commits = self.current.commits();
            let doubt = match self.read_once(body, false) {
                (Err(_), Some(doubt)) => doubt,
                (result, _) => return self.noted(result),
            };
            if self.read_only {
                break;
            }
            // No lock is taken for that: whoever reads may hold what a job waits for.
            let now = self.current.commits();
            match (now.is_multiple_of(2), now == commits) {
                (true, true) => return Err(self.guard.found(&doubt)),
                (true, false) => {}
                (false, _) => std::thread::sleep(Duration::from_micros(50)),
            }
        }
        let _no_other = self.current.alone();
        match self.read_once(body, true) {
            (Err(_), Some(doubt)) => Err(self.guard.found(&doubt)),
            (result, _) => self.noted(result),
        }
    }

    /// Damage that a reader met stays known, as what is not current does.
    fn noted<T>(&self, result: Result<T, VaultError>) -> Result<T, VaultError> {
        result.inspect_err(|error| {
            if !self.salvage && error.is_certain_damage() {
                self.note_damage(error);
            }
        })
    }

    fn read_once<T>(
        &self,
        body: &mut impl FnMut(&mut dyn Read) -> Result<T, VaultError>,
        alone: bool,
    ) -> (Result<T, VaultError>, Option<Doubt>) {
        let mut doubt = None;
        let count_names = |records: &mut dyn Read, directory, record: &_| {
            let names = self.names_in(records, directory, record);
            let names = names.inspect_err(|error| self.note_damage(error))?;
            self.current.adopt(directory, record, names, alone);
            Ok(())
        };
        let following = Following {
            is_authentic: &|place, record| self.is_authentic(place, record),
            count_names: &count_names,
            alone,
        };
        let result = store::read(&self.store, |records| {
            let mut checked = match self.read_only {
                true => Checked::following(&self.current, records, following),
                false => Checked::new(&self.current, records),
            };
            let result = body(&mut checked);
            doubt = checked.doubt.take();
            match (result, checked.failure.take()) {
                (Err(_), Some(failure)) => Err(failure),
                (result, _) => result,
            }
        });
        (result, doubt)
    }

    fn is_authentic(&self, place: &Place, record: &KeyedRecord) -> bool {
        let keyring = self.keyring();
        match *place {
            Place::Node(id) => Node::open(&keyring, id, record).is_ok(),
            Place::Version(node, number) => Version::open(&keyring, node, number, record).is_ok(),
            Place::Entry(..) => false,
        }
    }

    /// The state as of the last commit: of this process, or of the writer that this one reads
    /// beside.
    pub fn state(&self) -> State {
        if self.read_only
            && !self.is_condemned()
            && let Err(error) = self.look()
        {
            tracing::error!("{error}");
        }
        self.seen()
    }

    fn seen(&self) -> State {
        let seen = self.seen.read();
        seen.clone()
    }

    /// Of a mount that only reads: how far the vault has come. It never goes back.
    fn look(&self) -> Result<(), VaultError> {
        // Before the snapshot: what came after it is not held against it.
        let floor = self.seen().commit;
        let state = self.read(|records| self.stored_state(records))?;
        if state.commit < floor {
            let error = VaultError::went_back(floor, state.commit);
            self.condemn(&error);
            return Err(error);
        }
        self.has_come_to(&state);
        let known = self.keyring().body().sequence;
        let stored = self.stored_keyring()?.sequence();
        if stored < known {
            let error = VaultError::Rollback(format!(
                "the keyring record was put back under the mount: it had sequence {known}, and has {stored}"
            ));
            self.condemn(&error);
            return Err(error);
        }
        Ok(())
    }

    /// Of a mount that writes: whether the keyring and the state record are those that it has stored
    /// last. If not, that is noted; the next change of the keyring stores both anew.
    fn look_at_own(&self) -> Result<(), VaultError> {
        loop {
            let commits = self.current.commits();
            let (keyring, commit) = (self.keyring(), self.seen().commit);
            let found = store::read(&self.store, |records| {
                let stored = records.keyring()?;
                let state = self.stored_state(records).map(|state| state.commit);
                Ok::<_, VaultError>((stored, state))
            })?;
            let why = match found {
                (stored, _) if stored.as_deref() != Some(&keyring.encode()[..]) => {
                    "the keyring record"
                }
                (_, Ok(stored)) if stored == commit => return Ok(()),
                (_, Ok(_) | Err(VaultError::Integrity(_))) => "the state record",
                (_, Err(error)) => return Err(error),
            };
            let now = self.current.commits();
            if now == commits && now.is_multiple_of(2) {
                let error = VaultError::tampered(why, "is not the one that was stored last");
                self.note_damage(&error);
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn has_come_to(&self, state: &State) {
        let mut seen = self.seen.write();
        if seen.commit < state.commit {
            seen.clone_from(state);
        }
    }

    fn show(&self, state: &State) {
        let mut seen = self.seen.write();
        seen.clone_from(state);
    }

    fn stored_state(&self, records: &mut dyn Read) -> Result<State, VaultError> {
        let sealed = records
            .state()?
            .ok_or_else(|| VaultError::tampered("the state record", "is missing"))?;
        let system = self.system_in(records)?;
        system.open(self.keyring().vault(), &sealed)
    }

    fn system(&self) -> Arc<SystemKeys> {
        Arc::clone(&self.system.read())
    }

    /// The system node's keys as the transaction's snapshot has them.
    fn system_in(&self, records: &mut dyn Read) -> Result<Arc<SystemKeys>, VaultError> {
        let known = self.system();
        let record = records
            .node(SYSTEM)?
            .ok_or_else(|| VaultError::tampered("the system node", "is missing"))?;
        if known.record == (record.generation, Node::revision_of(&record)) {
            return Ok(known);
        }
        let keys = Arc::new(SystemKeys::of(&Node::open(
            &self.keyring(),
            SYSTEM,
            &record,
        )?));
        if self.read_only {
            let mut system = self.system.write();
            *system = Arc::clone(&keys);
        }
        Ok(keys)
    }

    /// Forgets what was cached if another process has written since the last time.
    fn refresh(&self) -> Result<(), VaultError> {
        if self.read_only {
            let changes = self.store.foreign_changes()?;
            if self.foreign.swap(changes, Ordering::AcqRel) != changes {
                self.cache.clear();
                self.look()?;
            }
        }
        Ok(())
    }

    /// Bytes that are taken to remember what is current, and of how many records.
    pub fn known_records(&self) -> (u64, u64) {
        self.current.size()
    }

    /// Whoever waits for it waits for nobody who has stepped back.
    fn lock_state(&self) -> LockedState<'_> {
        let forward = nice::forward();
        LockedState {
            state: self.state.lock(),
            _forward: forward,
        }
    }

    fn lock_chronicle(&self) -> MutexGuard<'_, Chronicle> {
        self.chronicle.lock()
    }

    /// Makes durable all that was committed.
    ///
    /// # Errors
    /// When the store fails.
    pub fn sync(&self) -> Result<(), VaultError> {
        Ok(self.store.sync()?)
    }

    /// Nodes registered for reaping: at most `limit` of those after `after`.
    ///
    /// # Errors
    /// When the store fails.
    pub fn orphans(&self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeId>, VaultError> {
        self.read(|records| Ok(records.orphans(after, limit)?))
    }
}

/// The state, which nobody else changes meanwhile.
struct LockedState<'a> {
    // Let go of first.
    state: MutexGuard<'a, State>,
    _forward: nice::Forward,
}

impl std::ops::Deref for LockedState<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl std::ops::DerefMut for LockedState<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}
