//! The store in a directory with one SQLite database, for one writing process and any number of
//! reading ones on one host.
//!
//! Opening changes nothing on disk: a vault that fails verification is left as it was, down to
//! the byte. (`vault.db-shm` does not count: it is an index that SQLite makes anew when it needs
//! it.) Nothing here trusts what it reads, and nothing here decrypts.
//!
//! **No store may cross a `fork`**: a child that only drops it would release locks and take
//! SQLite's bookkeeping along. Fork first, open afterwards. For the same reason nothing else in
//! the process may open `vault.db` or the files beside it, not even to copy them.

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
mod tx_write;
mod vfs;
mod wal;
mod writer;

pub use create::is_left_over;

use checkpoint::{Checkpointer, Desk};
use connection::Purpose;
use pool::Pool;
use wal::Wal;
use writer::{Writer, data_version, truncate};

use crate::sync::{Mutex, Rank};

use super::lock::{self, Holder, Lock};
use super::place::{Footprint, Opened, Place};
use super::{Abort, Body, Durability, Read, Store, StoreError, StoreErrorKind as Kind, Write};

/// What a vault is opened for.
#[derive(Clone, Debug)]
pub enum Mode {
    /// Reading and writing, as this holder of the lock.
    Write(Holder),
    /// Reading, beside any other process. Takes no lock.
    ReadOnly,
    /// Reading what nobody changes, such as a backup: no file is made beside it, not for a moment.
    ReadStill,
}

/// How a vault is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Accept a network or FUSE file system.
    pub unsafe_filesystem: bool,
}

/// An open vault. Closed by dropping it, which moves everything into the database if anything was
/// written or [adopted](Self::adopt_wal).
#[derive(Debug)]
pub struct SqliteStore {
    place: Arc<Place>,
    opened: Arc<Opened>,
    pool: Pool,
    desk: Arc<Desk>,
    side: Side,
}

/// What looks for the commits of others.
#[derive(Debug)]
struct Watch {
    connection: Option<Connection>,
    /// It takes the database for a file that nobody changes.
    is_still: bool,
    /// Set in the numbers of a connection that came after such a one.
    before: u64,
}

#[derive(Debug)]
enum Side {
    Write {
        holder: Holder,
        /// After a panic in a body it is without its connection, and says so.
        writer: Mutex<Writer>,
        wal: Arc<Wal>,
        foreign: AtomicU64,
    },
    Read {
        watch: Mutex<Watch>,
        wal: Wal,
        /// Shows the writer that we are here.
        _shown: Option<File>,
    },
}

#[cfg(test)]
impl SqliteStore {
    /// What another thread's sync has done by the time that it has not yet looked where that went.
    fn sync_without_a_look(&self) -> Result<(), StoreError> {
        match &self.side {
            Side::Write { wal, .. } => wal.sync(),
            Side::Read { wal, .. } => wal.sync(),
        }
    }
}

impl SqliteStore {
    /// Makes a vault in `directory`, with what `init` writes, or nothing at all.
    ///
    /// The directory is made (mode 0700; its parent must exist), or it exists and is empty.
    ///
    /// # Errors
    /// [`Exists`](Kind::Exists) when there is anything in the directory;
    /// [`Busy`](Kind::Busy) when somebody else is just making a vault there. `Ok(Err(Abort))`
    /// when `init` gave up. In all these cases everything is as it was.
    pub fn create(
        directory: &Path,
        init: &mut dyn FnMut(&mut dyn Write) -> Result<(), Abort>,
    ) -> Result<Result<(), Abort>, StoreError> {
        create::create(directory, false, init)
    }

    /// [`create`](Self::create) with options.
    ///
    /// # Errors
    /// As there.
    pub fn create_with(
        directory: &Path,
        options: OpenOptions,
        init: &mut dyn FnMut(&mut dyn Write) -> Result<(), Abort>,
    ) -> Result<Result<(), Abort>, StoreError> {
        create::create(directory, options.unsafe_filesystem, init)
    }

    /// Opens the vault in `directory`.
    ///
    /// # Errors
    /// [`NotAVault`](Kind::NotAVault), [`Busy`](Kind::Busy) with the name of the holder,
    /// [`Corrupt`](Kind::Corrupt) when the file's structure is not to the letter what
    /// [`create`](Self::create) made, [`UnsafeFilesystem`](Kind::UnsafeFilesystem), and the ways
    /// in which files cannot be opened.
    pub fn open(directory: &Path, mode: Mode, options: OpenOptions) -> Result<Self, StoreError> {
        let place = Place::locate(directory, options.unsafe_filesystem)?;
        // Not before there is a vault: taking the lock makes the file if it is missing.
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
        // Once more, since the previous writer may have been closing until just now.
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
        let desk = Arc::new(Desk::default());
        let side = match (mode, lock) {
            (Mode::Write(holder), Some(lock)) => {
                let thread =
                    Checkpointer::new(Arc::clone(&place), Arc::clone(&opened), Arc::clone(&desk));
                // What a killed writer left may not be on disk yet.
                let unsynced = place.wal_len() > 0;
                let wal = Arc::new(Wal::new(Arc::clone(&place), Arc::clone(&opened), unsynced));
                wal.open_early();
                let writer = Writer::new(connection, cookie, Arc::clone(&wal), lock, thread)?;
                Side::Write {
                    holder,
                    writer: Mutex::new(Rank::Writer, writer),
                    wal,
                    foreign: AtomicU64::new(0),
                }
            }
            _ => Side::Read {
                watch: Mutex::new(
                    Rank::ForeignChanges,
                    Watch {
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
            desk,
            side,
        })
    }

    /// Writes into the lock who holds it. For the caller to do once the vault is verified: until
    /// then nothing in it may change. Does nothing in a store opened for reading.
    ///
    /// # Errors
    /// When the lock's file cannot be written.
    pub fn announce(&self) -> Result<(), StoreError> {
        let Side::Write { holder, writer, .. } = &self.side else {
            return Ok(());
        };
        writer.lock().lock.announce(holder).map_err(|error| {
            StoreError::of_file("cannot write into the lock", &self.place.lock, &error)
        })
    }

    /// What a killed writer left in the WAL is moved into the database when this one is closed, as if
    /// it were its own. For the caller to say once the vault is verified.
    pub fn adopt_wal(&self) {
        if let Side::Write { writer, .. } = &self.side {
            writer.lock().owns_wal |= self.place.wal_len() > 0;
        }
    }

    /// The vault's directory, absolute and without symlinks.
    pub fn directory(&self) -> &Path {
        &self.place.directory
    }

    /// That directory, wherever it is by now; nobody else writes to it while this store is open.
    ///
    /// # Errors
    /// When the store was opened for reading, or the system has no descriptor left.
    pub fn locked_directory(&self) -> Result<File, StoreError> {
        let Side::Write { writer, .. } = &self.side else {
            return Err(self.read_only());
        };
        let cloned = writer.lock().lock.directory();
        cloned.map_err(|error| {
            StoreError::of_file("cannot use the directory", &self.place.directory, &error)
        })
    }

    /// Fails when the vault no longer is at its path: what is read and written here then is not
    /// what others find there.
    ///
    /// # Errors
    /// [`Moved`](Kind::Moved).
    pub fn check_unmoved(&self) -> Result<(), StoreError> {
        self.place.check_unmoved(&self.opened)
    }

    /// Moves everything into the database and cuts the WAL to nothing, so that the raw files hold
    /// no earlier state of any record: replaced and removed records are overwritten in the
    /// database itself. True when that was achieved; false when a reader was in the way for
    /// more than a second.
    ///
    /// # Errors
    /// As for a durable commit.
    pub fn truncate_wal(&self) -> Result<bool, StoreError> {
        let Side::Write { writer, .. } = &self.side else {
            return Err(self.read_only());
        };
        writer.lock().truncate_wal(&self.place, &self.opened)
    }

    /// How the files are now: whoever changes one of them changes this, by SQLite or past it.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub fn footprint(&self) -> Result<Footprint, StoreError> {
        self.place.footprint(self.foreign_changes()?)
    }

    /// Has what is read next be read from the files, and not from pages that were read before.
    pub fn forget_pages(&self) {
        self.pool.clear();
    }

    /// Whether another process reads the vault beside this one, which writes it. True when that
    /// cannot be told.
    pub fn has_readers(&self) -> bool {
        lock::has_readers(&self.place.lock)
    }

    fn read_only(&self) -> StoreError {
        StoreError::new(
            Kind::ReadOnly,
            format!(
                "{} was opened for reading only",
                self.place.directory.display()
            ),
        )
    }
}

impl Store for SqliteStore {
    fn read(&self, body: Body<'_, dyn Read>) -> Result<Result<(), Abort>, StoreError> {
        self.desk.pass();
        self.pool.read(body)
    }

    /// Must not be called from within a body of another `write`.
    fn write(
        &self,
        durability: Durability,
        body: Body<'_, dyn Write>,
    ) -> Result<Result<(), Abort>, StoreError> {
        let Side::Write { writer, .. } = &self.side else {
            return Err(self.read_only());
        };
        // Commits without a pause would keep the checkpoint from its lock as readers do.
        let turn = self.desk.turn_to_write();
        let written = writer
            .lock()
            .write(&self.place, &self.opened, durability, body)?;
        drop(turn);
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
        // Others go on to commit meanwhile.
        let synced = wal.sync();
        writer.lock().synced(&self.place, &self.opened, synced)
    }

    fn has_stopped_writing(&self) -> bool {
        self.desk.has_stopped_writing()
    }

    fn foreign_changes(&self) -> Result<u64, StoreError> {
        match &self.side {
            // Asked of the writer's own connection, to which only the commits of others are
            // changes. While it is writing there are none, and this must not wait.
            Side::Write {
                writer, foreign, ..
            } => {
                if let Some(writer) = writer.try_lock() {
                    foreign.store(writer.data_version()?, Ordering::Relaxed);
                }
                Ok(foreign.load(Ordering::Relaxed))
            }
            Side::Read { watch, .. } => {
                let mut watch = watch.lock();
                self.pool.look_whether_still();
                if watch.is_still && !self.opened.is_still() {
                    watch.connection = None;
                    watch.connection = Some(self.pool.open_another()?);
                    // Its number says nothing beside that of the last one; SQLite's have 32 bits.
                    (watch.is_still, watch.before) = (false, 1 << 40);
                }
                match &watch.connection {
                    Some(connection) => Ok(data_version(connection)? | watch.before),
                    None => Err(StoreError::new(Kind::Io, "the vault was closed")),
                }
            }
        }
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        // The last connection decides what happens to the WAL, so the others go first.
        self.pool.clear();
        match &mut self.side {
            Side::Read { watch, .. } => {
                if let Some(connection) = watch.lock().connection.take() {
                    close_last(connection, &self.place, &self.opened, false);
                }
            }
            Side::Write { writer, wal, .. } => {
                let mut writer = writer.lock();
                writer.checkpointer.stop();
                let synced = match writer.owns_wal {
                    true => writer
                        .may_sync(&self.place, &self.opened)
                        .and_then(|()| wal.sync())
                        .and_then(|()| writer.synced(&self.place, &self.opened, Ok(()))),
                    false => Ok(()),
                };
                if let Err(error) = &synced {
                    tracing::error!(%error, "the last changes may not be on disk");
                }
                let mut tidy = writer.owns_wal && synced.is_ok();
                if let Some(connection) = writer.take() {
                    if tidy && let Err(error) = truncate(&connection) {
                        // All of it is in the WAL, where the next writer finds it. SQLite would try
                        // once more, and succeed although it has lost what could not be synced.
                        tidy = error.kind == Kind::Busy;
                        tracing::debug!(%error, "the WAL stays");
                    }
                    close_last(connection, &self.place, &self.opened, tidy);
                }
                // The lock goes last, with the writer.
            }
        }
    }
}

/// Closes the last connection of this process.
///
/// SQLite removes the WAL when the last connection of all processes is closed, after moving what
/// is in it into the database. That is right if it is ours, or if the WAL exists only because we
/// opened the database. Else what another process left behind, killed, stays as it is.
fn close_last(connection: Connection, place: &Place, opened: &Opened, owns_wal: bool) {
    // SQLite removes by name: never what is another vault's by now.
    let ours = place.check_unmoved(opened).is_ok();
    if ours && (owns_wal || (!opened.wal_existed && place.wal_len() == 0)) {
        let _ = connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
    }
    // Fails only when statements are left, of which the cache has just disposed.
    let _ = connection.close();
}
