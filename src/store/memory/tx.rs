//! A transaction in memory. It changes a copy of the records, and notes each change.

use std::sync::Arc;

use crate::store::bounds::{self, MAX_CHUNK};
use crate::store::{
    ChunkKey, MAX_ID, NodeId, Read, Record, RecordId, Salvage, Scan, StoreError,
    StoreErrorKind as Kind, Write,
};

use super::flaw::Flaw;
use super::tables::{Change, Tables};

pub(super) struct MemoryTx {
    tables: Arc<Tables>,
    changes: Vec<Change>,
    /// The first failure of a change: a body may ignore the error that it got.
    trouble: Option<StoreError>,
    flaw: Option<Flaw>,
}

impl MemoryTx {
    pub(super) fn reading(tables: Arc<Tables>) -> Self {
        Self::writing(tables, None)
    }

    pub(super) fn writing(tables: Arc<Tables>, flaw: Option<Flaw>) -> Self {
        Self {
            tables,
            changes: Vec::new(),
            trouble: None,
            flaw,
        }
    }

    /// The changes, and the records after them.
    ///
    /// # Errors
    /// The first failure of a change.
    pub(super) fn into_changes(self) -> Result<(Vec<Change>, Arc<Tables>), StoreError> {
        match self.trouble {
            Some(trouble) => Err(trouble),
            None => Ok((self.changes, self.tables)),
        }
    }

    fn alive(&self) -> Result<(), StoreError> {
        self.trouble.clone().map_or(Ok(()), Err)
    }

    /// Runs one change; any failure ends the transaction.
    fn change(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.alive()?;
        change(self).inspect_err(|error| self.trouble = Some(error.clone()))
    }

    fn apply(&mut self, change: Change) {
        Arc::make_mut(&mut self.tables).apply(&change);
        self.changes.push(change);
    }

    fn store(&mut self, id: RecordId, record: Option<Record>) -> Result<(), StoreError> {
        must_be_in_range(&id)?;
        if let Some(record) = &record {
            must_fit(&record.value, bounds::of(&id))?;
        }
        self.apply(Change::Record(id, record.map(Arc::new)));
        Ok(())
    }

    fn remove_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError> {
        let keeps_chunks = self.flaw.is_some_and(|flaw| flaw.keeps_chunks());
        if !keeps_chunks {
            for key in self.tables.chunks_of(node, version) {
                self.apply(Change::Chunk(key, None));
            }
        }
        self.store(RecordId::Version(node, version), None)
    }
}

/// Refuses numbers that no id can have.
fn must_be_in_range(id: &RecordId) -> Result<(), StoreError> {
    let numbers = match *id {
        RecordId::Header | RecordId::Keyring | RecordId::State => [0, 0],
        RecordId::Node(id) | RecordId::Orphan(id) | RecordId::Event(id) => [id, 0],
        RecordId::Entry(directory, _) => [directory, 0],
        RecordId::Version(node, version) => [node, version],
    };
    match numbers.into_iter().all(|number| number <= MAX_ID) {
        true => Ok(()),
        false => Err(corrupt("a number is out of range for an id")),
    }
}

fn must_fit(value: &[u8], max: usize) -> Result<(), StoreError> {
    if value.len() <= max {
        return Ok(());
    }
    let message = format!("{} bytes are too many, {max} are the most", value.len());
    Err(StoreError::new(Kind::Io, message))
}

fn corrupt(why: &str) -> StoreError {
    StoreError::new(Kind::Corrupt, why)
}

impl Read for MemoryTx {
    fn get(&mut self, id: RecordId) -> Result<Option<Record>, StoreError> {
        self.alive()?;
        Ok(self
            .tables
            .records
            .get(&id)
            .map(|found| Record::clone(found)))
    }

    fn scan(&mut self, scan: &Scan) -> Result<Vec<(RecordId, Record)>, StoreError> {
        self.alive()?;
        Ok(self.tables.scan(scan))
    }

    fn with_chunk(
        &mut self,
        key: ChunkKey,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, StoreError> {
        self.alive()?;
        let (node, version, _) = key;
        let owner = RecordId::Version(node, version);
        let found = self.tables.chunks.get(&key);
        let owned = found.filter(|_| self.tables.records.contains_key(&owner));
        Ok(owned.map(|sealed| take(sealed)).is_some())
    }

    fn salvage(&mut self) -> Option<&mut dyn Salvage> {
        Some(self)
    }
}

impl Write for MemoryTx {
    fn put(&mut self, id: RecordId, generation: u64, value: &[u8]) -> Result<(), StoreError> {
        self.change(|tx| {
            let is_there = tx.tables.records.contains_key(&id);
            match id {
                RecordId::Version(..) if !is_there => return Err(corrupt("no such version")),
                RecordId::Event(_) if is_there => return Err(corrupt("the event exists")),
                _ => {}
            }
            let value = value.to_vec();
            tx.store(id, Some(Record { generation, value }))
        })
    }

    fn delete(&mut self, id: RecordId) -> Result<(), StoreError> {
        self.change(|tx| match id {
            RecordId::Node(_) | RecordId::Entry(..) | RecordId::Orphan(_) => tx.store(id, None),
            RecordId::Version(node, version) => tx.remove_version(node, version),
            RecordId::Header | RecordId::Keyring | RecordId::State | RecordId::Event(_) => {
                let why = "records of this kind are never removed";
                Err(StoreError::new(Kind::Io, why))
            }
        })
    }

    fn begin_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &Record,
        _chunks: u32,
    ) -> Result<(), StoreError> {
        self.change(|tx| {
            let id = RecordId::Version(node, version);
            if tx.tables.records.contains_key(&id) {
                return Err(corrupt("the version exists"));
            }
            tx.store(id, Some(record.clone()))
        })
    }

    fn put_chunks(
        &mut self,
        node: NodeId,
        version: u64,
        index: u32,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.change(|tx| {
            let id = RecordId::Version(node, version);
            if !tx.tables.records.contains_key(&id) {
                return Err(corrupt("the version was not begun"));
            }
            for (index, chunk) in (index..).zip(chunks) {
                must_fit(&chunk, MAX_CHUNK)?;
                let key = (node, version, index);
                if tx.tables.chunks.contains_key(&key) {
                    return Err(corrupt("the chunk exists"));
                }
                tx.apply(Change::Chunk(key, Some(Arc::new(chunk))));
            }
            Ok(())
        })
    }

    fn erase_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError> {
        self.change(|tx| tx.remove_version(node, version))
    }
}

impl Salvage for MemoryTx {
    fn chunk_copies(&mut self, key: ChunkKey) -> Result<Vec<Vec<u8>>, StoreError> {
        self.alive()?;
        let found = self.tables.chunks.get(&key);
        Ok(found.map(|sealed| sealed.to_vec()).into_iter().collect())
    }

    fn scan_chunk_keys(
        &mut self,
        after: Option<u64>,
        limit: usize,
    ) -> Result<(Vec<ChunkKey>, Option<u64>), StoreError> {
        self.alive()?;
        let skipped = after.unwrap_or(0);
        let keys = self.tables.chunks.keys().skip(skipped as usize);
        let keys: Vec<ChunkKey> = keys.take(limit).copied().collect();
        let next = skipped + keys.len() as u64;
        let is_full = keys.len() == limit;
        Ok((keys, is_full.then_some(next)))
    }

    fn delete_stray_chunks(&mut self) -> Result<u64, StoreError> {
        self.alive()?;
        let is_stray = |(node, version, _): &&ChunkKey| {
            let owner = RecordId::Version(*node, *version);
            !self.tables.records.contains_key(&owner)
        };
        let strays: Vec<_> = self
            .tables
            .chunks
            .keys()
            .filter(is_stray)
            .copied()
            .collect();
        for key in &strays {
            self.apply(Change::Chunk(*key, None));
        }
        Ok(strays.len() as u64)
    }
}
