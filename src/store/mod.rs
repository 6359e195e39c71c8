//! The store: opaque records in transactions. It knows nothing of cryptography.
//!
//! Everything that it returns is hostile input: the layer above authenticates every byte before
//! use. A replicated store would implement the same trait; so far [`sqlite`] is the only
//! implementation.

mod copy;
mod error;
mod lock;
mod place;
pub mod sqlite;
mod strangers;

pub use copy::{CopyError, GoOn, copy};
pub use error::{StoreError, StoreErrorKind};
pub use lock::{Holder, holder};
pub use place::Footprint;
pub use place::SOCKET;
pub use place::refuse_unsafe_filesystem;
pub use sqlite::{Mode, OpenOptions, SqliteStore, is_left_over};

/// A node's id, which is the inode number for the kernel. Never reused. 0 is the vault's own system
/// node, 1 the root directory. At most [`MAX_ID`].
pub type NodeId = u64;

/// Largest id, version number or sequence in the store: SQLite's integers are signed, and the
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

/// A node or a version as stored. The generation is in the clear, so that a rotation finds the
/// records that are left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedRecord {
    /// The generation of the master key that wraps the record's key.
    pub generation: u64,
    /// The opaque rest of the record.
    pub value: Vec<u8>,
}

/// One row of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// The directory.
    pub directory: NodeId,
    /// The name's tag.
    pub tag: NameTag,
    /// The opaque entry.
    pub value: Vec<u8>,
}

/// Soft limit on the bytes of records that one scan returns.
pub const MANY_BYTES: usize = 512 << 10;

/// Identifies a chunk: node, version, index.
pub type ChunkKey = (NodeId, u64, u32);

/// Reading in one transaction, which sees the state of one commit.
///
/// Scans return at most `limit` rows after the given key, in key order, and never use a secondary
/// index.
pub trait Read {
    /// The header; `None` if there is none.
    fn header(&mut self) -> Result<Option<Vec<u8>>, StoreError>;
    /// The keyring record.
    fn keyring(&mut self) -> Result<Option<Vec<u8>>, StoreError>;
    /// The sealed state record.
    fn state(&mut self) -> Result<Option<Vec<u8>>, StoreError>;
    /// One node.
    fn node(&mut self, id: NodeId) -> Result<Option<KeyedRecord>, StoreError>;
    /// One entry of a directory.
    fn entry(&mut self, directory: NodeId, tag: &NameTag) -> Result<Option<Vec<u8>>, StoreError>;
    /// A directory's entries with a tag greater than `after`, ordered by tag.
    fn entries(
        &mut self,
        directory: NodeId,
        after: Option<&NameTag>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, StoreError>;
    /// One version of a node's content.
    fn version(&mut self, node: NodeId, version: u64) -> Result<Option<KeyedRecord>, StoreError>;
    /// A version with its first chunk, in one look-up: enough to read a small secret.
    #[allow(clippy::type_complexity)]
    fn version_and_first_chunk(
        &mut self,
        node: NodeId,
        version: u64,
    ) -> Result<Option<(KeyedRecord, Option<Vec<u8>>)>, StoreError>;
    /// The version numbers stored for a node, ascending.
    fn versions_of(&mut self, node: NodeId) -> Result<Vec<u64>, StoreError>;
    /// Passes one sealed chunk to `take`; returns whether it exists.
    fn with_chunk(
        &mut self,
        key: ChunkKey,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, StoreError>;
    /// A copy of one sealed chunk.
    fn chunk(&mut self, key: ChunkKey) -> Result<Option<Vec<u8>>, StoreError> {
        let mut copy = None;
        self.with_chunk(key, &mut |sealed| copy = Some(sealed.to_vec()))?;
        Ok(copy)
    }
    /// Every row that claims to be this chunk, wherever it is. Scans all chunks: for repairs.
    fn chunk_copies(&mut self, key: ChunkKey) -> Result<Vec<Vec<u8>>, StoreError>;
    /// Nodes registered for reaping that are greater than `after`, ascending.
    fn orphans(&mut self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeId>, StoreError>;
    /// Events in order, beginning with sequence `from`.
    fn events(&mut self, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError>;
    /// All nodes.
    fn scan_nodes(
        &mut self,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<(NodeId, KeyedRecord)>, StoreError>;
    /// All versions.
    #[allow(clippy::type_complexity)]
    fn scan_versions(
        &mut self,
        after: Option<(NodeId, u64)>,
        limit: usize,
    ) -> Result<Vec<((NodeId, u64), KeyedRecord)>, StoreError>;
    /// All entries.
    fn scan_entries(
        &mut self,
        after: Option<(NodeId, &NameTag)>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, StoreError>;
    /// The keys of all chunks, in the store's own order, including chunks that no version owns.
    /// `after` is the cursor that the previous call returned.
    fn scan_chunk_keys(
        &mut self,
        after: Option<u64>,
        limit: usize,
    ) -> Result<(Vec<ChunkKey>, Option<u64>), StoreError>;
    /// The number of nodes and versions under `generation`, and their number under all generations.
    fn keys_under(&mut self, generation: u64) -> Result<(u64, u64), StoreError>;
    /// Nodes under other generations than `generation`.
    fn nodes_not_under(
        &mut self,
        generation: u64,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<NodeId>, StoreError>;
    /// The same with their records. Ends before `limit` once they have [`MANY_BYTES`].
    fn node_records_not_under(
        &mut self,
        generation: u64,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<(NodeId, KeyedRecord)>, StoreError>;
    /// Versions under other generations than `generation`.
    fn versions_not_under(
        &mut self,
        generation: u64,
        after: Option<(NodeId, u64)>,
        limit: usize,
    ) -> Result<Vec<(NodeId, u64)>, StoreError>;
    /// The same with their records. Ends before `limit` once they have [`MANY_BYTES`].
    #[allow(clippy::type_complexity)]
    fn version_records_not_under(
        &mut self,
        generation: u64,
        after: Option<(NodeId, u64)>,
        limit: usize,
    ) -> Result<Vec<((NodeId, u64), KeyedRecord)>, StoreError>;
}

/// Writing in one transaction.
pub trait Write: Read {
    /// Replaces the header.
    fn put_header(&mut self, value: &[u8]) -> Result<(), StoreError>;
    /// Replaces the keyring record.
    fn put_keyring(&mut self, value: &[u8]) -> Result<(), StoreError>;
    /// Replaces the state record.
    fn put_state(&mut self, value: &[u8]) -> Result<(), StoreError>;
    /// Inserts or replaces a node.
    fn put_node(&mut self, id: NodeId, record: &KeyedRecord) -> Result<(), StoreError>;
    /// Removes a node, if it exists.
    fn delete_node(&mut self, id: NodeId) -> Result<(), StoreError>;
    /// Inserts or replaces an entry.
    fn put_entry(
        &mut self,
        directory: NodeId,
        tag: &NameTag,
        value: &[u8],
    ) -> Result<(), StoreError>;
    /// Removes an entry, if it exists.
    fn delete_entry(&mut self, directory: NodeId, tag: &NameTag) -> Result<(), StoreError>;
    /// Inserts a version with all its chunks. The key must be new: only
    /// [`rewrap_version`](Self::rewrap_version) changes a version.
    fn insert_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError>;
    /// Inserts a version without its chunks, and reserves numbers for `chunks` of them.
    /// [`put_chunks`](Self::put_chunks) adds them, in this or later transactions of this store.
    /// Until the last chunk is there, callers may only remove the version.
    fn begin_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
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
    /// Replaces a version's record, but not its chunks.
    fn rewrap_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
    ) -> Result<(), StoreError>;
    /// Replaces a node's record by `new` if it is `old`; returns whether it was.
    fn exchange_node(
        &mut self,
        id: NodeId,
        old: &KeyedRecord,
        new: &KeyedRecord,
    ) -> Result<bool, StoreError>;
    /// Replaces a version's record, but not its chunks, by `new` if it is `old`; returns whether it
    /// was.
    fn exchange_version(
        &mut self,
        node: NodeId,
        version: u64,
        old: &KeyedRecord,
        new: &KeyedRecord,
    ) -> Result<bool, StoreError>;
    /// Replaces a version and its chunks. The old chunks are overwritten, not only freed: they may
    /// hold the same content under a key that an attacker has.
    fn replace_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError>;
    /// Removes a version and all its chunks, if it exists.
    fn delete_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError>;
    /// Removes a version and overwrites its chunks, as [`replace_version`](Self::replace_version)
    /// does.
    fn erase_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError>;
    /// Removes the chunks that no version owns; returns their number.
    fn delete_stray_chunks(&mut self) -> Result<u64, StoreError>;
    /// Registers a node for reaping.
    fn put_orphan(&mut self, id: NodeId) -> Result<(), StoreError>;
    /// Removes a node from the list for reaping.
    fn delete_orphan(&mut self, id: NodeId) -> Result<(), StoreError>;
    /// Appends an event; the sequence must be new.
    fn insert_event(&mut self, sequence: u64, value: &[u8]) -> Result<(), StoreError>;
}

/// The body of a transaction gave up. The caller keeps the body's own error.
#[derive(Debug)]
pub struct Abort;

/// The body of a transaction, for [`Store::read`] and [`Store::write`].
pub type TxFn<'a, T> = &'a mut dyn FnMut(&mut T) -> Result<(), Abort>;

/// A store of records.
///
/// A store may run a body more than once, so a body must start from scratch each time. Callers
/// prefer [`read()`] and [`write()`], which pass results and errors through.
pub trait Store: Send + Sync + 'static {
    /// Runs `body` in a read transaction. The outer error is the store's; `Ok(Err(Abort))` means
    /// that the body gave up.
    fn read(&self, body: TxFn<'_, dyn Read>) -> Result<Result<(), Abort>, StoreError>;

    /// Runs `body` in a write transaction and commits, unless the body aborts. After `Ok(Ok(()))`
    /// the transaction is as durable as requested; after an error nothing of it remains.
    fn write(
        &self,
        durability: Durability,
        body: TxFn<'_, dyn Write>,
    ) -> Result<Result<(), Abort>, StoreError>;

    /// Makes all commits so far durable.
    fn sync(&self) -> Result<(), StoreError>;

    /// A number that changes whenever another process commits. Cheap.
    fn foreign_changes(&self) -> Result<u64, StoreError>;

    /// Whether the store refuses to write until the vault is reopened, because a failure left
    /// unknown what is on disk. Cheap.
    fn has_stopped_writing(&self) -> bool;
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
