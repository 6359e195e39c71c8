//! The rows of a replacement: transactions, rows and their lengths are those of secretfs. Nothing is
//! encrypted, and nothing is read to be checked.
//!
//! Also part of `scripts/micro.rs`.

use std::ffi::{CStr, OsStr};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, OpenFlags, Params, Result};

const TABLES: &str = "
    PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON;
    PRAGMA wal_autocheckpoint = 0;
    CREATE TABLE state (id INTEGER PRIMARY KEY, value BLOB);
    CREATE TABLE node (id INTEGER PRIMARY KEY, value BLOB);
    CREATE TABLE entry (directory INTEGER, tag BLOB, value BLOB, PRIMARY KEY (directory, tag))
        WITHOUT ROWID;
    CREATE TABLE version (node INTEGER PRIMARY KEY, value BLOB);
    CREATE TABLE chunk (node INTEGER PRIMARY KEY, sealed BLOB);
    CREATE TABLE orphan (node INTEGER PRIMARY KEY)";
const PUT_STATE: &str = "REPLACE INTO state VALUES (0, zeroblob(296))";
const PUT_NODE: &str = "REPLACE INTO node VALUES (?1, zeroblob(385))";
const PUT_ENTRY: &str = "REPLACE INTO entry VALUES (?1, ?2, zeroblob(317))";
const DELETE_ENTRY: &str = "DELETE FROM entry WHERE directory = ?1 AND tag = ?2";
const PUT_CONTENT: [&str; 2] = [
    "REPLACE INTO version VALUES (?1, zeroblob(132))",
    "REPLACE INTO chunk VALUES (?1, zeroblob(1064))",
];
const REAP: [&str; 4] = [
    "DELETE FROM orphan WHERE node = ?1",
    "DELETE FROM version WHERE node = ?1",
    "DELETE FROM chunk WHERE node = ?1",
    "DELETE FROM node WHERE id = ?1",
];

/// A name in a directory.
pub type Name<'a> = (u64, &'a OsStr);

/// A database of the shape of a vault's.
pub struct Rows {
    connection: Connection,
    /// Nodes without a name, which go with the next content that is stored.
    orphans: Vec<i64>,
}

fn run(connection: &Connection, sql: &str, values: impl Params) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute(values).map(drop)
}

/// Where a name is filed: in the rows of its directory, by a number as long as a name tag.
fn place((directory, name): Name<'_>) -> (i64, Vec<u8>) {
    let words = (0..4).map(|word| {
        let mut hasher = DefaultHasher::new();
        (word, name).hash(&mut hasher);
        hasher.finish().to_be_bytes()
    });
    (key(directory), words.flatten().collect())
}

/// Inode numbers as SQLite takes them.
fn key(node: u64) -> i64 {
    node.cast_signed()
}

impl Rows {
    /// Makes an empty one in the place of what is at `path`, with this way to the files.
    pub fn make(path: &Path, vfs: &CStr) -> Result<Self> {
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{end}", path.display()));
        }
        let connection = Connection::open_with_flags_and_vfs(path, OpenFlags::default(), vfs)?;
        connection.execute_batch(TABLES)?;
        connection.set_prepared_statement_cache_capacity(64);
        Ok(Self {
            connection,
            orphans: Vec::new(),
        })
    }

    /// One transaction: what each of secretfs' stores, and `body`.
    fn transact(&self, body: impl FnOnce(&Connection) -> Result<()>) -> Result<()> {
        run(&self.connection, "BEGIN IMMEDIATE", [])?;
        body(&self.connection)?;
        run(&self.connection, PUT_STATE, [])?;
        run(&self.connection, "COMMIT", [])
    }

    pub fn create(&self, node: u64, name: Name<'_>) -> Result<()> {
        self.transact(|connection| {
            run(connection, PUT_NODE, [key(node)])?;
            run(connection, PUT_ENTRY, place(name))?;
            run(connection, PUT_NODE, [key(name.0)])
        })
    }

    /// Stores a content of 1 KiB.
    pub fn publish(&mut self, node: u64) -> Result<()> {
        let orphans = std::mem::take(&mut self.orphans);
        self.transact(|connection| {
            for put in PUT_CONTENT {
                run(connection, put, [key(node)])?;
            }
            run(connection, PUT_NODE, [key(node)])?;
            for orphan in orphans {
                for delete in REAP {
                    run(connection, delete, [orphan])?;
                }
            }
            Ok(())
        })
    }

    /// Within one directory, as replacements are.
    pub fn rename(
        &mut self,
        node: u64,
        replaced: Option<u64>,
        from: Name<'_>,
        to: Name<'_>,
    ) -> Result<()> {
        let replaced = replaced.map(key);
        self.transact(|connection| {
            run(connection, DELETE_ENTRY, place(from))?;
            run(connection, PUT_ENTRY, place(to))?;
            run(connection, PUT_NODE, [key(node)])?;
            run(connection, PUT_NODE, [key(to.0)])?;
            let Some(replaced) = replaced else {
                return Ok(());
            };
            // The kernel still knows it.
            run(connection, PUT_NODE, [replaced])?;
            run(connection, "INSERT INTO orphan VALUES (?1)", [replaced])
        })?;
        self.orphans.extend(replaced);
        Ok(())
    }
}

/// Moves the WAL into the database over a connection of its own; `RESTART` has it begun anew.
pub struct Mover(Connection);

impl Mover {
    pub fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        // A connection that has read nothing knows of no WAL, and would move nothing.
        connection.query_row("SELECT count(*) FROM state", [], |_| Ok(()))?;
        Ok(Self(connection))
    }

    pub fn checkpoint(&self, mode: CheckpointMode) -> Result<()> {
        match self.0.wal_checkpoint_v2(Some(rusqlite::MAIN_DB), mode)? {
            // There is no WAL: then it would grow behind our back, and what is measured with it.
            (..0, _) => Err(rusqlite::Error::InvalidQuery),
            _ => Ok(()),
        }
    }
}
