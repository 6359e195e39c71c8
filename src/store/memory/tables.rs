//! The records of a store in memory, as of one commit.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::store::{ChunkKey, Range, Record, RecordId, Scan};

/// All records and chunks. A copy shares them.
#[derive(Clone, Default)]
pub(super) struct Tables {
    pub(super) records: BTreeMap<RecordId, Arc<Record>>,
    pub(super) chunks: BTreeMap<ChunkKey, Arc<Vec<u8>>>,
}

/// A change of one record or chunk; `None` removes it.
#[derive(Clone)]
pub(super) enum Change {
    Record(RecordId, Option<Arc<Record>>),
    Chunk(ChunkKey, Option<Arc<Vec<u8>>>),
}

/// A commit.
#[derive(Clone)]
pub(super) struct Commit {
    pub(super) before: Arc<Tables>,
    pub(super) changes: Vec<Change>,
    pub(super) after: Arc<Tables>,
}

impl Tables {
    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::Record(id, Some(record)) => {
                self.records.insert(*id, Arc::clone(record));
            }
            Change::Record(id, None) => {
                self.records.remove(id);
            }
            Change::Chunk(key, Some(sealed)) => {
                self.chunks.insert(*key, Arc::clone(sealed));
            }
            Change::Chunk(key, None) => {
                self.chunks.remove(key);
            }
        }
    }

    /// The keys of the chunks of a version.
    pub(super) fn chunks_of(&self, node: u64, version: u64) -> Vec<ChunkKey> {
        let all = (node, version, 0)..=(node, version, u32::MAX);
        self.chunks.range(all).map(|(key, _)| *key).collect()
    }

    /// The records that `scan` asks for.
    pub(super) fn scan(&self, scan: &Scan) -> Vec<(RecordId, Record)> {
        let (first, last) = ends(&scan.range);
        let from = match scan.range.after() {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(first),
        };
        let found = self.records.range((from, Bound::Included(last)));
        let is_wanted = |(id, record): &(&RecordId, &Arc<Record>)| {
            let has_generation = matches!(id, RecordId::Node(_) | RecordId::Version(..));
            !has_generation || scan.but != Some(record.generation)
        };
        let mut bytes: usize = 0;
        let mut taken = Vec::new();
        for (id, record) in found.filter(is_wanted).take(scan.limit) {
            taken.push((*id, Record::clone(record)));
            bytes = bytes.saturating_add(record.value.len());
            if bytes >= scan.bytes {
                break;
            }
        }
        taken
    }
}

/// The first and the last id that a range can have.
fn ends(range: &Range) -> (RecordId, RecordId) {
    const MAX: u64 = u64::MAX;
    match *range {
        Range::Nodes(_) => (RecordId::Node(0), RecordId::Node(MAX)),
        Range::Entries(_) => (
            RecordId::Entry(0, [0; 32]),
            RecordId::Entry(MAX, [u8::MAX; 32]),
        ),
        Range::EntriesOf(directory, _) => (
            RecordId::Entry(directory, [0; 32]),
            RecordId::Entry(directory, [u8::MAX; 32]),
        ),
        Range::Versions(_) => (RecordId::Version(0, 0), RecordId::Version(MAX, MAX)),
        Range::VersionsOf(node) => (RecordId::Version(node, 0), RecordId::Version(node, MAX)),
        Range::Orphans(_) => (RecordId::Orphan(0), RecordId::Orphan(MAX)),
        Range::Events(_) => (RecordId::Event(0), RecordId::Event(MAX)),
    }
}
