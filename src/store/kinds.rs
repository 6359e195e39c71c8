//! The records by their kinds, for callers: a thin layer over the calls that a store implements.

use super::bounds::MAX_VERSIONS;
use super::{
    ChunkKey, NameTag, NodeId, Range, Read, Record, RecordId, Scan, StoreError,
    StoreErrorKind as Kind, Write,
};

/// Soft limit on the bytes of records that one scan for a rotation returns.
pub const MANY_BYTES: usize = 512 << 10;

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

/// Identifies a version: node, number.
type VersionKey = (NodeId, u64);

/// Reading by kinds. Scans return at most `limit` records after the given key, in key order.
pub trait ReadRecords: Read {
    /// The header; `None` if there is none.
    fn header(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.get(RecordId::Header)?.map(value))
    }

    /// The keyring record.
    fn keyring(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.get(RecordId::Keyring)?.map(value))
    }

    /// The sealed state record.
    fn state(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.get(RecordId::State)?.map(value))
    }

    /// One node.
    fn node(&mut self, id: NodeId) -> Result<Option<Record>, StoreError> {
        self.get(RecordId::Node(id))
    }

    /// One entry of a directory.
    fn entry(&mut self, directory: NodeId, tag: &NameTag) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.get(RecordId::Entry(directory, *tag))?.map(value))
    }

    /// One version of a node's content.
    fn version(&mut self, node: NodeId, version: u64) -> Result<Option<Record>, StoreError> {
        self.get(RecordId::Version(node, version))
    }

    /// The version numbers stored for a node, ascending.
    fn versions_of(&mut self, node: NodeId) -> Result<Vec<u64>, StoreError> {
        let found = self.scan(&Scan {
            with_values: false,
            ..Scan::of(Range::VersionsOf(node), MAX_VERSIONS + 1)
        })?;
        if found.len() > MAX_VERSIONS {
            return Err(StoreError::new(
                Kind::Corrupt,
                format_args!(
                    "cannot list the versions of node {node}: there are too many; the store was \
                     damaged or tampered with"
                ),
            ));
        }
        Ok(versions(found).map(|((_, number), _)| number).collect())
    }

    /// A copy of one sealed chunk.
    fn chunk(&mut self, key: ChunkKey) -> Result<Option<Vec<u8>>, StoreError> {
        let mut copy = None;
        self.with_chunk(key, &mut |sealed| copy = Some(sealed.to_vec()))?;
        Ok(copy)
    }

    /// A directory's entries with a tag greater than `after`, ordered by tag.
    fn entries(
        &mut self,
        directory: NodeId,
        after: Option<&NameTag>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, StoreError> {
        let range = Range::EntriesOf(directory, after.copied());
        Ok(entries(self.scan(&Scan::of(range, limit))?))
    }

    /// All entries.
    fn scan_entries(
        &mut self,
        after: Option<(NodeId, &NameTag)>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, StoreError> {
        let range = Range::Entries(after.map(|(directory, tag)| (directory, *tag)));
        Ok(entries(self.scan(&Scan::of(range, limit))?))
    }

    /// Nodes registered for reaping that are greater than `after`, ascending.
    fn orphans(&mut self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeId>, StoreError> {
        let found = self.scan(&Scan::of(Range::Orphans(after), limit))?;
        let id = |(id, _)| match id {
            RecordId::Orphan(id) => Some(id),
            _ => None,
        };
        Ok(found.into_iter().filter_map(id).collect())
    }

    /// Events in order, beginning with sequence `from`.
    fn events(&mut self, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let found = self.scan(&Scan::of(Range::Events(from.checked_sub(1)), limit))?;
        let event = |(id, record): (RecordId, Record)| match id {
            RecordId::Event(sequence) => Some((sequence, record.value)),
            _ => None,
        };
        Ok(found.into_iter().filter_map(event).collect())
    }

    /// All nodes.
    fn scan_nodes(
        &mut self,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<(NodeId, Record)>, StoreError> {
        Ok(nodes(self.scan(&Scan::of(Range::Nodes(after), limit))?).collect())
    }

    /// All versions.
    fn scan_versions(
        &mut self,
        after: Option<VersionKey>,
        limit: usize,
    ) -> Result<Vec<(VersionKey, Record)>, StoreError> {
        Ok(versions(self.scan(&Scan::of(Range::Versions(after), limit))?).collect())
    }

    /// Nodes under other generations than `generation`.
    fn nodes_not_under(
        &mut self,
        generation: u64,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<NodeId>, StoreError> {
        let found = self.scan(&Scan {
            but: Some(generation),
            with_values: false,
            ..Scan::of(Range::Nodes(after), limit)
        })?;
        Ok(nodes(found).map(|(id, _)| id).collect())
    }

    /// The same with their records. Ends before `limit` once they have [`MANY_BYTES`].
    fn node_records_not_under(
        &mut self,
        generation: u64,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<(NodeId, Record)>, StoreError> {
        let found = self.scan(&Scan {
            but: Some(generation),
            bytes: MANY_BYTES,
            ..Scan::of(Range::Nodes(after), limit)
        })?;
        Ok(nodes(found).collect())
    }

    /// Versions under other generations than `generation`.
    fn versions_not_under(
        &mut self,
        generation: u64,
        after: Option<VersionKey>,
        limit: usize,
    ) -> Result<Vec<VersionKey>, StoreError> {
        let found = self.scan(&Scan {
            but: Some(generation),
            with_values: false,
            ..Scan::of(Range::Versions(after), limit)
        })?;
        Ok(versions(found).map(|(key, _)| key).collect())
    }

    /// The same with their records. Ends before `limit` once they have [`MANY_BYTES`].
    fn version_records_not_under(
        &mut self,
        generation: u64,
        after: Option<VersionKey>,
        limit: usize,
    ) -> Result<Vec<(VersionKey, Record)>, StoreError> {
        let found = self.scan(&Scan {
            but: Some(generation),
            bytes: MANY_BYTES,
            ..Scan::of(Range::Versions(after), limit)
        })?;
        Ok(versions(found).collect())
    }
}

impl<T: Read + ?Sized> ReadRecords for T {}

fn value(record: Record) -> Vec<u8> {
    record.value
}

fn nodes(found: Vec<(RecordId, Record)>) -> impl Iterator<Item = (NodeId, Record)> {
    found.into_iter().filter_map(|(id, record)| match id {
        RecordId::Node(id) => Some((id, record)),
        _ => None,
    })
}

fn versions(found: Vec<(RecordId, Record)>) -> impl Iterator<Item = (VersionKey, Record)> {
    found.into_iter().filter_map(|(id, record)| match id {
        RecordId::Version(node, version) => Some(((node, version), record)),
        _ => None,
    })
}

fn entries(found: Vec<(RecordId, Record)>) -> Vec<EntryRow> {
    let row = |(id, record): (RecordId, Record)| match id {
        RecordId::Entry(directory, tag) => Some(EntryRow {
            directory,
            tag,
            value: record.value,
        }),
        _ => None,
    };
    found.into_iter().filter_map(row).collect()
}

/// Writing by kinds.
pub trait WriteRecords: Write {
    /// Replaces the header.
    fn put_header(&mut self, value: &[u8]) -> Result<(), StoreError> {
        self.put(RecordId::Header, 0, value)
    }

    /// Replaces the keyring record.
    fn put_keyring(&mut self, value: &[u8]) -> Result<(), StoreError> {
        self.put(RecordId::Keyring, 0, value)
    }

    /// Replaces the state record.
    fn put_state(&mut self, value: &[u8]) -> Result<(), StoreError> {
        self.put(RecordId::State, 0, value)
    }

    /// Inserts or replaces a node.
    fn put_node(&mut self, id: NodeId, record: &Record) -> Result<(), StoreError> {
        self.put(RecordId::Node(id), record.generation, &record.value)
    }

    /// Removes a node, if it exists.
    fn delete_node(&mut self, id: NodeId) -> Result<(), StoreError> {
        self.delete(RecordId::Node(id))
    }

    /// Inserts or replaces an entry.
    fn put_entry(
        &mut self,
        directory: NodeId,
        tag: &NameTag,
        value: &[u8],
    ) -> Result<(), StoreError> {
        self.put(RecordId::Entry(directory, *tag), 0, value)
    }

    /// Removes an entry, if it exists.
    fn delete_entry(&mut self, directory: NodeId, tag: &NameTag) -> Result<(), StoreError> {
        self.delete(RecordId::Entry(directory, *tag))
    }

    /// Replaces a version's record, but not its chunks.
    fn rewrap_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &Record,
    ) -> Result<(), StoreError> {
        let id = RecordId::Version(node, version);
        self.put(id, record.generation, &record.value)
    }

    /// Removes a version and all its chunks, if it exists.
    fn delete_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError> {
        self.delete(RecordId::Version(node, version))
    }

    /// Registers a node for reaping.
    fn put_orphan(&mut self, id: NodeId) -> Result<(), StoreError> {
        self.put(RecordId::Orphan(id), 0, &[])
    }

    /// Removes a node from the list for reaping.
    fn delete_orphan(&mut self, id: NodeId) -> Result<(), StoreError> {
        self.delete(RecordId::Orphan(id))
    }

    /// Appends an event; the sequence must be new.
    fn insert_event(&mut self, sequence: u64, value: &[u8]) -> Result<(), StoreError> {
        self.put(RecordId::Event(sequence), 0, value)
    }

    /// [`exchange`](Write::exchange) of a node.
    fn exchange_node(
        &mut self,
        id: NodeId,
        old: &Record,
        new: &Record,
    ) -> Result<bool, StoreError> {
        self.exchange(RecordId::Node(id), old, new)
    }

    /// [`exchange`](Write::exchange) of a version.
    fn exchange_version(
        &mut self,
        node: NodeId,
        version: u64,
        old: &Record,
        new: &Record,
    ) -> Result<bool, StoreError> {
        self.exchange(RecordId::Version(node, version), old, new)
    }
}

impl<T: Write + ?Sized> WriteRecords for T {}
