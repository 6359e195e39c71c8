//! Reading in a transaction.
//!
//! Every look-up uses a primary key, every row is checked before it is returned, and nothing here
//! interprets a record.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::store::{
    ChunkKey, EntryRow, KeyedRecord, MANY_BYTES, NameTag, NodeId, Read, StoreError,
};

use super::hostile::{self, Fault};
use super::schema;
use super::tx::{Tx, key, rows};

fn keyed(row: &Row<'_>, at: usize, max: usize) -> Result<KeyedRecord, Fault> {
    Ok(KeyedRecord {
        generation: hostile::id(row, at)?,
        value: hostile::blob(row, at + 1, max)?,
    })
}

fn entry_row(row: &Row<'_>) -> Result<EntryRow, Fault> {
    Ok(EntryRow {
        directory: hostile::id(row, 0)?,
        tag: hostile::tag(row, 1)?,
        value: hostile::blob(row, 2, schema::MAX_ENTRY)?,
    })
}

/// The chunk in a row that has node, version and index from column `at` on. Checks that it is the
/// requested one: an attacker may have forged the number that led to the row.
fn chunk_of<'a>(row: &'a Row<'_>, at: usize, expected: ChunkKey) -> Result<&'a [u8], Fault> {
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
    hostile::bytes(row, at + 3, schema::MAX_CHUNK)
}

impl Read for Tx {
    fn header(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT value FROM header WHERE id = 0";
        self.one("cannot read the header", sql, [], |row| {
            hostile::blob(row, 0, schema::MAX_HEADER)
        })
    }

    fn keyring(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT value FROM keyring WHERE id = 0";
        self.one("cannot read the keyring", sql, [], |row| {
            hostile::blob(row, 0, schema::MAX_KEYRING)
        })
    }

    fn state(&mut self) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT value FROM state WHERE id = 0";
        self.one("cannot read the state record", sql, [], |row| {
            hostile::blob(row, 0, schema::MAX_STATE)
        })
    }

    fn node(&mut self, id: NodeId) -> Result<Option<KeyedRecord>, StoreError> {
        let sql = "SELECT generation, value FROM node WHERE id = ?1";
        self.one("cannot read a node", sql, [key(id)?], |row| {
            keyed(row, 0, schema::MAX_NODE)
        })
    }

    fn entry(&mut self, directory: NodeId, tag: &NameTag) -> Result<Option<Vec<u8>>, StoreError> {
        let sql = "SELECT value FROM entry WHERE directory = ?1 AND tag = ?2";
        self.one("cannot read an entry", sql, (key(directory)?, tag), |row| {
            hostile::blob(row, 0, schema::MAX_ENTRY)
        })
    }

    fn entries(
        &mut self,
        directory: NodeId,
        after: Option<&NameTag>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, StoreError> {
        let what = "cannot list a directory";
        let id = key(directory)?;
        // The first page has no lower bound, so that a value that sorts below every tag shows, too.
        let found = match after {
            None => self.many(
                what,
                "SELECT directory, tag, value FROM entry WHERE directory = ?1 ORDER BY tag LIMIT ?2",
                (id, rows(limit)),
                entry_row,
            ),
            Some(tag) => self.many(
                what,
                "SELECT directory, tag, value FROM entry WHERE directory = ?1 AND tag > ?2 \
                 ORDER BY tag LIMIT ?3",
                (id, tag, rows(limit)),
                entry_row,
            ),
        }?;
        if found.iter().any(|row| row.directory != directory) {
            return Err(self.blame(what, Fault::corrupt("an entry of another directory")));
        }
        self.ordered(what, after, found.iter().map(|row| &row.tag))?;
        Ok(found)
    }

    fn version(&mut self, node: NodeId, version: u64) -> Result<Option<KeyedRecord>, StoreError> {
        let sql = "SELECT generation, value FROM version WHERE node = ?1 AND version = ?2";
        self.one(
            "cannot read a version",
            sql,
            (key(node)?, key(version)?),
            |row| keyed(row, 0, schema::MAX_VERSION),
        )
    }

    fn version_and_first_chunk(
        &mut self,
        node: NodeId,
        version: u64,
    ) -> Result<Option<(KeyedRecord, Option<Vec<u8>>)>, StoreError> {
        let sql = "SELECT v.generation, v.value, v.first_chunk, c.id, \
                   c.node, c.version, c.idx, c.sealed \
                   FROM version AS v LEFT JOIN chunk AS c ON c.id = v.first_chunk \
                   WHERE v.node = ?1 AND v.version = ?2";
        self.one(
            "cannot read a version",
            sql,
            (key(node)?, key(version)?),
            |row| {
                let record = keyed(row, 0, schema::MAX_VERSION)?;
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

    fn versions_of(&mut self, node: NodeId) -> Result<Vec<u64>, StoreError> {
        let what = "cannot list the versions of a node";
        let sql = "SELECT version FROM version WHERE node = ?1 ORDER BY version LIMIT ?2";
        let bound = rows(schema::MAX_VERSIONS + 1);
        let found = self.many(what, sql, (key(node)?, bound), |row| hostile::id(row, 0))?;
        if found.len() > schema::MAX_VERSIONS {
            return Err(self.blame(what, Fault::corrupt("there are too many")));
        }
        self.ordered(what, None, found.iter())?;
        Ok(found)
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

    fn chunk_copies(
        &mut self,
        (node, version, index): ChunkKey,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        // More copies are an attacker's attempt to keep us busy.
        let sql = "SELECT node, version, idx, sealed FROM chunk \
                   WHERE node = ?1 AND version = ?2 AND idx = ?3 AND length(sealed) <= ?4 LIMIT 64";
        let most = rows(schema::MAX_CHUNK);
        let params = (key(node)?, key(version)?, index, most);
        self.many("cannot look for a chunk", sql, params, |row| {
            chunk_of(row, 0, (node, version, index)).map(<[u8]>::to_vec)
        })
    }

    fn orphans(&mut self, after: Option<NodeId>, limit: usize) -> Result<Vec<NodeId>, StoreError> {
        let what = "cannot list the orphans";
        let take = |row: &Row<'_>| hostile::id(row, 0);
        let found = match after {
            None => {
                let sql = "SELECT id FROM orphan ORDER BY id LIMIT ?1";
                self.many(what, sql, [rows(limit)], take)
            }
            Some(after) => {
                let sql = "SELECT id FROM orphan WHERE id > ?1 ORDER BY id LIMIT ?2";
                self.many(what, sql, (key(after)?, rows(limit)), take)
            }
        }?;
        self.ordered(what, after, found.iter().copied())?;
        Ok(found)
    }

    fn events(&mut self, from: u64, limit: usize) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let what = "cannot read the history";
        let sql =
            "SELECT sequence, value FROM event WHERE sequence >= ?1 ORDER BY sequence LIMIT ?2";
        let found = self.many(what, sql, (key(from)?, rows(limit)), |row| {
            Ok((
                hostile::id(row, 0)?,
                hostile::blob(row, 1, schema::MAX_EVENT)?,
            ))
        })?;
        self.ordered(
            what,
            from.checked_sub(1),
            found.iter().map(|(sequence, _)| *sequence),
        )?;
        Ok(found)
    }

    fn scan_nodes(
        &mut self,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<(NodeId, KeyedRecord)>, StoreError> {
        let what = "cannot scan the nodes";
        let take = |row: &Row<'_>| Ok((hostile::id(row, 0)?, keyed(row, 1, schema::MAX_NODE)?));
        let found = match after {
            None => {
                let sql = "SELECT id, generation, value FROM node ORDER BY id LIMIT ?1";
                self.many(what, sql, [rows(limit)], take)
            }
            Some(after) => {
                let sql = "SELECT id, generation, value FROM node WHERE id > ?1 \
                           ORDER BY id LIMIT ?2";
                self.many(what, sql, (key(after)?, rows(limit)), take)
            }
        }?;
        self.ordered(what, after, found.iter().map(|(id, _)| *id))?;
        Ok(found)
    }

    fn scan_versions(
        &mut self,
        after: Option<(NodeId, u64)>,
        limit: usize,
    ) -> Result<Vec<((NodeId, u64), KeyedRecord)>, StoreError> {
        let what = "cannot scan the versions";
        let take = |row: &Row<'_>| {
            let key = (hostile::id(row, 0)?, hostile::id(row, 1)?);
            Ok((key, keyed(row, 2, schema::MAX_VERSION)?))
        };
        let found = match after {
            None => {
                let sql = "SELECT node, version, generation, value FROM version \
                           ORDER BY node, version LIMIT ?1";
                self.many(what, sql, [rows(limit)], take)
            }
            Some((node, version)) => {
                let sql = "SELECT node, version, generation, value FROM version \
                           WHERE (node, version) > (?1, ?2) ORDER BY node, version LIMIT ?3";
                self.many(what, sql, (key(node)?, key(version)?, rows(limit)), take)
            }
        }?;
        self.ordered(what, after, found.iter().map(|(key, _)| *key))?;
        Ok(found)
    }

    fn scan_entries(
        &mut self,
        after: Option<(NodeId, &NameTag)>,
        limit: usize,
    ) -> Result<Vec<EntryRow>, StoreError> {
        let what = "cannot scan the entries";
        let found = match after {
            None => {
                let sql = "SELECT directory, tag, value FROM entry \
                           ORDER BY directory, tag LIMIT ?1";
                self.many(what, sql, [rows(limit)], entry_row)
            }
            Some((directory, tag)) => {
                let sql = "SELECT directory, tag, value FROM entry \
                           WHERE (directory, tag) > (?1, ?2) ORDER BY directory, tag LIMIT ?3";
                self.many(what, sql, (key(directory)?, tag, rows(limit)), entry_row)
            }
        }?;
        self.ordered(
            what,
            after,
            found.iter().map(|row| (row.directory, &row.tag)),
        )?;
        Ok(found)
    }

    fn scan_chunk_keys(
        &mut self,
        after: Option<u64>,
        limit: usize,
    ) -> Result<(Vec<ChunkKey>, Option<u64>), StoreError> {
        let what = "cannot scan the chunks";
        let take = |row: &Row<'_>| {
            let key = (
                hostile::id(row, 1)?,
                hostile::id(row, 2)?,
                hostile::index(row, 3)?,
            );
            Ok((hostile::id(row, 0)?, key))
        };
        let found = match after {
            None => {
                let sql = "SELECT id, node, version, idx FROM chunk ORDER BY id LIMIT ?1";
                self.many(what, sql, [rows(limit)], take)
            }
            Some(after) => {
                let sql = "SELECT id, node, version, idx FROM chunk WHERE id > ?1 \
                           ORDER BY id LIMIT ?2";
                self.many(what, sql, (key(after)?, rows(limit)), take)
            }
        }?;
        self.ordered(what, after, found.iter().map(|(id, _)| *id))?;
        // A page that is not full is the last one.
        let cursor = found
            .last()
            .map(|(id, _)| *id)
            .filter(|_| found.len() == limit);
        Ok((found.into_iter().map(|(_, key)| key).collect(), cursor))
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

    fn nodes_not_under(
        &mut self,
        generation: u64,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<NodeId>, StoreError> {
        let what = "cannot look for nodes to re-wrap";
        let sql = "SELECT id FROM node WHERE id >= ?1 AND generation <> ?2 ORDER BY id LIMIT ?3";
        let from = after.map_or(0, |after| after + 1);
        let params = (key(from)?, key(generation)?, rows(limit));
        let found = self.many(what, sql, params, |row| hostile::id(row, 0))?;
        self.ordered(what, after, found.iter().copied())?;
        Ok(found)
    }

    fn node_records_not_under(
        &mut self,
        generation: u64,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<(NodeId, KeyedRecord)>, StoreError> {
        let what = "cannot read the nodes to re-wrap";
        let sql = "SELECT id, generation, value FROM node WHERE id >= ?1 AND generation <> ?2 \
                   ORDER BY id LIMIT ?3";
        let from = after.map_or(0, |after| after + 1);
        let params = (key(from)?, key(generation)?, rows(limit));
        let take = |row: &Row<'_>| Ok((hostile::id(row, 0)?, keyed(row, 1, schema::MAX_NODE)?));
        let found = self.until(what, sql, params, take, enough())?;
        self.ordered(what, after, found.iter().map(|(id, _)| *id))?;
        Ok(found)
    }

    fn versions_not_under(
        &mut self,
        generation: u64,
        after: Option<(NodeId, u64)>,
        limit: usize,
    ) -> Result<Vec<(NodeId, u64)>, StoreError> {
        let what = "cannot look for versions to re-wrap";
        let sql = "SELECT node, version FROM version \
                   WHERE (node, version) >= (?1, ?2) AND generation <> ?3 \
                   ORDER BY node, version LIMIT ?4";
        let (node, version) = after.map_or((0, 0), |(node, version)| (node, version + 1));
        let params = (key(node)?, key(version)?, key(generation)?, rows(limit));
        let take = |row: &Row<'_>| Ok((hostile::id(row, 0)?, hostile::id(row, 1)?));
        let found = self.many(what, sql, params, take)?;
        self.ordered(what, after, found.iter().copied())?;
        Ok(found)
    }

    fn version_records_not_under(
        &mut self,
        generation: u64,
        after: Option<(NodeId, u64)>,
        limit: usize,
    ) -> Result<Vec<((NodeId, u64), KeyedRecord)>, StoreError> {
        let what = "cannot read the versions to re-wrap";
        let sql = "SELECT node, version, generation, value FROM version \
                   WHERE (node, version) >= (?1, ?2) AND generation <> ?3 \
                   ORDER BY node, version LIMIT ?4";
        let (node, version) = after.map_or((0, 0), |(node, version)| (node, version + 1));
        let params = (key(node)?, key(version)?, key(generation)?, rows(limit));
        let take = |row: &Row<'_>| {
            let key = (hostile::id(row, 0)?, hostile::id(row, 1)?);
            Ok((key, keyed(row, 2, schema::MAX_VERSION)?))
        };
        let found = self.until(what, sql, params, take, enough())?;
        self.ordered(what, after, found.iter().map(|(key, _)| *key))?;
        Ok(found)
    }
}

/// Returns a function that takes one record after the other, and returns whether their bytes reach
/// [`MANY_BYTES`].
fn enough<K>() -> impl FnMut(&(K, KeyedRecord)) -> bool {
    let mut bytes = 0;
    move |(_, record)| {
        bytes += record.value.len();
        bytes >= MANY_BYTES
    }
}
