//! Writing in a transaction.
//!
//! After any failure the transaction can only roll back, even if its body ignores the error.

use rusqlite::Params;

use crate::os::nice::let_others_run;
use crate::store::{
    KeyedRecord, MAX_ID, NameTag, NodeId, StoreError, StoreErrorKind as Kind, Write,
};

use super::hostile::{self, Fault};
use super::schema;
use super::tx::{Tx, key, one};

/// Chunks longer than this many bytes are outside the B-tree's leaf, on pages of their own.
const INLINE: i64 = 3 << 10;

impl Tx {
    /// Runs one change; any failure ends the transaction.
    fn change<T>(
        &mut self,
        what: &str,
        change: impl FnOnce(&mut Self) -> Result<T, Refused>,
    ) -> Result<T, StoreError> {
        self.alive()?;
        change(self).map_err(|refused| {
            let error = match refused {
                Refused::Fault(fault) => self.blame(what, fault),
                Refused::Before(error) => StoreError::new(error.kind, format!("{what}: {error}")),
            };
            self.trouble.get_or_insert_with(|| error.clone());
            error
        })
    }

    fn execute(&self, sql: &str, params: impl Params) -> Result<usize, Refused> {
        let mut statement = self.connection.prepare_cached(sql)?;
        Ok(statement.execute(params)?)
    }

    /// The number of consecutive rows from `first` on that are the chunks of this version, in
    /// order, and the length of the longest.
    fn own_chunks(&self, node: i64, version: i64, first: i64) -> Result<(i64, i64), Fault> {
        // Select only the length of `sealed`, so that SQLite loads no content.
        let mut statement = self.connection.prepare_cached(
            "SELECT id, node, version, idx, length(sealed) FROM chunk WHERE id >= ?1 ORDER BY id",
        )?;
        let mut rows = statement.query([first])?;
        let (mut count, mut longest) = (0, 0);
        while let Some(row) = rows.next()? {
            let found: (i64, i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
            // Compare without adding to `first`, which may be close to the largest number.
            if found.0.checked_sub(first) != Some(count)
                || (found.1, found.2, found.3) != (node, version, count)
            {
                break;
            }
            longest = longest.max(row.get::<_, i64>(4)?);
            count += 1;
        }
        Ok((count, longest))
    }

    /// The first chunk number that is neither used nor reserved; all after it are free, too.
    fn free_chunk(&self) -> Result<u64, Refused> {
        let last = one(
            &self.connection,
            "SELECT max(id) FROM chunk",
            [],
            |row| match row.get_ref(0)? {
                rusqlite::types::ValueRef::Null => Ok(0),
                _ => hostile::id(row, 0),
            },
        )?;
        Ok((last.unwrap_or(0) + 1).max(self.chunks_from))
    }

    /// Inserts chunks of a version from `index` on; the version's first chunk has the number
    /// `first`. Returns their number.
    fn insert_chunks(
        &self,
        (node, version): (NodeId, u64),
        (first, index): (u64, u32),
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<u32, Refused> {
        let (node, version) = (key(node)?, key(version)?);
        let mut at = index;
        for chunk in chunks {
            if at > index {
                let_others_run();
            }
            let sealed = fits(&chunk, schema::MAX_CHUNK)?;
            let id = first.saturating_add(u64::from(at));
            if id > MAX_ID {
                // Only a forged row can use up the numbers.
                return Err(Fault::corrupt("the numbers of chunks are used up").into());
            }
            self.execute(
                "INSERT INTO chunk (id, node, version, idx, sealed) VALUES (?1, ?2, ?3, ?4, ?5)",
                (key(id)?, node, version, at, sealed),
            )?;
            at = at
                .checked_add(1)
                .ok_or_else(|| Fault::corrupt("too many chunks"))?;
        }
        Ok(at - index)
    }

    fn insert_record(
        &self,
        (node, version): (NodeId, u64),
        record: &KeyedRecord,
        first: u64,
    ) -> Result<(), Refused> {
        self.execute(
            "INSERT INTO version (node, version, generation, first_chunk, value) \
             VALUES (?1, ?2, ?3, ?4, ?5)",
            (
                key(node)?,
                key(version)?,
                key(record.generation)?,
                key(first)?,
                fits(&record.value, schema::MAX_VERSION)?,
            ),
        )
        .map(drop)
    }

    /// Removes a version's chunks: only rows that name this version. A forged `first_chunk` can
    /// leave the version's own chunks behind, but never remove another's.
    fn delete_chunks(
        &mut self,
        (node, version): (i64, i64),
        first: i64,
        overwrite: bool,
    ) -> Result<(), Refused> {
        let (count, longest) = self.own_chunks(node, version, first)?;
        if count == 0 {
            return Ok(());
        }
        // Overwriting large chunks with zeros would double the bytes written, and mostly hides
        // nothing: they are ciphertext, and their key is removed in the same transaction.
        let relaxed = longest > INLINE && !overwrite;
        if relaxed {
            self.connection
                .execute_batch("PRAGMA secure_delete = FAST")?;
        }
        let deleted = self.execute(
            "DELETE FROM chunk WHERE id BETWEEN ?1 AND ?2 AND node = ?3 AND version = ?4",
            (first, first + (count - 1), node, version),
        );
        if relaxed {
            self.connection.execute_batch("PRAGMA secure_delete = ON")?;
        }
        deleted.map(drop)
    }

    /// Removes a version and its chunks.
    fn remove_version(&mut self, node: i64, version: i64, overwrite: bool) -> Result<(), Refused> {
        let sql = "SELECT first_chunk FROM version WHERE node = ?1 AND version = ?2";
        let first = one(&self.connection, sql, (node, version), |row| {
            Ok(row.get::<_, i64>(0)?)
        })?;
        match first {
            None => return Ok(()),
            // No chunk has such a number; remove the record alone.
            Some(..=0) => {}
            Some(first) => self.delete_chunks((node, version), first, overwrite)?,
        }
        let sql = "DELETE FROM version WHERE node = ?1 AND version = ?2";
        self.execute(sql, (node, version)).map(drop)
    }
}

/// Why a change was refused.
enum Refused {
    /// The store failed, or its content is corrupt.
    Fault(Fault),
    /// The request itself is invalid.
    Before(StoreError),
}

impl<F: Into<Fault>> From<F> for Refused {
    fn from(fault: F) -> Self {
        Self::Fault(fault.into())
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Before(error)
    }
}

/// Refuses a value that is longer than reading accepts.
fn fits(value: &[u8], max: usize) -> Result<&[u8], Refused> {
    if value.len() <= max {
        return Ok(value);
    }
    let message = format!("{} bytes are too many, {max} are the most", value.len());
    Err(Refused::Before(StoreError::new(Kind::Io, message)))
}

impl Write for Tx {
    fn put_header(&mut self, value: &[u8]) -> Result<(), StoreError> {
        self.change("cannot write the header", |tx| {
            let sql = "INSERT INTO header (id, value) VALUES (0, ?1) \
                       ON CONFLICT (id) DO UPDATE SET value = excluded.value";
            tx.execute(sql, [fits(value, schema::MAX_HEADER)?])
                .map(drop)
        })
    }

    fn put_keyring(&mut self, value: &[u8]) -> Result<(), StoreError> {
        self.change("cannot write the keyring", |tx| {
            let sql = "INSERT INTO keyring (id, value) VALUES (0, ?1) \
                       ON CONFLICT (id) DO UPDATE SET value = excluded.value";
            tx.execute(sql, [fits(value, schema::MAX_KEYRING)?])
                .map(drop)
        })
    }

    fn put_state(&mut self, value: &[u8]) -> Result<(), StoreError> {
        self.change("cannot write the state record", |tx| {
            let sql = "INSERT INTO state (id, value) VALUES (0, ?1) \
                       ON CONFLICT (id) DO UPDATE SET value = excluded.value";
            tx.execute(sql, [fits(value, schema::MAX_STATE)?]).map(drop)
        })
    }

    fn put_node(&mut self, id: NodeId, record: &KeyedRecord) -> Result<(), StoreError> {
        self.change("cannot write a node", |tx| {
            let sql = "INSERT INTO node (id, generation, value) VALUES (?1, ?2, ?3) \
                       ON CONFLICT (id) DO UPDATE SET \
                       generation = excluded.generation, value = excluded.value";
            let value = fits(&record.value, schema::MAX_NODE)?;
            tx.execute(sql, (key(id)?, key(record.generation)?, value))
                .map(drop)
        })
    }

    fn delete_node(&mut self, id: NodeId) -> Result<(), StoreError> {
        self.change("cannot remove a node", |tx| {
            tx.execute("DELETE FROM node WHERE id = ?1", [key(id)?])
                .map(drop)
        })
    }

    fn put_entry(
        &mut self,
        directory: NodeId,
        tag: &NameTag,
        value: &[u8],
    ) -> Result<(), StoreError> {
        self.change("cannot write an entry", |tx| {
            let sql = "INSERT INTO entry (directory, tag, value) VALUES (?1, ?2, ?3) \
                       ON CONFLICT (directory, tag) DO UPDATE SET value = excluded.value";
            tx.execute(sql, (key(directory)?, tag, fits(value, schema::MAX_ENTRY)?))
                .map(drop)
        })
    }

    fn delete_entry(&mut self, directory: NodeId, tag: &NameTag) -> Result<(), StoreError> {
        self.change("cannot remove an entry", |tx| {
            let sql = "DELETE FROM entry WHERE directory = ?1 AND tag = ?2";
            tx.execute(sql, (key(directory)?, tag)).map(drop)
        })
    }

    fn insert_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.change("cannot write a version", |tx| {
            let first = tx.free_chunk()?;
            let count = tx.insert_chunks((node, version), (first, 0), chunks)?;
            let first = if count == 0 { 0 } else { first };
            tx.insert_record((node, version), record, first)
        })
    }

    fn begin_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
        chunks: u32,
    ) -> Result<(), StoreError> {
        self.change("cannot begin a version", |tx| {
            let first = tx.free_chunk()?;
            let next = first.saturating_add(u64::from(chunks));
            if next > MAX_ID {
                return Err(Fault::corrupt("the numbers of chunks are used up").into());
            }
            tx.chunks_from = next;
            tx.insert_record((node, version), record, first)
        })
    }

    fn put_chunks(
        &mut self,
        node: NodeId,
        version: u64,
        index: u32,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.change("cannot write chunks of a version", |tx| {
            let sql = "SELECT first_chunk FROM version WHERE node = ?1 AND version = ?2";
            let whose = (key(node)?, key(version)?);
            let first = one(&tx.connection, sql, whose, |row| hostile::id(row, 0))?;
            let Some(first) = first.filter(|first| *first > 0) else {
                let why = format!("version {version} of node {node} was not begun");
                return Err(Fault::corrupt(why).into());
            };
            tx.insert_chunks((node, version), (first, index), chunks)
                .map(drop)
        })
    }

    fn rewrap_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
    ) -> Result<(), StoreError> {
        self.change("cannot rewrite a version's record", |tx| {
            let sql = "UPDATE version SET generation = ?3, value = ?4 \
                       WHERE node = ?1 AND version = ?2";
            let value = fits(&record.value, schema::MAX_VERSION)?;
            let changed = tx.execute(
                sql,
                (key(node)?, key(version)?, key(record.generation)?, value),
            )?;
            if changed == 1 {
                return Ok(());
            }
            let why = format!("there is no version {version} of node {node}");
            Err(Fault::corrupt(why).into())
        })
    }

    fn exchange_node(
        &mut self,
        id: NodeId,
        old: &KeyedRecord,
        new: &KeyedRecord,
    ) -> Result<bool, StoreError> {
        self.change("cannot rewrite a node", |tx| {
            let sql = "UPDATE node SET generation = ?2, value = ?3 \
                       WHERE id = ?1 AND generation = ?4 AND value = ?5";
            let [was, is] = [&old.value, &new.value];
            let (id, value) = (key(id)?, fits(is, schema::MAX_NODE)?);
            let (before, after) = (key(old.generation)?, key(new.generation)?);
            Ok(tx.execute(sql, (id, after, value, before, was))? == 1)
        })
    }

    fn exchange_version(
        &mut self,
        node: NodeId,
        version: u64,
        old: &KeyedRecord,
        new: &KeyedRecord,
    ) -> Result<bool, StoreError> {
        self.change("cannot rewrite a version's record", |tx| {
            let sql = "UPDATE version SET generation = ?3, value = ?4 \
                       WHERE node = ?1 AND version = ?2 AND generation = ?5 AND value = ?6";
            let [was, is] = [&old.value, &new.value];
            let (node, version) = (key(node)?, key(version)?);
            let value = fits(is, schema::MAX_VERSION)?;
            let (before, after) = (key(old.generation)?, key(new.generation)?);
            Ok(tx.execute(sql, (node, version, after, value, before, was))? == 1)
        })
    }

    fn replace_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &KeyedRecord,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.erase_version(node, version)?;
        self.insert_version(node, version, record, chunks)
    }

    fn delete_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError> {
        self.change("cannot remove a version", |tx| {
            tx.remove_version(key(node)?, key(version)?, false)
        })
    }

    fn erase_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError> {
        self.change("cannot remove a version", |tx| {
            tx.remove_version(key(node)?, key(version)?, true)
        })
    }

    fn delete_stray_chunks(&mut self) -> Result<u64, StoreError> {
        self.change("cannot remove chunks", |tx| {
            // Match chunks to versions by the same numbers as reading does.
            let sql = "DELETE FROM chunk WHERE NOT EXISTS (SELECT 1 FROM version AS v \
                       WHERE v.node = chunk.node AND v.version = chunk.version \
                       AND v.first_chunk > 0 AND chunk.id - v.first_chunk = chunk.idx)";
            Ok(tx.execute(sql, [])? as u64)
        })
    }

    fn put_orphan(&mut self, id: NodeId) -> Result<(), StoreError> {
        self.change("cannot register an orphan", |tx| {
            let sql = "INSERT INTO orphan (id) VALUES (?1) ON CONFLICT (id) DO NOTHING";
            tx.execute(sql, [key(id)?]).map(drop)
        })
    }

    fn delete_orphan(&mut self, id: NodeId) -> Result<(), StoreError> {
        self.change("cannot remove an orphan", |tx| {
            tx.execute("DELETE FROM orphan WHERE id = ?1", [key(id)?])
                .map(drop)
        })
    }

    fn insert_event(&mut self, sequence: u64, value: &[u8]) -> Result<(), StoreError> {
        self.change("cannot write an event", |tx| {
            let sql = "INSERT INTO event (sequence, value) VALUES (?1, ?2)";
            tx.execute(sql, (key(sequence)?, fits(value, schema::MAX_EVENT)?))
                .map(drop)
        })
    }
}
