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

mod anchor;
mod cache;
mod check;
mod chronicle;
mod content;
mod entry;
mod error;
mod node;
mod open;
mod ops;
mod rotation;
mod state;
mod summary;
#[cfg(test)]
mod tests;
mod tx;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::crypto::schedule::digest;
use crate::crypto::{SecretBytes, SetSum};
use crate::keyring::{EventRow, Keyring, KeyringError};
use crate::kms::{KeyUri, Kms};
use crate::store::{self, Durability, KeyedRecord, NameTag, NodeId, Read, SqliteStore, Store as _};

pub use anchor::{Anchor, Anchors, decode as decode_anchor};
pub use check::{CheckReport, Problem, check};
pub use chronicle::{HistoryLine, RetiredGeneration};
pub use content::{CHUNK, Version};
pub use entry::{Entry, MAX_NAME};
pub use error::{Failure, VaultError};
pub use node::{Attributes, Body, DirectoryBody, FileBody, Kind, Node, ROOT, SYSTEM, Timestamp};
pub(crate) use open::real_path;
pub use open::{Created, InitOptions, OpenOptions, init};
pub use ops::{
    AttributeChange, MAX_LINKS, MAX_XATTRS, NewNode, NothingOpen, OpenFiles, Publication,
    RenameMode,
};
pub use rotation::{Outcome, Phase, Progress, Request};
pub use state::State;
pub use summary::{GenerationSummary, Summary, WrapSummary};
pub use tx::Tx;

use cache::NodeCache;
use chronicle::Chronicle;
use entry::DirectoryKeys;
use state::SystemKeys;

/// A job of a write transaction. It may be run more than once.
pub type Job<'j> = &'j mut dyn FnMut(&mut Tx<'_>) -> Result<(), VaultError>;

/// An open, unlocked vault.
pub struct Vault {
    store: SqliteStore,
    keyring: RwLock<Arc<Keyring>>,
    /// What unwraps and wraps its master keys, and which keys it may be asked for.
    kms: Kms,
    pins: Vec<KeyUri>,
    rotation: rotation::Rotation,
    system: RwLock<Arc<SystemKeys>>,
    cache: NodeCache,
    /// As of the last commit; locked while a transaction runs.
    state: Mutex<State>,
    /// The same for those who only look, and must not wait for a disk.
    seen: RwLock<State>,
    foreign: AtomicU64,
    path: PathBuf,
    read_only: bool,
    /// What is left of it is to be got out: what does not fit together is passed over.
    salvage: bool,
    /// It was counted while it was opened.
    counted: bool,
    /// This host remembers it.
    anchored: bool,
    anchor: Mutex<Option<(Anchors, Anchor)>>,
    /// What the key-management history comes to.
    chronicle: Mutex<Chronicle>,
}

impl std::fmt::Debug for Vault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vault({})", self.path.display())
    }
}

/// What a file holds, as far as it was read.
#[derive(Debug)]
pub enum Content {
    /// Nothing was ever published.
    Unpublished,
    /// All of it.
    Whole {
        /// Which version.
        version: u64,
        /// Its bytes.
        bytes: SecretBytes,
    },
    /// It is to be read chunk by chunk.
    Pieces(Version),
}

/// Part of a directory, in the order of its tags.
#[derive(Debug)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<Entry>,
    /// Whether the directory ends here.
    pub complete: bool,
    /// Sum over the records of these entries.
    pub sum: SetSum,
    /// The directory as of this listing.
    pub directory: Arc<Node>,
}

impl Vault {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it was opened for reading only.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether what does not fit together is passed over and not an error.
    pub fn is_salvage(&self) -> bool {
        self.salvage
    }

    /// Whether it was counted while it was opened, or has to be in the background.
    pub fn is_counted(&self) -> bool {
        self.counted
    }

    /// The keyring as it is now.
    pub fn keyring(&self) -> Arc<Keyring> {
        Arc::clone(&self.keyring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `body` in a read transaction. What it finds may stand under a master key that was
    /// retired since its snapshot was taken, or that this process has not fetched yet: then it is
    /// run again.
    fn read<T>(
        &self,
        mut body: impl FnMut(&mut dyn Read) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        loop {
            let before = self.keyring().body().sequence;
            let result = store::read(&self.store, &mut body);
            match result {
                Err(VaultError::Keyring(KeyringError::UnknownGeneration(_)))
                    if self.has_newer_keyring(before)? => {}
                other => return other,
            }
        }
    }

    /// The state as of the last commit: of this process, or of the writer that this one reads
    /// beside.
    pub fn state(&self) -> State {
        if self.read_only {
            match self.read(|records| self.stored_state(records)) {
                Ok(state) => self.show(&state),
                Err(error) => tracing::error!("{error}"),
            }
        }
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }

    fn show(&self, state: &State) {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
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
        Arc::clone(&self.system.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The system node's keys as the transaction's snapshot has them.
    fn system_in(&self, records: &mut dyn Read) -> Result<Arc<SystemKeys>, VaultError> {
        let known = self.system();
        let record = records
            .node(SYSTEM)?
            .ok_or_else(|| VaultError::tampered("the system node", "is missing"))?;
        if record.generation == known.generation {
            return Ok(known);
        }
        let keys = Arc::new(SystemKeys::of(&Node::open(
            &self.keyring(),
            SYSTEM,
            &record,
        )?));
        if self.read_only {
            let mut system = self.system.write().unwrap_or_else(PoisonError::into_inner);
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
            }
        }
        Ok(())
    }

    /// A node.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    pub fn node(&self, id: NodeId) -> Result<Arc<Node>, VaultError> {
        self.refresh()?;
        if let Some(node) = self.cache.get(id) {
            return Ok(node);
        }
        let epoch = self.cache.epoch();
        self.read(|records| self.node_in(records, id, epoch))
    }

    /// A node inside a read transaction, from the cache if it is there. `epoch` is the cache's
    /// from before the transaction: what was committed since, its snapshot may not have.
    fn node_in(
        &self,
        records: &mut dyn Read,
        id: NodeId,
        epoch: u64,
    ) -> Result<Arc<Node>, VaultError> {
        if let Some(node) = self.cache.get(id) {
            return Ok(node);
        }
        let node = self.read_node(records, id)?;
        self.cache.offer(epoch, &node);
        Ok(node)
    }

    /// A node as the transaction's snapshot has it.
    fn read_node(&self, records: &mut dyn Read, id: NodeId) -> Result<Arc<Node>, VaultError> {
        let record = records.node(id)?.ok_or(VaultError::NotFound)?;
        Ok(Arc::new(Node::open(&self.keyring(), id, &record)?))
    }

    /// The node that `name` names in `directory`.
    ///
    /// # Errors
    /// `NotFound` when there is no such name.
    pub fn lookup(&self, directory: NodeId, name: &[u8]) -> Result<Arc<Node>, VaultError> {
        let before = self.cache.epoch();
        let parent = self.node(directory)?;
        let epoch = self.cache.epoch();
        let found = self.read(|records| self.lookup_in(records, &parent, name, epoch));
        match found {
            // The directory's key may have been replaced since it was read: once more with the one
            // that the snapshot has.
            Err(error)
                if matches!(error.failure(), Failure::Integrity)
                    || matches!(error, VaultError::NotFound) =>
            {
                self.refresh()?;
                if self.cache.epoch() == before {
                    return Err(error);
                }
                self.read(|records| {
                    let parent = self.read_node(records, directory)?;
                    self.lookup_in(records, &parent, name, epoch)
                })
            }
            found => found,
        }
    }

    fn lookup_in(
        &self,
        records: &mut dyn Read,
        parent: &Node,
        name: &[u8],
        epoch: u64,
    ) -> Result<Arc<Node>, VaultError> {
        let keys = DirectoryKeys::of(self.keyring().vault(), parent)?;
        let tag = keys.tag(name)?;
        let record = records
            .entry(parent.id, &tag)?
            .ok_or(VaultError::NotFound)?;
        let entry = keys.open(&tag, &record)?;
        self.node_of(records, parent.id, &entry, epoch)
    }

    fn node_of(
        &self,
        records: &mut dyn Read,
        directory: NodeId,
        entry: &Entry,
        epoch: u64,
    ) -> Result<Arc<Node>, VaultError> {
        let bad =
            |why| VaultError::tampered(format_args!("an entry of directory {directory}"), why);
        let node = match self.node_in(records, entry.node, epoch) {
            Err(VaultError::NotFound) => return Err(bad("names a node that is missing")),
            other => other?,
        };
        if node.kind != entry.kind {
            return Err(bad("names a node of another kind"));
        }
        Ok(node)
    }

    /// At most `limit` entries of a directory, those filed after `after`.
    ///
    /// # Errors
    /// When it is no directory, or an entry does not authenticate.
    pub fn list(
        &self,
        directory: NodeId,
        after: Option<&NameTag>,
        limit: usize,
    ) -> Result<Listing, VaultError> {
        self.refresh()?;
        self.read(|records| {
            let node = self.read_node(records, directory)?;
            let keys = DirectoryKeys::of(self.keyring().vault(), &node)?;
            let rows = records.entries(directory, after, limit)?;
            let mut sum = SetSum::default();
            let complete = rows.len() < limit;
            let mut entries = Vec::with_capacity(rows.len());
            for row in rows {
                sum.add(&keys.element(&row.tag, &row.value));
                match keys.open(&row.tag, &row.value) {
                    Ok(entry) => entries.push(entry),
                    Err(error) if self.salvage => tracing::error!("passed over: {error}"),
                    Err(error) => return Err(error),
                }
            }
            Ok(Listing {
                entries,
                complete,
                sum,
                directory: node,
            })
        })
    }

    /// A file's current content and the node it belongs to: whole if it has at most `whole` bytes.
    ///
    /// # Errors
    /// When it is no file, or does not authenticate.
    pub fn content(&self, id: NodeId, whole: u64) -> Result<(Arc<Node>, Content), VaultError> {
        self.refresh()?;
        let epoch = self.cache.epoch();
        self.read(|records| {
            // Only a writer's cache is as new as the snapshot.
            let node = match self.read_only {
                true => self.read_node(records, id)?,
                false => self.node_in(records, id, epoch)?,
            };
            let file = *node.file()?;
            if file.version == 0 {
                return Ok((node, Content::Unpublished));
            }
            let content = self.version_in(records, id, file.version, whole)?;
            let length = match &content {
                Content::Whole { bytes, .. } => bytes.len() as u64,
                Content::Pieces(version) => version.length(),
                Content::Unpublished => 0,
            };
            if length != file.size {
                let record = format_args!("version {} of node {id}", file.version);
                return Err(VaultError::tampered(
                    record,
                    "has another length than the node says",
                ));
            }
            Ok((node, content))
        })
    }

    /// One version of a file's content.
    ///
    /// # Errors
    /// When it is missing or does not authenticate.
    pub fn version(&self, id: NodeId, number: u64, whole: u64) -> Result<Content, VaultError> {
        self.read(|records| self.version_in(records, id, number, whole))
    }

    fn version_in(
        &self,
        records: &mut dyn Read,
        id: NodeId,
        number: u64,
        whole: u64,
    ) -> Result<Content, VaultError> {
        let (record, first) = records
            .version_and_first_chunk(id, number)?
            .ok_or_else(|| {
                VaultError::tampered(format_args!("version {number} of node {id}"), "is missing")
            })?;
        let version = Version::open(&self.keyring(), id, number, &record)?;
        if version.length() > whole {
            return Ok(Content::Pieces(version));
        }
        let bytes = version.whole(records, first)?;
        Ok(Content::Whole {
            version: number,
            bytes,
        })
    }

    /// One chunk of a version, padding and all.
    ///
    /// # Errors
    /// When it is missing or does not authenticate.
    pub fn chunk(&self, version: &Version, index: u32) -> Result<SecretBytes, VaultError> {
        self.read(|records| match version.chunk(records, index) {
            // The same content may stand under another key by now.
            Err(error) if error.failure() == Failure::Integrity => {
                let (node, number) = (version.node(), version.number());
                let record = records.version(node, number)?.ok_or(error)?;
                Version::open(&self.keyring(), node, number, &record)?.chunk(records, index)
            }
            chunk => chunk,
        })
    }

    /// Runs `jobs` in one transaction. Each succeeds or fails alone; the outer error means that
    /// none of them did anything.
    ///
    /// # Errors
    /// When the vault is open for reading only, or the store fails.
    pub fn transact(
        &self,
        durability: Durability,
        jobs: &mut [Job<'_>],
    ) -> Result<Vec<Result<(), VaultError>>, VaultError> {
        if self.read_only {
            return Err(VaultError::ReadOnly);
        }
        let mut state = self.lock_state();
        // Not before: whoever changes the keyring holds the state.
        let (keyring, system) = (self.keyring(), self.system());
        let mut outcomes = Vec::new();
        let finished = store::write(&self.store, durability, |records| {
            let mut tx = Tx::new(&keyring, &system, &self.cache, records, state.clone());
            outcomes = jobs
                .iter_mut()
                .map(|job| tx.run(*job))
                .collect::<Result<Vec<_>, VaultError>>()?;
            // Nothing to commit is not worth a commit; the error only rolls back.
            if !tx.is_touched() {
                return Err(Rollback::Untouched);
            }
            Ok(tx.finish()?)
        });
        match finished {
            Ok((committed, changed)) => {
                self.cache.commit(changed.into_iter());
                self.show(&committed);
                *state = committed;
            }
            Err(Rollback::Untouched) if durability == Durability::Now => self.store.sync()?,
            Err(Rollback::Untouched) => {}
            Err(Rollback::Failed(error)) => {
                self.look_again(&mut state);
                return Err(error);
            }
        }
        Ok(outcomes)
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An error after the commit leaves open whether it was one: only the store knows.
    fn look_again(&self, state: &mut State) {
        self.cache.clear();
        if let Ok(stored) = store::read(&self.store, |records| self.stored_state(records)) {
            self.show(&stored);
            *state = stored;
        }
    }

    /// Stores a keyring that `edit` has changed, and what it has to say, and then uses it.
    /// `guard` is asked inside the transaction whether that is still right.
    fn change_keyring(
        &self,
        edit: impl FnOnce(&mut Keyring) -> Result<Option<EventRow>, KeyringError>,
        guard: impl Fn(&mut dyn Read) -> Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        let mut state = self.lock_state();
        let mut next = Keyring::clone(&self.keyring());
        let event = edit(&mut next)?;
        let system = self.system();
        die_at!("keyring-before");
        let finished = store::write(&self.store, Durability::Now, |records| {
            guard(&mut *records)?;
            let mut tx = Tx::new(&next, &system, &self.cache, records, state.clone());
            tx.put_keyring(event.as_slice())?;
            let finished = tx.finish()?;
            die_at!("keyring-uncommitted");
            Ok(finished)
        });
        die_at!("keyring-stored");
        let error = match finished {
            Ok((committed, _)) => {
                self.show(&committed);
                *state = committed;
                None
            }
            Err(error) => {
                self.look_again(&mut state);
                Some(error)
            }
        };
        // Stored first, used then. Nothing can be written under it before the state is let go.
        if state.keyring == next.body().sequence {
            *self.keyring.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        }
        drop(state);
        die_at!("keyring-used");
        if let Some(error) = error {
            return Err(error);
        }
        self.lock_chronicle().take(event.as_ref())?;
        self.refresh_anchor_keyring();
        die_at!("keyring-anchored");
        Ok(())
    }

    fn lock_chronicle(&self) -> MutexGuard<'_, Chronicle> {
        self.chronicle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

    /// Counts all records and compares with the sealed state: shows whether part of the vault was
    /// replayed, inserted or deleted.
    ///
    /// # Errors
    /// `Integrity` when it was.
    pub fn recount(&self) -> Result<(), VaultError> {
        self.read(|records| {
            let state = self.stored_state(records)?;
            let system = self.system_in(records)?;
            let mut recount = state.uncounted();
            let mut directories = Vec::new();
            for_each_key(records, |key, record| {
                recount.count(&system.element(key, record), true);
                if let Key::Node(id) = key
                    && Node::says_directory(record)
                {
                    directories.push(id);
                }
            })?;
            state.must_agree_with(&recount)?;
            directories
                .into_iter()
                .try_for_each(|id| self.recount_names(records, id))
        })
    }

    /// Replaces the system node's key, and with it all sums over the vault, in one transaction that
    /// compares the old ones first.
    fn renew_system(&self, generation: u64) -> Result<(), VaultError> {
        let mut state = self.lock_state();
        let (keyring, old) = (self.keyring(), self.system());
        if old.generation == generation {
            return Ok(());
        }
        die_at!("system-before");
        let renewed = store::write(&self.store, Durability::Now, |records| {
            let record = records
                .node(SYSTEM)?
                .ok_or_else(|| VaultError::tampered("the system node", "is missing"))?;
            let mut node = Node::open(&keyring, SYSTEM, &record)?;
            node.renew_key(&keyring)?;
            let new_record = node.seal(keyring.vault())?;
            let new = SystemKeys::of(&node);
            let (mut before, mut after) = (state.uncounted(), state.uncounted());
            for_each_key(records, |key, record| {
                before.count(&old.element(key, record), true);
                let record = match key {
                    Key::Node(SYSTEM) => &new_record,
                    _ => record,
                };
                after.count(&new.element(key, record), true);
            })?;
            state.must_agree_with(&before)?;
            after.commit += 1;
            records.put_node(SYSTEM, &new_record)?;
            records.put_state(&new.seal(keyring.vault(), &after)?)?;
            Ok::<_, VaultError>((after, new))
        });
        die_at!("system-stored");
        match renewed {
            Ok((after, new)) => {
                *self.system.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                self.cache.commit([(SYSTEM, None)].into_iter());
                self.show(&after);
                *state = after;
                Ok(())
            }
            Err(error) => {
                self.take_system_again();
                self.look_again(&mut state);
                Err(error)
            }
        }
    }

    /// An error after the commit leaves open whether it was one.
    fn take_system_again(&self) {
        if let Ok(keys) = self.read(|records| self.system_in(records)) {
            *self.system.write().unwrap_or_else(PoisonError::into_inner) = keys;
        }
    }

    /// Compares a directory's names with what the directory says of them.
    fn recount_names(&self, records: &mut dyn Read, id: NodeId) -> Result<(), VaultError> {
        const BATCH: usize = 256;
        let node = self.read_node(records, id)?;
        let keys = DirectoryKeys::of(self.keyring().vault(), &node)?;
        let (mut sum, mut entries) = (SetSum::default(), 0);
        let mut after = None;
        loop {
            let batch = records.entries(id, after.as_ref(), BATCH)?;
            for row in &batch {
                sum.add(&keys.element(&row.tag, &row.value));
                entries += 1;
            }
            after = batch.last().map(|row| row.tag);
            if batch.len() < BATCH {
                break;
            }
        }
        let said = node.directory()?;
        if said.entries == entries && said.sum() == sum {
            return Ok(());
        }
        Err(VaultError::Integrity(format!(
            "names of directory {id} were replayed, inserted or deleted: it should have {} and has \
             {entries}, and their sums differ; `secretfs check` names what does not fit",
            said.entries,
        )))
    }

    /// Remembers on this host that the vault has come as far as `commit`, which must be on disk,
    /// or a power cut would look like an attack.
    ///
    /// # Errors
    /// When the anchor cannot be written.
    pub fn refresh_anchor(&self, commit: u64) -> Result<(), VaultError> {
        let mut guard = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((anchors, anchor)) = guard.as_mut() else {
            return Ok(());
        };
        if !self.read_only && anchor.commit_sequence < commit {
            anchor.commit_sequence = commit;
            anchors.store(anchor, false)?;
        }
        Ok(())
    }

    /// Has this host allow KMS keys that the vault is about to be wrapped by.
    fn pin(&self, keys: &[KeyUri]) -> Result<(), VaultError> {
        let mut guard = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((anchors, anchor)) = guard.as_mut() else {
            return Ok(());
        };
        for key in keys {
            if !anchor.kms_keys.iter().any(|known| known == key.as_str()) {
                anchor.kms_keys.push(key.to_string());
            }
        }
        anchors.store(anchor, false)
    }

    /// Remembers on this host the keyring that was just stored. A failure costs only how soon an
    /// older one is noticed.
    fn refresh_anchor_keyring(&self) {
        let mut guard = self.anchor.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((anchors, anchor)) = guard.as_mut() else {
            return;
        };
        let keyring = self.keyring();
        anchor.keyring_sequence = keyring.body().sequence;
        anchor.keyring_digest = anchor::hex(&digest(&[&keyring.encode()]));
        // Once all is over, keys that it was under need not be asked any more.
        if keyring.body().change.is_none()
            && let Ok(keys) = keyring.kms_keys()
        {
            anchor.kms_keys = keys.iter().map(ToString::to_string).collect();
        }
        if let Err(error) = anchors.store(anchor, false) {
            tracing::warn!("{error}");
        }
    }
}

/// What a data key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Node(NodeId),
    Version(NodeId, u64),
}

/// Hands all records that carry data keys to `take`, in order.
fn for_each_key(
    records: &mut (impl Read + ?Sized),
    mut take: impl FnMut(Key, &KeyedRecord),
) -> Result<(), VaultError> {
    const BATCH: usize = 256;
    let mut after = None;
    loop {
        let batch = records.scan_nodes(after, BATCH)?;
        for (id, record) in &batch {
            take(Key::Node(*id), record);
        }
        after = batch.last().map(|(id, _)| *id);
        if batch.len() < BATCH {
            break;
        }
    }
    let mut after = None;
    loop {
        let batch = records.scan_versions(after, BATCH)?;
        for ((node, version), record) in &batch {
            take(Key::Version(*node, *version), record);
        }
        after = batch.last().map(|(key, _)| *key);
        if batch.len() < BATCH {
            return Ok(());
        }
    }
}

/// Why a transaction was rolled back.
enum Rollback {
    Untouched,
    Failed(VaultError),
}

impl From<store::StoreError> for Rollback {
    fn from(error: store::StoreError) -> Self {
        Self::Failed(error.into())
    }
}

impl From<VaultError> for Rollback {
    fn from(error: VaultError) -> Self {
        Self::Failed(error)
    }
}
