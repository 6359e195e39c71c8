//! What a store takes, beside FUSE: SQLite behind the floor. Each name is committed before it is
//! acknowledged, each content is on disk before its fsync is, and one sync serves all that wait for
//! one. The transactions are those of secretfs in number and kind, their rows as long as its records;
//! nothing is encrypted, and nothing is read to be checked.

use std::ffi::OsStr;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use fuser::{Errno, ReplyEmpty};
use rusqlite::{Connection, Params};

const TABLES: &str = "
    PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA secure_delete = ON;
    PRAGMA wal_autocheckpoint = 0;
    CREATE TABLE state (id INTEGER PRIMARY KEY, value BLOB);
    CREATE TABLE node (id INTEGER PRIMARY KEY, value BLOB);
    CREATE TABLE entry (tag BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID;
    CREATE TABLE content (node INTEGER PRIMARY KEY, version BLOB, sealed BLOB)";
const PUT_NODE: &str = "REPLACE INTO node VALUES (?1, zeroblob(385))";
const PUT_ENTRY: &str = "REPLACE INTO entry VALUES (?1, zeroblob(317))";
/// The WAL is begun anew after so many syncs, or it would grow, which takes longer.
const SYNCS: u64 = 64;

/// A name in a directory.
pub type Name<'a> = (u64, &'a OsStr);

pub struct Database {
    connection: Mutex<Connection>,
    wal: File,
    waiting: Mutex<Vec<ReplyEmpty>>,
    more: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run(connection: &Connection, sql: &str, values: impl Params) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.execute(values).map(drop)
}

/// As long as a name tag, and as evenly spread.
fn tag((directory, name): Name<'_>) -> Vec<u8> {
    let words = (0..4).map(|word| {
        let mut hasher = DefaultHasher::new();
        (word, directory, name).hash(&mut hasher);
        hasher.finish().to_be_bytes()
    });
    words.flatten().collect()
}

/// Inode numbers as SQLite takes them.
fn key(node: u64) -> i64 {
    node.cast_signed()
}

impl Database {
    /// Makes an empty one, and starts the thread that syncs.
    pub fn make(path: &Path) -> Result<Arc<Self>, String> {
        let named = |end| format!("{}{end}", path.display());
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(named(end));
        }
        let fail = |e: &dyn std::fmt::Display| format!("cannot make {}: {e}", path.display());
        let connection = Connection::open(path).map_err(|e| fail(&e))?;
        connection.execute_batch(TABLES).map_err(|e| fail(&e))?;
        connection.set_prepared_statement_cache_capacity(64);
        let made = Arc::new(Self {
            connection: Mutex::new(connection),
            wal: File::open(named("-wal")).map_err(|e| fail(&e))?,
            waiting: Mutex::default(),
            more: Condvar::new(),
        });
        let syncing = Arc::clone(&made);
        std::thread::spawn(move || syncing.sync_again_and_again());
        Ok(made)
    }

    /// One transaction: what every one of secretfs' stores, and `body`.
    fn transact(
        &self,
        directory: u64,
        body: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), Errno> {
        let connection = lock(&self.connection);
        run(&connection, "BEGIN IMMEDIATE", [])
            .and_then(|()| body(&connection))
            .and_then(|()| run(&connection, PUT_NODE, [key(directory)]))
            .and_then(|()| {
                let state = "REPLACE INTO state VALUES (0, zeroblob(296))";
                run(&connection, state, [])
            })
            .and_then(|()| run(&connection, "COMMIT", []))
            .map_err(|_| Errno::EIO)
    }

    pub fn create(&self, node: u64, name: Name<'_>) -> Result<(), Errno> {
        self.transact(name.0, |connection| {
            run(connection, PUT_NODE, [key(node)])?;
            run(connection, PUT_ENTRY, [tag(name)])
        })
    }

    pub fn rename(
        &self,
        node: u64,
        replaced: Option<u64>,
        from: Name<'_>,
        to: Name<'_>,
    ) -> Result<(), Errno> {
        self.transact(to.0, |connection| {
            run(connection, "DELETE FROM entry WHERE tag = ?1", [tag(from)])?;
            run(connection, PUT_ENTRY, [tag(to)])?;
            run(connection, PUT_NODE, [key(node)])?;
            let Some(replaced) = replaced.map(key) else {
                return Ok(());
            };
            run(connection, "DELETE FROM node WHERE id = ?1", [replaced])?;
            let content = "DELETE FROM content WHERE node = ?1";
            run(connection, content, [replaced])
        })
    }

    /// Stores a content of 1 KiB, and answers when it is on disk.
    pub fn publish(&self, node: u64, reply: ReplyEmpty) {
        let content = "REPLACE INTO content VALUES (?1, zeroblob(132), zeroblob(1064))";
        match self.transact(node, |connection| run(connection, content, [key(node)])) {
            Ok(()) => {
                lock(&self.waiting).push(reply);
                self.more.notify_one();
            }
            Err(error) => reply.error(error),
        }
    }

    fn sync_again_and_again(&self) {
        for count in 1.. {
            let waiting = {
                let mut waiting = lock(&self.waiting);
                while waiting.is_empty() {
                    let woken = self.more.wait(waiting);
                    waiting = woken.unwrap_or_else(PoisonError::into_inner);
                }
                std::mem::take(&mut *waiting)
            };
            let synced = self.wal.sync_data();
            for reply in waiting {
                match &synced {
                    Ok(()) => reply.ok(),
                    Err(_) => reply.error(Errno::EIO),
                }
            }
            if count % SYNCS == 0 {
                let restart = "PRAGMA wal_checkpoint(RESTART)";
                let _ = lock(&self.connection).query_row(restart, [], |_| Ok(()));
            }
        }
    }
}
