//! The store: opaque records in transactions. It knows nothing of cryptography.
//!
//! What comes out of it is hostile input: the layer above authenticates every byte before use.
//! The trait is what a replicated store would have to offer; [`sqlite`] is the one there is.

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

/// A node's id: what the kernel sees as inode number. Never reused. 0 is the vault's own system
/// node, 1 the root directory. At most [`MAX_ID`].
pub type NodeId = u64;

/// Largest id, version number or sequence that the store takes: SQLite's integers are signed, and
/// the kernel's view needs some numbers above for the control directory.
pub const MAX_ID: u64 = (1 << 62) - 1;

/// The keyed hash under which a directory files a name.
pub type NameTag = [u8; 32];

/// How soon a transaction must be on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Atomic now, on disk with the next [`Now`](Self::Now): names and attributes.
    Soon,
    /// On disk before the call returns, with all that was committed before.
    Now,
}

/// A node or a version as stored: the master key generation that wraps its key, in the clear so
/// that a rotation can find what is left, and the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedRecord {
    /// Master key generation.
    pub generation: u64,
    /// Opaque.
    pub value: Vec<u8>,
}

/// One row of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryRow {
    /// The directory.
    pub directory: NodeId,
    /// Where the name is filed.
    pub tag: NameTag,
    /// Opaque.
    pub value: Vec<u8>,
}

/// Records that are this long together, in bytes, are enough to be had at once.
pub const MANY_BYTES: usize = 512 << 10;

/// Names a chunk: node, version, index.
pub type ChunkKey = (NodeId, u64, u32);

/// Reading inside one transaction: everything is seen as of one commit.
///
/// Scans return at most `limit` rows in key order, beginning after the given key, and never use a
/// secondary index.
pub trait Read {
    /// The header; `None` when there is none.
    fn header(&mut self) -> Result<Option<Vec<u8>>, StoreError>;
    /// The keyring record.
    fn keyring(&mut self) -> Result<Option<Vec<u8>>, StoreError>;
    /// The sealed state record.
    fn state(&mut self) -> Result<Option<Vec<u8>>, StoreError>;
    /// One node.
    fn node(&mut self, id: NodeId) -> Result<Option<KeyedRecord>, StoreError>;
    /// One entry of a directory.
    fn entry(&mut self, directory: NodeId, tag: &NameTag) -> Result<Option<Vec<u8>>, StoreError>;
    /// A directory's entries ordered by tag, those with a tag greater than `after`.
    fn entries(
        &mut self,
        directory: NodeId,
        after: Option<&NameTag>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, StoreError>;
    /// One version of a node's content.
    fn version(&mut self, node: NodeId, version: u64) -> Result<Option<KeyedRecord>, StoreError>;
    /// A version together with its first chunk, in one look-up: what reading a small secret needs.
    #[allow(clippy::type_complexity)]
    fn version_and_first_chunk(
        &mut self,
        node: NodeId,
        version: u64,
    ) -> Result<Option<(KeyedRecord, Option<Vec<u8>>)>, StoreError>;
    /// The version numbers stored for a node, ascending.
    fn versions_of(&mut self, node: NodeId) -> Result<Vec<u64>, StoreError>;
    /// Shows one sealed chunk to `take`; tells whether there is one.
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
    /// Every row that says that it is this chunk, wherever it is. Looks at all chunks: for repairs.
    fn chunk_copies(&mut self, key: ChunkKey) -> Result<Vec<Vec<u8>>, StoreError>;
    /// Nodes registered for reaping, ascending, at most `limit` greater than `after`.
    fn orphans(&mut self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeId>, StoreError>;
    /// Events from sequence `from` on, in order.
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
    /// The keys of all chunks, in an order of the store's own; `after` is the cursor that the
    /// previous call returned. Finds chunks that no version owns.
    fn scan_chunk_keys(
        &mut self,
        after: Option<u64>,
        limit: usize,
    ) -> Result<(Vec<ChunkKey>, Option<u64>), StoreError>;
    /// How many nodes and versions there are under `generation`, and how many in all.
    fn keys_under(&mut self, generation: u64) -> Result<(u64, u64), StoreError>;
    /// Nodes under any other generation than `generation`.
    fn nodes_not_under(
        &mut self,
        generation: u64,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<NodeId>, StoreError>;
    /// The same with their records: fewer than `limit` once they are [`MANY_BYTES`] long.
    fn node_records_not_under(
        &mut self,
        generation: u64,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<(NodeId, KeyedRecord)>, StoreError>;
    /// Versions under any other generation than `generation`.
    fn versions_not_under(
        &mut self,
        generation: u64,
        after: Option<(NodeId, u64)>,
        limit: usize,
    ) -> Result<Vec<(NodeId, u64)>, StoreError>;
    /// The same with their records: fewer than `limit` once they are [`MANY_BYTES`] long.
    #[allow(clippy::type_complexity)]
    fn version_records_not_under(
        &mut self,
        generation: u64,
        after: Option<(NodeId, u64)>,
        limit: usize,
    ) -> Result<Vec<((NodeId, u64), KeyedRecord)>, StoreError>;
}

/// Writing inside one transaction.
pub trait Write: Read {
    /// Replaces the header.
    fn put_header(&mut self, value: &[u8]) -> Result<(), StoreError>;
    /// Replaces the keyring record.
    fn put_keyring(&mut self, value: &[u8]) -> Result<(), StoreError>;
    /// Replaces the state record.
    fn put_state(&mut self, value: &[u8]) -> Result<(), StoreError>;
    /// Inserts or replaces a node.
    fn put_node(&mut self, id: NodeId, record: &KeyedRecord) -> Result<(), StoreError>;
    /// Removes a node; not an error when there is none.
    fn delete_node(&mut self, id: NodeId) -> Result<(), StoreError>;
    /// Inserts or replaces an entry.
    fn put_entry(
        &mut self,
        directory: NodeId,
        tag: &NameTag,
        value: &[u8],
    ) -> Result<(), StoreError>;
    /// Removes an entry; not an error when there is none.
    fn delete_entry(&mut self, directory: NodeId, tag: &NameTag) -> Result<(), StoreError>;
    /// Inserts a version with all its chunks. The key must be new: versions never change but for
    /// [`rewrap_version`](Self::rewrap_version).
    fn insert_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError>;
    /// Inserts a version without any of its chunks, of which there are going to be so many: they
    /// come with [`put_chunks`](Self::put_chunks), also in later transactions of this store. Until
    /// the last of them is there, nothing but removing the version may be asked of it.
    fn begin_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
        chunks: u32,
    ) -> Result<(), StoreError>;
    /// Adds chunks to a version that was begun, of which those before `index` are there.
    fn put_chunks(
        &mut self,
        node: NodeId,
        version: u64,
        index: u32,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError>;
    /// Replaces a version's record and leaves its chunks alone.
    fn rewrap_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
    ) -> Result<(), StoreError>;
    /// Puts `new` in the place of a node's record if that is `old`; whether it was.
    fn exchange_node(
        &mut self,
        id: NodeId,
        old: &KeyedRecord,
        new: &KeyedRecord,
    ) -> Result<bool, StoreError>;
    /// The same for a version's record; its chunks are left alone.
    fn exchange_version(
        &mut self,
        node: NodeId,
        version: u64,
        old: &KeyedRecord,
        new: &KeyedRecord,
    ) -> Result<bool, StoreError>;
    /// Replaces a version and its chunks by others. What stood there is overwritten, not only
    /// given back: the same content may be in it as before, under a key that somebody has.
    fn replace_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError>;
    /// Removes a version and all its chunks; not an error when there is none.
    fn delete_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError>;
    /// The same, and what stood there is overwritten, as by [`replace_version`](Self::replace_version).
    fn erase_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError>;
    /// Removes the chunks that no version owns; how many there were.
    fn delete_stray_chunks(&mut self) -> Result<u64, StoreError>;
    /// Registers a node for reaping.
    fn put_orphan(&mut self, id: NodeId) -> Result<(), StoreError>;
    /// Takes a node off the list for reaping.
    fn delete_orphan(&mut self, id: NodeId) -> Result<(), StoreError>;
    /// Appends an event; the sequence must be new.
    fn insert_event(&mut self, sequence: u64, value: &[u8]) -> Result<(), StoreError>;
}

/// The body of a transaction gave up; its own error is kept by the caller.
#[derive(Debug)]
pub struct Abort;

/// What a body passed to [`Store::read`] returns.
pub type Body<'a, T> = &'a mut dyn FnMut(&mut T) -> Result<(), Abort>;

/// A store of records.
///
/// Bodies may be run more than once, so they must start from scratch each time. Prefer
/// [`read()`] and [`write()`], which carry results and errors through.
pub trait Store: Send + Sync + 'static {
    /// Runs `body` in a read transaction. Outer error: the store's; `Ok(Err(Abort))`: the body's.
    fn read(&self, body: Body<'_, dyn Read>) -> Result<Result<(), Abort>, StoreError>;

    /// Runs `body` in a write transaction and commits, unless it aborts. After `Ok(Ok(()))` the
    /// transaction is as durable as asked; after an error nothing of it is there.
    fn write(
        &self,
        durability: Durability,
        body: Body<'_, dyn Write>,
    ) -> Result<Result<(), Abort>, StoreError>;

    /// Makes durable all that was committed so far.
    fn sync(&self) -> Result<(), StoreError>;

    /// A number that changes whenever another process has committed. Cheap.
    fn foreign_changes(&self) -> Result<u64, StoreError>;

    /// Whether nothing is written any more until the vault is opened anew, after a failure that left
    /// open what is on disk. Cheap.
    fn has_stopped_writing(&self) -> bool;
}

/// Runs `body` in a read transaction of `store`.
///
/// # Errors
/// The store's own, or what `body` returned.
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
/// The store's own, or what `body` returned; then nothing was written.
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
        // An error of the body's own says more than the rollback that followed it.
        (_, Some(Err(error))) => Err(error),
        (Err(error), _) => Err(error.into()),
        (Ok(_), Some(Ok(value))) => Ok(value),
        (Ok(_), None) => {
            Err(StoreError::new(StoreErrorKind::Io, "the store did not run a transaction").into())
        }
    }
}
