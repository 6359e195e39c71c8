//! Reading in a transaction.
//!
//! Every look-up uses a primary key, every row is checked before it is returned, and nothing here
//! interprets a record.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::store::bounds::{self, MAX_CHUNK, MAX_VERSION};
use crate::store::{ChunkKey, NodeId, Read, Record, RecordId, Salvage, Scan, StoreError};

use super::hostile::{self, Fault};
use super::tx::{Tx, key};
use super::tx_scan;

/// The chunk in a row that has node, version and index from column `at` on. Checks that it is the
/// requested one: an attacker may have forged the number that led to the row.
pub(super) fn chunk_of<'a>(
    row: &'a Row<'_>,
    at: usize,
    expected: ChunkKey,
) -> Result<&'a [u8], Fault> {
    let found = (
        hostile::id(row, at)?,
        hostile::id(row, at + 1)?,
        hostile::index(row, at + 2)?,
    );
    if found != expected {
        return Err(Fault::corrupt(format!(
            "where chunk {} of version {} of node {} should be, there is another",
            expected.2, expected.1, expected.0
        )));
    }
    hostile::bytes(row, at + 3, MAX_CHUNK)
}

impl Read for Tx {
    fn get(&mut self, id: RecordId) -> Result<Option<Record>, StoreError> {
        let max = bounds::of(&id);
        let value = |row: &Row<'_>| hostile::plain(row, 0, max);
        match id {
            RecordId::Header => {
                let sql = "SELECT value FROM header WHERE id = 0";
                self.one("cannot read the header", sql, [], value)
            }
            RecordId::Keyring => {
                let sql = "SELECT value FROM keyring WHERE id = 0";
                self.one("cannot read the keyring", sql, [], value)
            }
            RecordId::State => {
                let sql = "SELECT value FROM state WHERE id = 0";
                self.one("cannot read the state record", sql, [], value)
            }
            RecordId::Node(id) => {
                let sql = "SELECT generation, value FROM node WHERE id = ?1";
                self.one("cannot read a node", sql, [key(id)?], |row| {
                    hostile::keyed(row, 0, max)
                })
            }
            RecordId::Entry(directory, tag) => {
                let sql = "SELECT value FROM entry WHERE directory = ?1 AND tag = ?2";
                self.one("cannot read an entry", sql, (key(directory)?, tag), value)
            }
            RecordId::Version(node, version) => {
                let sql = "SELECT generation, value FROM version WHERE node = ?1 AND version = ?2";
                let key = (key(node)?, key(version)?);
                self.one("cannot read a version", sql, key, |row| {
                    hostile::keyed(row, 0, max)
                })
            }
            RecordId::Orphan(id) => {
                let sql = "SELECT id FROM orphan WHERE id = ?1";
                self.one("cannot read an orphan", sql, [key(id)?], |row| {
                    hostile::id(row, 0)?;
                    Ok(Record {
                        generation: 0,
                        value: Vec::new(),
                    })
                })
            }
            RecordId::Event(sequence) => {
                let sql = "SELECT value FROM event WHERE sequence = ?1";
                self.one("cannot read the history", sql, [key(sequence)?], value)
            }
        }
    }

    fn scan(&mut self, scan: &Scan) -> Result<Vec<(RecordId, Record)>, StoreError> {
        tx_scan::scan(self, scan)
    }

    fn with_chunk(
        &mut self,
        (node, version, index): ChunkKey,
        take: &mut dyn FnMut(&[u8]),
    ) -> Result<bool, StoreError> {
        let sql = "SELECT c.node, c.version, c.idx, c.sealed \
                   FROM version AS v JOIN chunk AS c ON c.id = v.first_chunk + ?3 \
                   WHERE v.node = ?1 AND v.version = ?2 AND v.first_chunk > 0";
        let found = self.one(
            "cannot read a chunk",
            sql,
            (key(node)?, key(version)?, index),
            |row| chunk_of(row, 0, (node, version, index)).map(&mut *take),
        )?;
        Ok(found.is_some())
    }

    fn version_and_first_chunk(
        &mut self,
        node: NodeId,
        version: u64,
    ) -> Result<Option<(Record, Option<Vec<u8>>)>, StoreError> {
        let sql = "SELECT v.generation, v.value, v.first_chunk, c.id, \
                   c.node, c.version, c.idx, c.sealed \
                   FROM version AS v LEFT JOIN chunk AS c ON c.id = v.first_chunk \
                   WHERE v.node = ?1 AND v.version = ?2";
        self.one(
            "cannot read a version",
            sql,
            (key(node)?, key(version)?),
            |row| {
                let record = hostile::keyed(row, 0, MAX_VERSION)?;
                if hostile::id(row, 2)? == 0 {
                    return Ok((record, None));
                }
                if row.get_ref(3)? == ValueRef::Null {
                    return Err(Fault::corrupt(format!(
                        "version {version} of node {node} lacks its first chunk"
                    )));
                }
                let first = chunk_of(row, 4, (node, version, 0))?.to_vec();
                Ok((record, Some(first)))
            },
        )
    }

    fn keys_under(&mut self, generation: u64) -> Result<(u64, u64), StoreError> {
        // SQLite reads each table once.
        let sql = "SELECT n.under + v.under, n.total + v.total FROM \
                   (SELECT count(*) AS total, count(*) FILTER (WHERE generation = ?1) AS under \
                    FROM node) AS n, \
                   (SELECT count(*) AS total, count(*) FILTER (WHERE generation = ?1) AS under \
                    FROM version) AS v";
        let take = |row: &Row<'_>| Ok((hostile::id(row, 0)?, hostile::id(row, 1)?));
        let found = self.one("cannot count the keys", sql, [key(generation)?], take)?;
        Ok(found.unwrap_or_default())
    }

    fn salvage(&mut self) -> Option<&mut dyn Salvage> {
        Some(self)
    }
}
