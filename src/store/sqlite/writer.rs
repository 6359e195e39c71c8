//! The one connection that writes.
//!
//! It never commits into a file that is no longer at the vault's path. After an I/O failure in a
//! commit or a sync it stops, instead of guessing what is on disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rusqlite::Connection;
use rusqlite::wal::CheckpointMode;

use crate::store::lock::Lock;
use crate::store::place::{Opened, Place};
use crate::store::{Abort, Durability, StoreError, StoreErrorKind as Kind, TxFn, Write};

use super::checkpoint::{Checkpointer, WAIT_FOR_READERS, checkpoint};
use super::connection;
use super::hostile::Fault;
use super::tx::Tx;
use super::wal::Wal;
use super::{failure, schema, vfs};

/// Number of attempts of a body that a lock gets in the way of.
const TRIES: usize = 3;

#[derive(Debug)]
pub(super) struct WriteConnection {
    /// `None` after a panic in a body, which closed it, and after [`take`](Self::take).
    connection: Option<Connection>,
    lock: Arc<Lock>,
    pub(super) checkpointer: Checkpointer,
    /// The schema cookie of the verified schema.
    cookie: i64,
    /// Pages in the WAL after the last commit that wrote any. SQLite's hook sets it.
    pages: Arc<AtomicI32>,
    wal: Arc<Wal>,
    /// The WAL is ours: closing moves it into the database.
    pub(super) owns_wal: bool,
    /// There were commits since the vault was last found in its place.
    unseen: bool,
    /// Why the writer refuses to write.
    latch: Option<StoreError>,
    /// Chunk numbers below this may be reserved for versions that were begun.
    chunks_from: u64,
}

impl WriteConnection {
    pub(super) fn new(
        mut connection: Connection,
        cookie: i64,
        wal: Arc<Wal>,
        lock: Arc<Lock>,
        checkpointer: Checkpointer,
    ) -> Result<Self, StoreError> {
        let pages = Arc::new(AtomicI32::new(0));
        let report = Arc::clone(&pages);
        let hooked = connection.wal_hook(Some(move |_: &'_ mut _, count| {
            report.store(count, Ordering::Relaxed);
            Ok(())
        }));
        hooked.map_err(|error| failure::of(&connection, "cannot watch the WAL", error))?;
        Ok(Self {
            connection: Some(connection),
            lock,
            checkpointer,
            cookie,
            pages,
            wal,
            owns_wal: false,
            unseen: false,
            latch: None,
            chunks_from: 1,
        })
    }

    /// Takes the connection out for good; `None` if it is gone already.
    pub(super) fn take(&mut self) -> Option<Connection> {
        self.connection.take()
    }

    /// A number that changes when another connection commits.
    pub(super) fn data_version(&self) -> Result<u64, StoreError> {
        data_version(self.connection.as_ref().ok_or_else(gone)?)
    }

    /// Runs `body` in a transaction. The transaction is not durable yet; `durability` says whether
    /// the caller is going to sync it.
    pub(super) fn write(
        &mut self,
        place: &Place,
        opened: &Opened,
        durability: Durability,
        body: TxFn<'_, dyn Write>,
    ) -> Result<Result<(), Abort>, StoreError> {
        let mut tries = 1;
        loop {
            let outcome = self.attempt(place, opened, durability, &mut *body);
            match outcome {
                Attempt::Done(outcome) => return outcome,
                Attempt::Busy(_) if tries < TRIES => tries += 1,
                Attempt::Busy(error) => return Err(error),
            }
        }
    }

    fn attempt(
        &mut self,
        place: &Place,
        opened: &Opened,
        durability: Durability,
        body: TxFn<'_, dyn Write>,
    ) -> Attempt {
        if let Err(error) = self.usable(place, opened, durability) {
            return Attempt::of(error);
        }
        let Some(connection) = self.connection.take() else {
            self.checkpointer.gate().stop_writing();
            return Attempt::of(gone());
        };
        if let Err(error) = begin(&connection, self.cookie) {
            self.give_back(connection);
            // No retry after `Busy`: the connection has already waited for the lock.
            return Attempt::Done(Err(error));
        }
        let mut tx = Tx::new(connection, true);
        tx.chunks_from = self.chunks_from;
        let outcome = body(&mut tx);
        let Tx {
            connection,
            trouble,
            chunks_from,
            ..
        } = tx;
        // Keep the reservation even after a rollback: there are plenty of numbers.
        self.chunks_from = chunks_from;
        match (outcome, trouble) {
            (Ok(()), None) => {}
            (outcome, trouble) => {
                self.give_back(connection);
                return match trouble {
                    Some(trouble) if trouble.kind == Kind::Busy => Attempt::Busy(trouble),
                    Some(trouble) if outcome.is_ok() => Attempt::of(trouble),
                    _ => Attempt::Done(Ok(Err(Abort))),
                };
            }
        }
        // A vault that is no longer in its place takes no commit, durable or not.
        if let Err(error) = self.acknowledge(place, opened) {
            self.give_back(connection);
            return Attempt::of(error);
        }
        match self.commit(connection) {
            Ok(()) => Attempt::Done(Ok(Ok(()))),
            Err(error) => Attempt::of(error),
        }
    }

    /// Fails if the writer has stopped, or the vault is no longer in its place.
    pub(super) fn may_sync(&mut self, place: &Place, opened: &Opened) -> Result<(), StoreError> {
        self.look_at_checkpoints();
        if self.wal.is_synced() {
            return match self.latch.clone() {
                Some(latch) => Err(latch),
                // Another thread has synced, and has not yet checked where the vault is.
                None if self.unseen => self.acknowledge(place, opened),
                None => Ok(()),
            };
        }
        // `synced` checks the vault's place before the commit is acknowledged.
        self.usable(place, opened, Durability::Soon)
    }

    /// Takes the outcome of a sync, and checks that it went where the next mount will look.
    pub(super) fn synced(
        &mut self,
        place: &Place,
        opened: &Opened,
        outcome: Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        if let Err(error) = &outcome {
            self.latch(error);
        }
        outcome.and_then(|()| self.acknowledge(place, opened))
    }

    /// Moves everything into the database and truncates the WAL, so that the raw files hold no old
    /// state of any record. False if a reader was in the way.
    pub(super) fn truncate_wal(
        &mut self,
        place: &Place,
        opened: &Opened,
    ) -> Result<bool, StoreError> {
        self.may_sync(place, opened)?;
        let synced = self.wal.sync();
        self.synced(place, opened, synced)?;
        let connection = self.connection.as_ref().ok_or_else(gone)?;
        match truncate(connection) {
            Ok(_) => Ok(true),
            Err(error) if error.kind == Kind::Busy => Ok(false),
            Err(error) => {
                if matches!(error.kind, Kind::Io | Kind::ReadOnly) {
                    self.latch(&error);
                }
                Err(error)
            }
        }
    }

    fn usable(
        &mut self,
        place: &Place,
        opened: &Opened,
        durability: Durability,
    ) -> Result<(), StoreError> {
        self.look_at_checkpoints();
        if let Some(latch) = &self.latch {
            return Err(latch.clone());
        }
        if durability == Durability::Now {
            // Checked again after the commit. Here a refusal leaves no trace.
            self.check_place(place, opened)?;
        }
        Ok(())
    }

    /// Stops the writer after a failed checkpoint, which leaves unknown what is in the database.
    fn look_at_checkpoints(&mut self) {
        if self.latch.is_none()
            && let Some(error) = self.checkpointer.gate().failed()
        {
            self.latch(&error);
        }
    }

    fn commit(&mut self, connection: Connection) -> Result<(), StoreError> {
        self.pages.store(0, Ordering::Relaxed);
        let outcome = execute(&connection, "COMMIT");
        let result = outcome.map_err(|error| failure::of(&connection, "cannot commit", error));
        self.give_back(connection);
        if let Err(error) = result {
            // After a full disk or a busy lock the transaction is rolled back, and nothing is lost.
            if !matches!(error.kind, Kind::Full | Kind::Busy) {
                self.latch(&error);
            }
            return Err(error);
        }
        // The hook has run if the commit wrote anything.
        let pages = self.pages.load(Ordering::Relaxed);
        if pages > 0 {
            self.owns_wal = true;
            self.unseen = true;
            self.wal.has_grown();
            self.checkpointer.wal_has(pages);
        }
        Ok(())
    }

    /// Checks, before a commit and before a durable one is acknowledged, that it goes where the
    /// next mount will look.
    fn acknowledge(&mut self, place: &Place, opened: &Opened) -> Result<(), StoreError> {
        let found = self.check_place(place, opened);
        match &found {
            Ok(()) => self.unseen = false,
            Err(error) => self.latch(error),
        }
        found
    }

    fn check_place(&self, place: &Place, opened: &Opened) -> Result<(), StoreError> {
        place.check_unmoved(opened)?;
        if self.lock.is_at(&place.lock) {
            return Ok(());
        }
        let message = format!(
            "{} is no longer the file that was locked, so another process may be writing; unmount \
             and mount again",
            place.lock.display()
        );
        Err(StoreError::new(Kind::Moved, message))
    }

    /// Takes the connection back, and rolls back if a transaction is open.
    fn give_back(&mut self, connection: Connection) {
        if connection.is_autocommit() || execute(&connection, "ROLLBACK").is_ok() {
            vfs::forget(&connection);
            self.connection = Some(connection);
        }
        // Otherwise the connection is closed here, which rolls back, and the writer stops.
        if self.connection.is_none() {
            self.checkpointer.gate().stop_writing();
        }
    }

    fn latch(&mut self, error: &StoreError) {
        let kind = match error.kind {
            Kind::Moved | Kind::ReadOnly => error.kind,
            _ => Kind::Io,
        };
        let message = format!("nothing is written any more until the vault is reopened: {error}");
        tracing::error!("{message}");
        self.checkpointer.gate().stop_writing();
        self.latch.get_or_insert(StoreError::new(kind, message));
    }
}

/// Moves everything into the database and truncates the WAL; `Busy` if readers are in the way.
pub(super) fn truncate(connection: &Connection) -> Result<(), StoreError> {
    connection::waiting(connection, WAIT_FOR_READERS, |connection| {
        checkpoint(connection, CheckpointMode::TRUNCATE).map(drop)
    })
}

enum Attempt {
    Done(Result<Result<(), Abort>, StoreError>),
    /// A retry may succeed.
    Busy(StoreError),
}

impl Attempt {
    fn of(error: StoreError) -> Self {
        if error.kind == Kind::Busy {
            Self::Busy(error)
        } else {
            Self::Done(Err(error))
        }
    }
}

/// Begins a write transaction, and checks that the schema is the verified one.
fn begin(connection: &Connection, cookie: i64) -> Result<(), StoreError> {
    let what = "cannot begin to write";
    let fail = |fault: Fault| failure::of(connection, what, fault);
    execute(connection, "BEGIN IMMEDIATE").map_err(|error| fail(error.into()))?;
    if schema::cookie(connection).map_err(fail)? == cookie {
        return Ok(());
    }
    Err(fail(Fault::corrupt(
        "somebody changed the schema while the vault was open",
    )))
}

fn execute(connection: &Connection, sql: &str) -> rusqlite::Result<()> {
    connection.prepare_cached(sql)?.raw_execute().map(drop)
}

/// A number that changes when another connection commits.
pub(super) fn data_version(connection: &Connection) -> Result<u64, StoreError> {
    connection
        .prepare_cached("PRAGMA data_version")
        .and_then(|mut statement| statement.query_row([], |row| row.get::<_, i64>(0)))
        // Callers only compare the number, so its sign does not matter.
        .map(i64::cast_unsigned)
        .map_err(|error| failure::of(connection, "cannot look for changes", error))
}

fn gone() -> StoreError {
    let message = "nothing is written any more until the vault is reopened: a transaction was cut \
                   off by an error in the program";
    StoreError::new(Kind::Io, message)
}
