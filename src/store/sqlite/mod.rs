//! The store in a directory with one SQLite database, for one writing process and any number of
//! reading ones on one host.
//!
//! Opening changes nothing on disk: a vault that fails verification stays as it was, to the byte.
//! (Except for `vault.db-shm`, an index that SQLite rebuilds when it needs it.) Nothing here trusts
//! the bytes it reads, and nothing here decrypts.
//!
//! **No store may cross a `fork`**: a child that merely drops it would release locks and destroy
//! SQLite's bookkeeping. Fork first, open afterwards. For the same reason nothing else in the
//! process may open `vault.db` or the files beside it, not even to copy them.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;
use rusqlite::config::DbConfig;

mod checkpoint;
mod connection;
mod create;
mod errno;
mod failure;
mod hostile;
mod pool;
mod schema;
#[cfg(test)]
mod tests;
mod tx;
mod tx_read;
mod tx_salvage;
mod tx_scan;
mod tx_write;
mod vfs;
mod wal;
mod writer;

pub use create::is_left_over;

use checkpoint::{CheckpointGate, Checkpointer};
use connection::Purpose;
use pool::Pool;
use wal::Wal;
use writer::{WriteConnection, data_version, truncate};

use crate::sync::{Mutex, Rank};

use super::local::LocalPlace;
use super::lock::{self, Holder, Lock};
use super::options::{Mode, OpenOptions};
use super::place::{Opened, Place};
use super::{
    Abort, Durability, Read, Scrub, Store, StoreError, StoreErrorKind as Kind, TxFn, Write,
};

/// An open vault. Dropping it closes it, and moves the WAL into the database if this store has
/// written it or [taken it over](LocalPlace::take_over).
#[derive(Debug)]
pub(super) struct SqliteStore {
    place: Arc<Place>,
    opened: Arc<Opened>,
    pool: Pool,
    gate: Arc<CheckpointGate>,
    side: Side,
}

/// Watches for the commits of other processes.
#[derive(Debug)]
struct ForeignChanges {
    connection: Option<Connection>,
    /// The connection reads the database as a file that nobody changes.
    is_still: bool,
    /// A bit for the numbers of a connection that replaced such a one.
    before: u64,
}

#[derive(Debug)]
enum Side {
    Write {
        lock: Arc<Lock>,
        holder: Holder,
        /// Only one write transaction runs at a time; the lock is for threads that sync beside it.
        /// After a panic in a body it has no connection, and returns errors.
        writer: Mutex<WriteConnection>,
        wal: Arc<Wal>,
        foreign: AtomicU64,
    },
    Read {
        changes: Mutex<ForeignChanges>,
        wal: Wal,
        /// Shows the writer that this reader is here.
        _shown: Option<File>,
    },
}

#[cfg(test)]
impl SqliteStore {
    /// Syncs like another thread that has not yet checked that the vault is still in its place.
    fn sync_without_a_look(&self) -> Result<(), StoreError> {
        match &self.side {
            Side::Write { wal, .. } => wal.sync(),
            Side::Read { wal, .. } => wal.sync(),
        }
    }
}

impl SqliteStore {
    /// Creates a vault, as [`create`](super::create()) promises.
    pub(super) fn create(
        directory: &Path,
        options: OpenOptions,
        init: &mut dyn FnMut(&mut dyn Write) -> Result<(), Abort>,
    ) -> Result<Result<(), Abort>, StoreError> {
        create::create(directory, options, init)
    }

    /// Opens a vault, as [`open`](super::open()) promises.
    pub(super) fn open(
        directory: &Path,
        mode: Mode,
        options: OpenOptions,
    ) -> Result<Self, StoreError> {
        let place = Place::locate(directory, options.unsafe_filesystem)?;
        // Check first that there is a vault: taking the lock creates the lock's file.
        place.look()?;
        let (lock, purpose) = match &mode {
            Mode::Write(_) => (Some(Lock::acquire(&place.lock)?), Purpose::Write),
            Mode::ReadStill => {
                place.must_be_in_one_file()?;
                (None, Purpose::ReadStill)
            }
            Mode::ReadOnly if place.is_still() => (None, Purpose::ReadStill),
            Mode::ReadOnly => (None, Purpose::Read),
        };
        // Look again: the previous writer may have been closing until now.
        let opened = place.look()?;
        let close = |connection| close_last(connection, &place, &opened, false);
        let (connection, cookie) = connection::open(&place.database, purpose, close)
            .map_err(|error| place.explain(error))?;
        opened.set_still(purpose == Purpose::ReadStill);
        place.remember_wal(&opened);
        if let Err(error) = place.check_unmoved(&opened) {
            close(connection);
            return Err(error);
        }
        let (place, opened) = (Arc::new(place), Arc::new(opened));
        let gate = Arc::new(CheckpointGate::default());
        let side = match (mode, lock) {
            (Mode::Write(holder), Some(lock)) => {
                let thread =
                    Checkpointer::new(Arc::clone(&place), Arc::clone(&opened), Arc::clone(&gate));
                // The commits that a killed writer left may not be on disk yet.
                let unsynced = place.wal_len() > 0;
                let wal = Arc::new(Wal::new(Arc::clone(&place), Arc::clone(&opened), unsynced));
                wal.open_early();
                let lock = Arc::new(lock);
                let (held, log) = (Arc::clone(&lock), Arc::clone(&wal));
                let writer = WriteConnection::new(connection, cookie, log, held, thread)?;
                Side::Write {
                    lock,
                    holder,
                    writer: Mutex::new(Rank::WriteConnection, writer),
                    wal,
                    foreign: AtomicU64::new(0),
                }
            }
            _ => Side::Read {
                changes: Mutex::new(
                    Rank::ForeignChanges,
                    ForeignChanges {
                        connection: Some(connection),
                        is_still: opened.is_still(),
                        before: 0,
                    },
                ),
                wal: Wal::new(Arc::clone(&place), Arc::clone(&opened), false),
                _shown: lock::show_reader(&place.lock),
            },
        };
        let pool = Pool::new(Arc::clone(&place), Arc::clone(&opened));
        Ok(Self {
            place,
            opened,
            pool,
            gate,
            side,
        })
    }

    /// The vault's place on this host.
    pub(super) fn local_place(&self) -> LocalPlace {
        let lock = match &self.side {
            Side::Write { lock, holder, .. } => Some((Arc::clone(lock), holder.clone())),
            Side::Read { .. } => None,
        };
        LocalPlace::of_files(&self.place, &self.opened, lock)
    }

    fn read_only(&self) -> StoreError {
        StoreError::of_reader(&self.place.directory)
    }
}

impl Store for SqliteStore {
    fn read(&self, body: TxFn<'_, dyn Read>) -> Result<Result<(), Abort>, StoreError> {
        self.gate.pass();
        self.pool.read(body)
    }

    fn write(
        &self,
        durability: Durability,
        body: TxFn<'_, dyn Write>,
    ) -> Result<Result<(), Abort>, StoreError> {
        let Side::Write { writer, .. } = &self.side else {
            return Err(self.read_only());
        };
        // Commits without a pause would keep the checkpoint from its lock, as readers do.
        let no_checkpoint = self.gate.keep_off_checkpoint();
        let written = writer
            .lock()
            .write(&self.place, &self.opened, durability, body)?;
        drop(no_checkpoint);
        match (written, durability) {
            (Ok(()), Durability::Now) => self.sync().map(Ok),
            (written, _) => Ok(written),
        }
    }

    fn sync(&self) -> Result<(), StoreError> {
        let (writer, wal) = match &self.side {
            Side::Write { writer, wal, .. } => (writer, wal),
            Side::Read { wal, .. } => return wal.sync_of_others(),
        };
        let before = wal.is_synced();
        writer.lock().may_sync(&self.place, &self.opened)?;
        if before {
            return Ok(());
        }
        // Other threads commit meanwhile.
        let synced = wal.sync();
        writer.lock().synced(&self.place, &self.opened, synced)
    }

    /// Moves everything into the database and truncates the WAL: in the database, replaced and
    /// removed records are overwritten.
    fn scrub(&self) -> Result<Scrub, StoreError> {
        let Side::Write { writer, .. } = &self.side else {
            return Err(self.read_only());
        };
        match writer.lock().truncate_wal(&self.place, &self.opened)? {
            true => Ok(Scrub::Scrubbed),
            false => Ok(Scrub::ReaderInTheWay),
        }
    }

    fn has_stopped_writing(&self) -> bool {
        self.gate.has_stopped_writing()
    }

    fn drop_caches(&self) {
        self.pool.clear();
    }

    fn foreign_changes(&self) -> Result<u64, StoreError> {
        match &self.side {
            // Ask the writer's own connection, for which only commits of other processes are
            // changes. While it writes there are none, and this call must not wait.
            Side::Write {
                writer, foreign, ..
            } => {
                if let Some(writer) = writer.try_lock() {
                    foreign.store(writer.data_version()?, Ordering::Relaxed);
                }
                Ok(foreign.load(Ordering::Relaxed))
            }
            Side::Read { changes, .. } => {
                let mut changes = changes.lock();
                self.pool.look_whether_still();
                if changes.is_still && !self.opened.is_still() {
                    changes.connection = None;
                    changes.connection = Some(self.pool.open_another()?);
                    // Its number does not compare with that of the last connection. SQLite's
                    // numbers have 32 bits, so a higher bit tells the two apart.
                    (changes.is_still, changes.before) = (false, 1 << 40);
                }
                match &changes.connection {
                    Some(connection) => Ok(data_version(connection)? | changes.before),
                    None => Err(StoreError::new(Kind::Io, "the vault was closed")),
                }
            }
        }
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // The last connection decides about the WAL, so close the others first.
        self.pool.clear();
        match &mut self.side {
            Side::Read { changes, .. } => {
                if let Some(connection) = changes.lock().connection.take() {
                    close_last(connection, &self.place, &self.opened, false);
                }
            }
            Side::Write { writer, wal, .. } => {
                let mut writer = writer.lock();
                writer.checkpointer.stop();
                let owns_wal = writer.owns_wal || self.opened.is_taken_over();
                let synced = match owns_wal {
                    true => writer
                        .may_sync(&self.place, &self.opened)
                        .and_then(|()| wal.sync())
                        .and_then(|()| writer.synced(&self.place, &self.opened, Ok(()))),
                    false => Ok(()),
                };
                if let Err(error) = &synced {
                    tracing::error!(%error, "the last changes may not be on disk");
                }
                let mut tidy = owns_wal && synced.is_ok();
                if let Some(connection) = writer.take() {
                    if tidy && let Err(error) = truncate(&connection) {
                        // Everything is in the WAL, where the next writer finds it. SQLite would
                        // try again when it closes, and succeed although it has lost pages that it
                        // could not sync.
                        tidy = error.kind == Kind::Busy;
                        tracing::debug!(%error, "the WAL stays");
                    }
                    close_last(connection, &self.place, &self.opened, tidy);
                }
                // The lock ends last, with the writer.
            }
        }
    }
}

/// Closes the last connection of this process.
///
/// When the last connection of all processes is closed, SQLite moves the WAL into the database and
/// removes it. That is right if the WAL is ours, or exists only because we opened the database. A
/// WAL that a killed process left stays as it is.
fn close_last(connection: Connection, place: &Place, opened: &Opened, owns_wal: bool) {
    // SQLite removes the WAL by name, which may be another vault's by now.
    let ours = place.check_unmoved(opened).is_ok();
    if ours && (owns_wal || (!opened.wal_existed && place.wal_len() == 0)) {
        let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
    }
    // Closing fails only if statements are left, and the cache has just dropped them.
    let _ = connection.close();
}
