//! The traits of a transaction: reads compare, writes note, and other calls are passed on.

use crate::store::{
    ChunkKey, NodeId, Range, Read, Record, RecordId, Salvage, Scan, StoreError, Write,
};

use super::super::Place;
use super::Checked;

impl<R: Read + ?Sized> Checked<'_, R> {
    /// Compares an entry with its mark; returns the one to serve.
    fn compare_entry(
        &mut self,
        (id, place): (RecordId, Place),
        found: Option<Record>,
    ) -> Result<Option<Record>, StoreError> {
        let value = found.as_ref().map(|entry| &entry.value[..]);
        if !self.compares() || self.is_current(&place, value) {
            return Ok(found);
        }
        let mark = value.map(|value| self.current.mark_of_entry(value));
        self.compare(place, mark, None)?;
        // All names were counted, but an attacker may have replaced this one since, past the store.
        let found = self.records.get(id)?;
        let value = found.as_ref().map(|entry| &entry.value[..]);
        self.must_be_counted(place, value)?;
        Ok(found)
    }

    /// The same for rows of one directory.
    fn compare_entries(
        &mut self,
        scan: &Scan,
        mut rows: Vec<(RecordId, Record)>,
    ) -> Result<Vec<(RecordId, Record)>, StoreError> {
        for (id, entry) in &mut rows {
            let Some(place) = Place::of(*id) else {
                continue;
            };
            let mark = self.current.mark_of_entry(&entry.value);
            if self.known(&place).is_some_and(|known| known.is(mark)) {
                continue;
            }
            let compared = self.compare(place, Some(mark), None);
            if self.following.is_some() {
                compared?;
                // All names were counted, but an attacker may have replaced some since, past the
                // store.
                let rows = self.records.scan(scan)?;
                for (id, entry) in &rows {
                    if let Some(place) = Place::of(*id) {
                        self.must_be_counted(place, Some(&entry.value))?;
                    }
                }
                return Ok(rows);
            }
            // A caller that needs the entry gets the error; one that goes through all finds an
            // entry that does not open.
            if compared.is_err() {
                entry.value.clear();
            }
        }
        Ok(rows)
    }
}

impl<R: Read + ?Sized> Read for Checked<'_, R> {
    fn get(&mut self, id: RecordId) -> Result<Option<Record>, StoreError> {
        let found = self.records.get(id)?;
        match Place::of(id) {
            None => Ok(found),
            Some(place @ Place::Entry(..)) => self.compare_entry((id, place), found),
            Some(place @ (Place::Node(_) | Place::Version(..))) => {
                self.compare_keyed(place, found.as_ref())?;
                Ok(found)
            }
        }
    }

    fn scan(&mut self, scan: &Scan) -> Result<Vec<(RecordId, Record)>, StoreError> {
        let rows = self.records.scan(scan)?;
        match scan.range {
            Range::EntriesOf(..) if self.compares() => self.compare_entries(scan, rows),
            _ => Ok(rows),
        }
    }

    fn with_chunk(
        &mut self,
        key: ChunkKey,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, StoreError> {
        self.records.with_chunk(key, take)
    }

    fn version_and_first_chunk(
        &mut self,
        node: NodeId,
        version: u64,
    ) -> Result<Option<(Record, Option<Vec<u8>>)>, StoreError> {
        let found = self.records.version_and_first_chunk(node, version)?;
        let record = found.as_ref().map(|(record, _)| record);
        self.compare_keyed(Place::Version(node, version), record)?;
        Ok(found)
    }

    fn keys_under(&mut self, generation: u64) -> Result<(u64, u64), StoreError> {
        self.records.keys_under(generation)
    }

    fn salvage(&mut self) -> Option<&mut dyn Salvage> {
        self.records.salvage()
    }
}

impl<W: Write + ?Sized> Write for Checked<'_, W> {
    fn put(&mut self, id: RecordId, generation: u64, value: &[u8]) -> Result<(), StoreError> {
        self.records.put(id, generation, value)?;
        if let Some(place) = Place::of(id) {
            let mark = self.current.mark_of_value(&place, generation, value);
            self.note(place, Some(mark));
        }
        Ok(())
    }

    fn delete(&mut self, id: RecordId) -> Result<(), StoreError> {
        self.records.delete(id)?;
        if let Some(place) = Place::of(id) {
            self.note(place, None);
        }
        Ok(())
    }

    fn begin_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &Record,
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

    fn erase_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError> {
        self.records.erase_version(node, version)?;
        self.note(Place::Version(node, version), None);
        Ok(())
    }

    fn insert_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &Record,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.records.insert_version(node, version, record, chunks)?;
        self.note_keyed(Place::Version(node, version), record);
        Ok(())
    }

    fn replace_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &Record,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.records
            .replace_version(node, version, record, chunks)?;
        self.note_keyed(Place::Version(node, version), record);
        Ok(())
    }

    fn exchange(&mut self, id: RecordId, old: &Record, new: &Record) -> Result<bool, StoreError> {
        let Some(place) = Place::of(id) else {
            return self.records.exchange(id, old, new);
        };
        let done = self.may_exchange(place, old)? && self.records.exchange(id, old, new)?;
        if done {
            self.note_keyed(place, new);
        }
        Ok(done)
    }
}
