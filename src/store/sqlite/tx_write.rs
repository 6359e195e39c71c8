//! Writing in a transaction.
//!
//! After any failure the transaction can only roll back, even if its body ignores the error.

use rusqlite::Params;

use crate::os::nice::let_others_run;
use crate::store::bounds::{self, MAX_CHUNK, MAX_NODE, MAX_VERSION};
use crate::store::{MAX_ID, NodeId, Record, RecordId, StoreError, StoreErrorKind as Kind, Write};

use super::hostile::{self, Fault};
use super::tx::{Tx, key, one};

/// Chunks longer than this many bytes are outside the B-tree's leaf, on pages of their own.
const INLINE: i64 = 3 << 10;

impl Tx {
    /// Runs one change; any failure ends the transaction.
    pub(super) fn change<T>(
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

    pub(super) fn execute(&self, sql: &str, params: impl Params) -> Result<usize, Refused> {
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
            let sealed = fits(&chunk, MAX_CHUNK)?;
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
        record: &Record,
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
                fits(&record.value, MAX_VERSION)?,
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
pub(super) enum Refused {
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
    fn put(&mut self, id: RecordId, generation: u64, value: &[u8]) -> Result<(), StoreError> {
        let what = match id {
            RecordId::Header => "cannot write the header",
            RecordId::Keyring => "cannot write the keyring",
            RecordId::State => "cannot write the state record",
            RecordId::Node(_) => "cannot write a node",
            RecordId::Entry(..) => "cannot write an entry",
            RecordId::Version(..) => "cannot rewrite a version's record",
            RecordId::Orphan(_) => "cannot register an orphan",
            RecordId::Event(_) => "cannot write an event",
        };
        self.change(what, |tx| {
            let value = fits(value, bounds::of(&id))?;
            let changed = match id {
                RecordId::Header => {
                    let sql = "INSERT INTO header (id, value) VALUES (0, ?1) \
                               ON CONFLICT (id) DO UPDATE SET value = excluded.value";
                    tx.execute(sql, [value])?
                }
                RecordId::Keyring => {
                    let sql = "INSERT INTO keyring (id, value) VALUES (0, ?1) \
                               ON CONFLICT (id) DO UPDATE SET value = excluded.value";
                    tx.execute(sql, [value])?
                }
                RecordId::State => {
                    let sql = "INSERT INTO state (id, value) VALUES (0, ?1) \
                               ON CONFLICT (id) DO UPDATE SET value = excluded.value";
                    tx.execute(sql, [value])?
                }
                RecordId::Node(id) => {
                    let sql = "INSERT INTO node (id, generation, value) VALUES (?1, ?2, ?3) \
                               ON CONFLICT (id) DO UPDATE SET \
                               generation = excluded.generation, value = excluded.value";
                    tx.execute(sql, (key(id)?, key(generation)?, value))?
                }
                RecordId::Entry(directory, tag) => {
                    let sql = "INSERT INTO entry (directory, tag, value) VALUES (?1, ?2, ?3) \
                               ON CONFLICT (directory, tag) DO UPDATE SET value = excluded.value";
                    tx.execute(sql, (key(directory)?, tag, value))?
                }
                RecordId::Version(node, version) => {
                    let sql = "UPDATE version SET generation = ?3, value = ?4 \
                               WHERE node = ?1 AND version = ?2";
                    let (node, version) = (key(node)?, key(version)?);
                    tx.execute(sql, (node, version, key(generation)?, value))?
                }
                RecordId::Orphan(id) => {
                    let sql = "INSERT INTO orphan (id) VALUES (?1) ON CONFLICT (id) DO NOTHING";
                    tx.execute(sql, [key(id)?])?
                }
                RecordId::Event(sequence) => {
                    let sql = "INSERT INTO event (sequence, value) VALUES (?1, ?2)";
                    tx.execute(sql, (key(sequence)?, value))?
                }
            };
            match id {
                RecordId::Version(node, version) if changed != 1 => {
                    let why = format!("there is no version {version} of node {node}");
                    Err(Fault::corrupt(why).into())
                }
                _ => Ok(()),
            }
        })
    }

    fn delete(&mut self, id: RecordId) -> Result<(), StoreError> {
        match id {
            RecordId::Node(id) => self.change("cannot remove a node", |tx| {
                tx.execute("DELETE FROM node WHERE id = ?1", [key(id)?])
                    .map(drop)
            }),
            RecordId::Entry(directory, tag) => self.change("cannot remove an entry", |tx| {
                let sql = "DELETE FROM entry WHERE directory = ?1 AND tag = ?2";
                tx.execute(sql, (key(directory)?, tag)).map(drop)
            }),
            RecordId::Version(node, version) => self.change("cannot remove a version", |tx| {
                tx.remove_version(key(node)?, key(version)?, false)
            }),
            RecordId::Orphan(id) => self.change("cannot remove an orphan", |tx| {
                tx.execute("DELETE FROM orphan WHERE id = ?1", [key(id)?])
                    .map(drop)
            }),
            RecordId::Header | RecordId::Keyring | RecordId::State | RecordId::Event(_) => self
                .change("cannot remove a record", |_| {
                    let why = "records of this kind are never removed";
                    Err(StoreError::new(Kind::Io, why).into())
                }),
        }
    }

    fn begin_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &Record,
        chunks: u32,
    ) -> Result<(), StoreError> {
        self.change("cannot begin a version", |tx| {
            let first = tx.free_chunk()?;
            let next = first.saturating_add(u64::from(chunks));
            if next > MAX_ID {
                return Err(Fault::corrupt("the numbers of chunks are used up").into());
            }
            tx.chunks_from = next;
            let first = if chunks == 0 { 0 } else { first };
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

    fn erase_version(&mut self, node: NodeId, version: u64) -> Result<(), StoreError> {
        self.change("cannot remove a version", |tx| {
            tx.remove_version(key(node)?, key(version)?, true)
        })
    }

    fn insert_version(
        &mut self,
        node: NodeId,
        version: u64,
        record: &Record,
        chunks: &mut dyn Iterator<Item = Vec<u8>>,
    ) -> Result<(), StoreError> {
        self.change("cannot write a version", |tx| {
            let first = tx.free_chunk()?;
            let count = tx.insert_chunks((node, version), (first, 0), chunks)?;
            let first = if count == 0 { 0 } else { first };
            tx.insert_record((node, version), record, first)
        })
    }

    fn exchange(&mut self, id: RecordId, old: &Record, new: &Record) -> Result<bool, StoreError> {
        let [was, is] = [&old.value, &new.value];
        let [before, after] = [old.generation, new.generation];
        match id {
            RecordId::Node(id) => self.change("cannot rewrite a node", |tx| {
                let sql = "UPDATE node SET generation = ?2, value = ?3 \
                           WHERE id = ?1 AND generation = ?4 AND value = ?5";
                let (id, value) = (key(id)?, fits(is, MAX_NODE)?);
                let (before, after) = (key(before)?, key(after)?);
                Ok(tx.execute(sql, (id, after, value, before, was))? == 1)
            }),
            RecordId::Version(node, version) => {
                self.change("cannot rewrite a version's record", |tx| {
                    let sql = "UPDATE version SET generation = ?3, value = ?4 \
                               WHERE node = ?1 AND version = ?2 AND generation = ?5 AND value = ?6";
                    let (node, version) = (key(node)?, key(version)?);
                    let value = fits(is, MAX_VERSION)?;
                    let (before, after) = (key(before)?, key(after)?);
                    Ok(tx.execute(sql, (node, version, after, value, before, was))? == 1)
                })
            }
            _ => self.change("cannot exchange a record", |_| {
                let why = "only nodes and versions are exchanged";
                Err(StoreError::new(Kind::Io, why).into())
            }),
        }
    }
}
