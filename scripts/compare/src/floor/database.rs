//! What a store takes, beside FUSE: SQLite behind the floor. A name that is made or moved is committed
//! before that is acknowledged, a content is on disk before its fsync is, and one sync serves all that
//! wait for one. Transactions, rows and their lengths are those of a replacement in secretfs, and so is
//! the way to the WAL; nothing is encrypted, and nothing is read to be checked.

use std::ffi::OsStr;
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use fuser::{Errno, ReplyEmpty};
use rusqlite::{Connection, OpenFlags, Params};

#[path = "../../../../src/store/vfs.rs"]
#[allow(dead_code)]
mod vfs;

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
/// The WAL is begun anew after so many syncs, or it would grow, which takes longer.
const SYNCS: u64 = 64;

/// A name in a directory.
pub type Name<'a> = (u64, &'a OsStr);

pub struct Database {
    connection: Mutex<Connection>,
    wal: File,
    /// Whoever waits for a sync.
    waiting: Mutex<Vec<ReplyEmpty>>,
    more: Condvar,
    /// Nodes without a name, which go with the next content that is stored.
    orphans: Mutex<Vec<i64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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

fn open(path: &Path) -> rusqlite::Result<Connection> {
    match vfs::name() {
        Some(name) => Connection::open_with_flags_and_vfs(path, OpenFlags::default(), name),
        None => Connection::open(path),
    }
}

impl Database {
    /// Makes an empty one, and starts the threads that sync and move the WAL into it.
    pub fn make(path: &Path) -> Result<Arc<Self>, String> {
        let named = |end| format!("{}{end}", path.display());
        for end in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(named(end));
        }
        let fail = |e: &dyn std::fmt::Display| format!("cannot make {}: {e}", path.display());
        let connection = open(path).map_err(|e| fail(&e))?;
        connection.execute_batch(TABLES).map_err(|e| fail(&e))?;
        connection.set_prepared_statement_cache_capacity(64);
        let aside = Connection::open(path).map_err(|e| fail(&e))?;
        let made = Arc::new(Self {
            connection: Mutex::new(connection),
            wal: File::open(named("-wal")).map_err(|e| fail(&e))?,
            waiting: Mutex::default(),
            more: Condvar::new(),
            orphans: Mutex::default(),
        });
        let (at_times, times) = sync_channel(1);
        let (syncing, moving) = (Arc::clone(&made), Arc::clone(&made));
        std::thread::spawn(move || {
            for count in 1.. {
                syncing.sync();
                if count % SYNCS == 0 {
                    let _ = at_times.try_send(());
                }
            }
        });
        std::thread::spawn(move || moving.begin_wal_anew(&aside, &times));
        Ok(made)
    }

    /// One transaction: what each of secretfs' stores, and `body`.
    fn transact(
        &self,
        body: impl FnOnce(&Connection) -> rusqlite::Result<()>,
    ) -> Result<(), Errno> {
        let connection = lock(&self.connection);
        run(&connection, "BEGIN IMMEDIATE", [])
            .and_then(|()| body(&connection))
            .and_then(|()| run(&connection, PUT_STATE, []))
            .and_then(|()| run(&connection, "COMMIT", []))
            .map_err(|_| Errno::EIO)
    }

    pub fn create(&self, node: u64, name: Name<'_>) -> Result<(), Errno> {
        self.transact(|connection| {
            run(connection, PUT_NODE, [key(node)])?;
            run(connection, PUT_ENTRY, place(name))?;
            run(connection, PUT_NODE, [key(name.0)])
        })
    }

    /// Within one directory, as replacements are.
    pub fn rename(
        &self,
        node: u64,
        replaced: Option<u64>,
        from: Name<'_>,
        to: Name<'_>,
    ) -> Result<(), Errno> {
        self.transact(|connection| {
            run(connection, DELETE_ENTRY, place(from))?;
            run(connection, PUT_ENTRY, place(to))?;
            run(connection, PUT_NODE, [key(node)])?;
            run(connection, PUT_NODE, [key(to.0)])?;
            let Some(replaced) = replaced.map(key) else {
                return Ok(());
            };
            // The kernel still knows it.
            run(connection, PUT_NODE, [replaced])?;
            run(connection, "INSERT INTO orphan VALUES (?1)", [replaced])?;
            lock(&self.orphans).push(replaced);
            Ok(())
        })
    }

    /// Stores a content of 1 KiB, and answers when it is on disk.
    pub fn publish(&self, node: u64, reply: ReplyEmpty) {
        let stored = self.transact(|connection| {
            for put in PUT_CONTENT {
                run(connection, put, [key(node)])?;
            }
            run(connection, PUT_NODE, [key(node)])?;
            for orphan in lock(&self.orphans).drain(..) {
                for delete in REAP {
                    run(connection, delete, [orphan])?;
                }
            }
            Ok(())
        });
        match stored {
            Ok(()) => {
                lock(&self.waiting).push(reply);
                self.more.notify_one();
            }
            Err(error) => reply.error(error),
        }
    }

    /// Syncs once for all that wait, when somebody does.
    fn sync(&self) {
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
    }

    /// Moves the WAL into the database while others write, and what came meanwhile while they wait.
    fn begin_wal_anew(&self, aside: &Connection, times: &Receiver<()>) {
        for () in times {
            let checkpoint = |mode| {
                let sql = format!("PRAGMA wal_checkpoint({mode})");
                let _ = aside.query_row(&sql, [], |_| Ok(()));
            };
            checkpoint("PASSIVE");
            let _writers = lock(&self.connection);
            checkpoint("RESTART");
        }
    }
}
