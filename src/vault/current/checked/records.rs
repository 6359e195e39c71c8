//! The traits of a transaction: reads compare, writes note, and other calls are passed on.

use crate::store::{ChunkKey, EntryRow, KeyedRecord, NameTag, NodeId, Read, StoreError, Write};

use super::super::Place;
use super::Checked;

impl<R: Read + ?Sized> Read for Checked<'_, R> {
    fn header(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        self.records.header()
    }

    fn keyring(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        self.records.keyring()
    }

    fn state(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        self.records.state()
    }

    fn node(&mut self, id: NodeId) -> Result<Option<KeyedRecord>, StoreError> {
        let found = self.records.node(id)?;
        self.compare_keyed(Place::Node(id), found.as_ref())?;
        Ok(found)
    }

    fn entry(&mut self, directory: NodeId, tag: &NameTag) -> Result<Option<Vec<u8>>, StoreError> {
        let found = self.records.entry(directory, tag)?;
        let place = Place::Entry(directory, *tag);
        if !self.compares() || self.is_current(&place, found.as_deref()) {
            return Ok(found);
        }
        let mark = found
            .as_ref()
            .map(|value| self.current.mark_of_entry(value));
        self.compare(place, mark, None)?;
        // All names were counted, but an attacker may have replaced this one since, past SQLite.
        let found = self.records.entry(directory, tag)?;
        self.must_be_counted(place, found.as_deref())?;
        Ok(found)
    }

    fn entries(
        &mut self,
        directory: NodeId,
        after: Option<&NameTag>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, StoreError> {
        let mut rows = self.records.entries(directory, after, limit)?;
        if !self.compares() {
            return Ok(rows);
        }
        for row in &mut rows {
            let place = Place::Entry(directory, row.tag);
            let mark = self.current.mark_of_entry(&row.value);
            if self.known(&place).is_some_and(|known| known.is(mark)) {
                continue;
            }
            let compared = self.compare(place, Some(mark), None);
            if self.following.is_some() {
                compared?;
                // All names were counted, but an attacker may have replaced some since, past
                // SQLite.
                let rows = self.records.entries(directory, after, limit)?;
                for row in &rows {
                    let place = Place::Entry(directory, row.tag);
                    self.must_be_counted(place, Some(&row.value))?;
                }
                return Ok(rows);
            }
            // A caller that needs the entry gets the error; one that goes through all finds an
            // entry that does not open.
            if compared.is_err() {
                row.value.clear();
            }
        }
        Ok(rows)
    }

    fn version(&mut self, node: NodeId, version: u64) -> Result<Option<KeyedRecord>, StoreError> {
        let found = self.records.version(node, version)?;
        self.compare_keyed(Place::Version(node, version), found.as_ref())?;
        Ok(found)
    }

    fn version_and_first_chunk(
        &mut self,
        node: NodeId,
        version: u64,
    ) -> Result<Option<(KeyedRecord, Option<Vec<u8>>)>, StoreError> {
        let found = self.records.version_and_first_chunk(node, version)?;
        let record = found.as_ref().map(|(record, _)| record);
        self.compare_keyed(Place::Version(node, version), record)?;
        Ok(found)
    }

    fn versions_of(&mut self, node: NodeId) -> Result<Vec<u64>, StoreError> {
        self.records.versions_of(node)
    }

    fn with_chunk(
        &mut self,
        key: ChunkKey,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, StoreError> {
        self.records.with_chunk(key, take)
    }

    fn chunk_copies(&mut self, key: ChunkKey) -> Result<Vec<Vec<u8>>, StoreError> {
        self.records.chunk_copies(key)
    }

    fn orphans(&mut self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeId>, StoreError> {
        self.records.orphans(after, limit)
    }

    fn events(&mut self, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        self.records.events(from, limit)
    }

    fn scan_nodes(
        &mut self,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<(NodeId, KeyedRecord)>, StoreError> {
        self.records.scan_nodes(after, limit)
    }

    fn scan_versions(
        &mut self,
        after: Option<(NodeId, u64)>,
        limit: usize,
    ) -> Result<Vec<((NodeId, u64), KeyedRecord)>, StoreError> {
        self.records.scan_versions(after, limit)
    }

    fn scan_entries(
        &mut self,
        after: Option<(NodeId, &NameTag)>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, StoreError> {
        self.records.scan_entries(after, limit)
    }

    fn scan_chunk_keys(
        &mut self,
        after: Option<u64>,
        limit: usize,
    ) -> Result<(Vec<ChunkKey>, Option<u64>), StoreError> {
        self.records.scan_chunk_keys(after, limit)
    }

    fn keys_under(&mut self, generation: u64) -> Result<(u64, u64), StoreError> {
        self.records.keys_under(generation)
    }

    fn nodes_not_under(
        &mut self,
        generation: u64,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<NodeId>, StoreError> {
        self.records.nodes_not_under(generation, after, limit)
    }

    fn node_records_not_under(
        &mut self,
        generation: u64,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<(NodeId, KeyedRecord)>, StoreError> {
        self.records
            .node_records_not_under(generation, after, limit)
    }

    fn versions_not_under(
        &mut self,
        generation: u64,
        after: Option<(NodeId, u64)>,
        limit: usize,
    ) -> Result<Vec<(NodeId, u64)>, StoreError> {
        self.records.versions_not_under(generation, after, limit)
    }

    fn version_records_not_under(
        &mut self,
        generation: u64,
        after: Option<(NodeId, u64)>,
        limit: usize,
    ) -> Result<Vec<((NodeId, u64), KeyedRecord)>, StoreError> {
        self.records
            .version_records_not_under(generation, after, limit)
    }
}

impl<W: Write + ?Sized> Write for Checked<'_, W> {
    fn put_header(&mut self, value: &[u8]) -> Result<(), StoreError> {
        self.records.put_header(value)
    }

    fn put_keyring(&mut self, value: &[u8]) -> Result<(), StoreError> {
        self.records.put_keyring(value)
    }

    fn put_state(&mut self, value: &[u8]) -> Result<(), StoreError> {
        self.records.put_state(value)
    }

    fn put_node(&mut self, id: NodeId, record: &KeyedRecord) -> Result<(), StoreError> {
        self.records.put_node(id, record)?;
        self.note_keyed(Place::Node(id), record);
        Ok(())
    }

    fn delete_node(&mut self, id: NodeId) -> Result<(), StoreError> {
        self.records.delete_node(id)?;
        self.note(Place::Node(id), None);
        Ok(())
    }

    fn put_entry(
        &mut self,
        directory: NodeId,
        tag: &NameTag,
        value: &[u8],
    ) -> Result<(), StoreError> {
        self.records.put_entry(directory, tag, value)?;
        let mark = self.current.mark_of_entry(value);
        self.note(Place::Entry(directory, *tag), Some(mark));
        Ok(())
    }

    fn delete_entry(&mut self, directory: NodeId, tag: &NameTag) -> Result<(), StoreError> {
        self.records.delete_entry(directory, tag)?;
        self.note(Place::Entry(directory, *tag), None);
        Ok(())
    }

    fn insert_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.records.insert_version(node, version, record, chunks)?;
        self.note_keyed(Place::Version(node, version), record);
        Ok(())
    }

    fn begin_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
        chunks: u32,
    ) -> Result<(), StoreError> {
        self.records.begin_version(node, version, record, chunks)?;
        self.note_keyed(Place::Version(node, version), record);
        Ok(())
    }

    fn put_chunks(
        &mut self,
        node: NodeId,
        version: u64,
        index: u32,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.records.put_chunks(node, version, index, chunks)
    }

    fn rewrap_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
    ) -> Result<(), StoreError> {
        self.records.rewrap_version(node, version, record)?;
        self.note_keyed(Place::Version(node, version), record);
        Ok(())
    }

    fn exchange_node(
        &mut self,
        id: NodeId,
        old: &KeyedRecord,
        new: &KeyedRecord,
    ) -> Result<bool, StoreError> {
        let place = Place::Node(id);
        let done = self.may_exchange(place, old)? && self.records.exchange_node(id, old, new)?;
        if done {
            self.note_keyed(place, new);
        }
        Ok(done)
    }

    fn exchange_version(
        &mut self,
        node: NodeId,
        version: u64,
        old: &KeyedRecord,
        new: &KeyedRecord,
    ) -> Result<bool, StoreError> {
        let place = Place::Version(node, version);
        let done = self.may_exchange(place, old)?
            && self.records.exchange_version(node, version, old, new)?;
        if done {
            self.note_keyed(place, new);
        }
        Ok(done)
    }

    fn replace_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.records
            .replace_version(node, version, record, chunks)?;
        self.note_keyed(Place::Version(node, version), record);
        Ok(())
    }

    fn delete_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError> {
        self.records.delete_version(node, version)?;
        self.note(Place::Version(node, version), None);
        Ok(())
    }

    fn erase_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError> {
        self.records.erase_version(node, version)?;
        self.note(Place::Version(node, version), None);
        Ok(())
    }

    fn delete_stray_chunks(&mut self) -> Result<u64, StoreError> {
        self.records.delete_stray_chunks()
    }

    fn put_orphan(&mut self, id: NodeId) -> Result<(), StoreError> {
        self.records.put_orphan(id)
    }

    fn delete_orphan(&mut self, id: NodeId) -> Result<(), StoreError> {
        self.records.delete_orphan(id)
    }

    fn insert_event(&mut self, sequence: u64, value: &[u8]) -> Result<(), StoreError> {
        self.records.insert_event(sequence, value)
    }
}
