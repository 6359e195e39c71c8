//! The store: opaque records in transactions. It knows nothing of cryptography.
//!
//! Everything that it returns is hostile input: the layer above authenticates every byte before
//! use. Callers hold a [`Store`] and, beside it, the [`LocalPlace`] of its files on this host; only
//! [`open()`] knows what is behind them. An implementor writes what the three traits here require;
//! [`ReadRecords`] and [`WriteRecords`] are made of that.
//!
//! A store must never show a part of a transaction, nor a later commit without all earlier ones, not
//! even after a crash.

mod bounds;
mod copy;
mod error;
mod kinds;
mod local;
mod lock;
#[cfg(test)]
pub(crate) mod memory;
mod open;
mod options;
mod place;
mod sqlite;
mod strangers;
#[cfg(test)]
mod tests;

pub use copy::{CopyError, GoOn, copy};
pub use error::{StoreError, StoreErrorKind};
pub use kinds::{EntryRow, MANY_BYTES, ReadRecords, WriteRecords};
pub use local::LocalPlace;
pub use lock::{Holder, holder};
pub use open::{create, is_left_over, open};
pub use options::{Mode, OpenOptions};
pub use place::{FILES, Footprint, SOCKET, refuse_unsafe_filesystem};

/// A node's id, which is the inode number for the kernel. Never reused. 0 is the vault's own system
/// node, 1 the root directory. At most [`MAX_ID`].
pub type NodeId = u64;

/// Largest id, version number or sequence in the store: databases have signed integers, and the
/// control directory needs some inode numbers above.
pub const MAX_ID: u64 = (1 << 62) - 1;

/// The keyed hash of a name, under which a directory files it.
pub type NameTag = [u8; 32];

/// How soon a transaction must be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Atomic now, and on disk with the next [`Now`](Self::Now): for names and attributes.
    Soon,
    /// On disk before the call returns, together with all earlier commits.
    Now,
}

/// Identifies a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordId {
    /// The header.
    Header,
    /// The keyring record.
    Keyring,
    /// The sealed state record.
    State,
    /// A node.
    Node(NodeId),
    /// An entry: its directory, and the name's tag.
    Entry(NodeId, NameTag),
    /// A version of a node's content. It owns chunks.
    Version(NodeId, u64),
    /// A node registered for reaping. The record has no value.
    Orphan(NodeId),
    /// An event of the key-management history, by its sequence.
    Event(u64),
}

/// A record as stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Of a node or a version: the generation of the master key that wraps its data key, in the
    /// clear, so that a rotation finds the records that are left. 0 for all others.
    pub generation: u64,
    /// The opaque rest of the record.
    pub value: Vec<u8>,
}

/// Identifies a chunk: node, version, index.
pub type ChunkKey = (NodeId, u64, u32);

/// The records that a scan goes through, in the order of their ids: those after the given id, or all
/// of them.
#[derive(Clone, Copy, Debug)]
pub enum Range {
    /// All nodes.
    Nodes(Option<NodeId>),
    /// All entries.
    Entries(Option<(NodeId, NameTag)>),
    /// The entries of one directory.
    EntriesOf(NodeId, Option<NameTag>),
    /// All versions.
    Versions(Option<(NodeId, u64)>),
    /// The versions of one node.
    VersionsOf(NodeId),
    /// The nodes registered for reaping.
    Orphans(Option<NodeId>),
    /// The key-management history.
    Events(Option<u64>),
}

impl Range {
    /// The id after which it begins.
    pub fn after(&self) -> Option<RecordId> {
        match *self {
            Self::Nodes(after) => after.map(RecordId::Node),
            Self::Entries(after) => after.map(|(directory, tag)| RecordId::Entry(directory, tag)),
            Self::EntriesOf(directory, after) => after.map(|tag| RecordId::Entry(directory, tag)),
            Self::Versions(after) => after.map(|(node, version)| RecordId::Version(node, version)),
            Self::VersionsOf(_) => None,
            Self::Orphans(after) => after.map(RecordId::Orphan),
            Self::Events(after) => after.map(RecordId::Event),
        }
    }
}

/// One scan.
#[derive(Clone, Copy, Debug)]
pub struct Scan {
    /// The records to go through.
    pub range: Range,
    /// Skips nodes and versions under this generation.
    pub but: Option<u64>,
    /// Limit on the number of records.
    pub limit: usize,
    /// The scan ends with the record with which the values have this many bytes together.
    pub bytes: usize,
    /// Whether the caller needs generations and values. Otherwise a store may leave them out, and
    /// must not fail because of them.
    pub with_values: bool,
}

impl Scan {
    /// At most `limit` whole records.
    pub fn of(range: Range, limit: usize) -> Self {
        Self {
            range,
            but: None,
            limit,
            bytes: usize::MAX,
            with_values: true,
        }
    }
}

/// Reading in one transaction, which sees the state of one commit.
pub trait Read {
    /// One record.
    fn get(&mut self, id: RecordId) -> Result<Option<Record>, StoreError>;

    /// Several records, as [`Scan`] says, without a secondary index.
    fn scan(&mut self, scan: &Scan) -> Result<Vec<(RecordId, Record)>, StoreError>;

    /// Passes one sealed chunk to `take`; returns whether it exists.
    fn with_chunk(
        &mut self,
        key: ChunkKey,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, StoreError>;

    /// A version with its first chunk. A store that can find both in one look-up does so: it is
    /// enough to read a small secret.
    #[allow(clippy::type_complexity)]
    fn version_and_first_chunk(
        &mut self,
        node: NodeId,
        version: u64,
    ) -> Result<Option<(Record, Option<Vec<u8>>)>, StoreError> {
        let Some(record) = self.get(RecordId::Version(node, version))? else {
            return Ok(None);
        };
        let mut first = None;
        self.with_chunk((node, version, 0), &mut |sealed| {
            first = Some(sealed.to_vec());
        })?;
        Ok(Some((record, first)))
    }

    /// The number of nodes and versions under `generation`, and their number under all generations.
    fn keys_under(&mut self, generation: u64) -> Result<(u64, u64), StoreError> {
        let (mut under, mut total) = (0, 0);
        for range in [Range::Nodes(None), Range::Versions(None)] {
            for (_, record) in self.scan(&Scan::of(range, usize::MAX))? {
                under += u64::from(record.generation == generation);
                total += 1;
            }
        }
        Ok((under, total))
    }

    /// What is left of damage to the medium; `None` if a store cannot have any.
    fn salvage(&mut self) -> Option<&mut dyn Salvage>;
}

/// Writing in one transaction.
pub trait Write: Read {
    /// Stores a record. A node, an entry, an orphan and the three single records are inserted or
    /// replaced. A version must exist: its record is replaced, and its chunks stay. An event must be
    /// new.
    fn put(&mut self, id: RecordId, generation: u64, value: &[u8]) -> Result<(), StoreError>;

    /// Removes a node, an entry, an orphan, or a version with all its chunks, if it exists. Nothing
    /// else is ever removed.
    fn delete(&mut self, id: RecordId) -> Result<(), StoreError>;

    /// Inserts a version without its chunks, and makes room for `chunks` of them.
    /// [`put_chunks`](Self::put_chunks) adds them, in this or later transactions of this store.
    /// Until the last chunk is there, callers may only remove the version.
    fn begin_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &Record,
        chunks: u32,
    ) -> Result<(), StoreError>;

    /// Adds chunks, from `index` on, to a version that was begun and has all chunks before `index`.
    fn put_chunks(
        &mut self,
        node: NodeId,
        version: u64,
        index: u32,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError>;

    /// Removes a version and overwrites its chunks, instead of only freeing them: they may hold a
    /// content that stays, under a key that an attacker has.
    fn erase_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError>;

    /// Inserts a version with all its chunks. The version must be new.
    fn insert_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &Record,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError> {
        let chunks: Vec<_> = chunks.collect();
        let count = u32::try_from(chunks.len())
            .map_err(|_| StoreError::new(StoreErrorKind::Io, "a version has too many chunks"))?;
        self.begin_version(node, version, record, count)?;
        self.put_chunks(node, version, 0, &mut chunks.into_iter())
    }

    /// Replaces a version and its chunks. The old chunks are erased, as
    /// [`erase_version`](Self::erase_version) does it.
    fn replace_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &Record,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.erase_version(node, version)?;
        self.insert_version(node, version, record, chunks)
    }

    /// Replaces the record of a node or a version, but not its chunks, by `new` if it is `old`;
    /// returns whether it was.
    fn exchange(&mut self, id: RecordId, old: &Record, new: &Record) -> Result<bool, StoreError> {
        let is_same = self.get(id)?.as_ref() == Some(old);
        if is_same {
            self.put(id, new.generation, &new.value)?;
        }
        Ok(is_same)
    }
}

/// What a damaged medium still holds. Only checks and repairs need it.
pub trait Salvage {
    /// Every chunk that claims to be this one, wherever it is. Goes through all chunks.
    fn chunk_copies(&mut self, key: ChunkKey) -> Result<Vec<Vec<u8>>, StoreError>;

    /// The keys of all chunks, in the store's own order, including chunks that no version owns.
    /// `after` is the cursor that the previous call returned.
    fn scan_chunk_keys(
        &mut self,
        after: Option<u64>,
        limit: usize,
    ) -> Result<(Vec<ChunkKey>, Option<u64>), StoreError>;

    /// Removes the chunks that no version owns, in a transaction for writing; returns their number.
    fn delete_stray_chunks(&mut self) -> Result<u64, StoreError>;
}

/// The body of a transaction gave up. The caller keeps the body's own error.
#[derive(Debug)]
pub struct Abort;

/// The body of a transaction, for [`Store::read`] and [`Store::write`].
pub type TxFn<'a, T> = &'a mut dyn FnMut(&mut T) -> Result<(), Abort>;

/// The outcome of [`Store::scrub`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scrub {
    /// The medium holds no earlier state of any record.
    Scrubbed,
    /// A reader of an earlier state was in the way; a later attempt may succeed.
    ReaderInTheWay,
}

/// A store of records.
///
/// A store may run a body more than once, so a body must start from scratch each time. Callers
/// prefer [`read()`] and [`write()`], which pass results and errors through.
pub trait Store: Send + Sync + 'static {
    /// Runs `body` in a read transaction. The outer error is the store's; `Ok(Err(Abort))` means
    /// that the body gave up.
    fn read(&self, body: TxFn<'_, dyn Read>) -> Result<Result<(), Abort>, StoreError>;

    /// Runs `body` in a write transaction and commits, unless the body aborts. After `Ok(Ok(()))`
    /// the transaction is as durable as requested; after an error nothing of it remains. Callers
    /// must not be inside the body of another `write`.
    fn write(
        &self,
        durability: Durability,
        body: TxFn<'_, dyn Write>,
    ) -> Result<Result<(), Abort>, StoreError>;

    /// Makes all commits so far durable.
    fn sync(&self) -> Result<(), StoreError>;

    /// Makes all commits durable, and overwrites what they have replaced and removed.
    fn scrub(&self) -> Result<Scrub, StoreError>;

    /// A number that changes whenever another process commits. Cheap.
    fn foreign_changes(&self) -> Result<u64, StoreError>;

    /// Whether the store refuses to write until the vault is reopened, because a failure left
    /// unknown what is on disk. Cheap.
    fn has_stopped_writing(&self) -> bool;

    /// Makes later reads go to the medium, not to what the store keeps of it in memory.
    fn drop_caches(&self);
}

/// Runs `body` in a read transaction of `store`.
///
/// # Errors
/// The store's own, or the error of `body`.
pub fn read<T, E: From<StoreError>>(
    store: &dyn Store,
    mut body: impl FnMut(&mut dyn Read) -> Result<T, E>,
) -> Result<T, E> {
    let mut outcome = None;
    let run = store.read(&mut |tx| keep(&mut outcome, body(tx)));
    finish(run, outcome)
}

/// Runs `body` in a write transaction of `store` and commits, unless it returns an error.
///
/// # Errors
/// The store's own, or the error of `body`; nothing was written then.
pub fn write<T, E: From<StoreError>>(
    store: &dyn Store,
    durability: Durability,
    mut body: impl FnMut(&mut dyn Write) -> Result<T, E>,
) -> Result<T, E> {
    let mut outcome = None;
    let run = store.write(durability, &mut |tx| keep(&mut outcome, body(tx)));
    finish(run, outcome)
}

fn keep<T, E>(outcome: &mut Option<Result<T, E>>, result: Result<T, E>) -> Result<(), Abort> {
    let verdict = if result.is_ok() { Ok(()) } else { Err(Abort) };
    *outcome = Some(result);
    verdict
}

fn finish<T, E: From<StoreError>>(
    run: Result<Result<(), Abort>, StoreError>,
    outcome: Option<Result<T, E>>,
) -> Result<T, E> {
    match (run, outcome) {
        // The body's own error says more than that of the rollback after it.
        (_, Some(Err(error))) => Err(error),
        (Err(error), _) => Err(error.into()),
        (Ok(_), Some(Ok(value))) => Ok(value),
        (Ok(_), None) => {
            Err(StoreError::new(StoreErrorKind::Io, "the store did not run a transaction").into())
        }
    }
}
