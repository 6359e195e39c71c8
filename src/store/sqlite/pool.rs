//! Open connections for reading: opening and verifying one takes a hundred times as long as a
//! look-up.

use std::sync::Arc;

use rusqlite::Connection;

use crate::store::place::{Opened, Place};
use crate::store::{Abort, Read, StoreError, StoreErrorKind as Kind, TxFn};
use crate::sync::{Condvar, Mutex, MutexGuard, Rank};

use super::connection::{self, Purpose};
use super::failure;
use super::tx::Tx;

/// Limit on idle connections. Concurrent readers open more, which are closed after use.
const IDLE: usize = 8;

/// Number of attempts of a read that a lock gets in the way of.
const TRIES: usize = 3;

#[derive(Debug)]
pub(super) struct Pool {
    place: Arc<Place>,
    opened: Arc<Opened>,
    connections: Mutex<Connections>,
    came_back: Condvar,
}

#[derive(Debug, Default)]
struct Connections {
    idle: Vec<Connection>,
    in_use: usize,
    /// Readers that wait because they could not open a connection. The count saves each read a
    /// system call that would wake nobody.
    waiting: usize,
}

impl Pool {
    pub(super) fn new(place: Arc<Place>, opened: Arc<Opened>) -> Self {
        Self {
            place,
            opened,
            connections: Mutex::new(Rank::Readers, Connections::default()),
            came_back: Condvar::new(),
        }
    }

    /// Takes an idle connection, or opens one. If none can be opened, for example because the vault
    /// was moved away under its mount, requests share the open connections, one after the other.
    fn take(&self) -> Result<Connection, StoreError> {
        self.look_whether_still();
        let mut connections = self.connections();
        connections.in_use += 1;
        if let Some(idle) = connections.idle.pop() {
            return Ok(idle);
        }
        drop(connections);
        let error = match self.open_another() {
            Ok(opened) => return Ok(opened),
            Err(error) => error,
        };
        let mut connections = self.connections();
        connections.in_use -= 1;
        if connections.waiting > 0 {
            self.came_back.notify_all();
        }
        connections.waiting += 1;
        let mut connections =
            self.came_back
                .wait_timeout_while(connections, connection::PATIENCE, |connections| {
                    connections.idle.is_empty() && connections.in_use > 0
                });
        connections.waiting -= 1;
        match connections.idle.pop() {
            Some(idle) => {
                connections.in_use += 1;
                Ok(idle)
            }
            None => Err(error),
        }
    }

    /// Opens one more connection for reading.
    pub(super) fn open_another(&self) -> Result<Connection, StoreError> {
        let purpose = match self.opened.is_still() {
            true => Purpose::ReadStill,
            false => Purpose::Read,
        };
        connection::open_another(&self.place, &self.opened, purpose)
    }

    /// If the vault was opened as still and has changed, reads it like any other vault from now on.
    pub(super) fn look_whether_still(&self) {
        if self.opened.is_still() && self.place.has_stirred(&self.opened) {
            self.opened.set_still(false);
            self.clear();
        }
    }

    /// Returns a connection after use, outside any transaction; `None` if it failed.
    fn give(&self, connection: Option<Connection>) {
        let mut connections = self.connections();
        connections.in_use -= 1;
        if connections.idle.len() < IDLE {
            connections.idle.extend(connection);
        }
        if connections.waiting > 0 {
            self.came_back.notify_all();
        }
    }

    /// Closes all idle connections.
    pub(super) fn clear(&self) {
        self.connections().idle.clear();
    }

    /// Runs `body` in a read transaction, and always ends it.
    pub(super) fn read(&self, body: TxFn<'_, dyn Read>) -> Result<Result<(), Abort>, StoreError> {
        let mut tries = 1;
        loop {
            let connection = self.take()?;
            if let Err(error) = begin(&connection) {
                self.give(None);
                return Err(error);
            }
            let mut tx = Tx::new(connection, false);
            let outcome = body(&mut tx);
            let Tx {
                connection,
                trouble,
                ..
            } = tx;
            // Close a connection that failed or cannot end its transaction: that ends the
            // transaction.
            let sound =
                trouble.is_none() && (connection.is_autocommit() || end(&connection).is_ok());
            self.give(sound.then_some(connection));
            let busy = trouble.is_some_and(|trouble| trouble.kind == Kind::Busy);
            if busy && outcome.is_err() && tries < TRIES {
                tries += 1;
                continue;
            }
            return Ok(outcome);
        }
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock()
    }
}

fn begin(connection: &Connection) -> Result<(), StoreError> {
    connection
        .prepare_cached("BEGIN DEFERRED")
        .and_then(|mut statement| statement.execute([]))
        .map(drop)
        .map_err(|error| failure::of(connection, "cannot begin to read", error))
}

fn end(connection: &Connection) -> rusqlite::Result<()> {
    connection.prepare_cached("COMMIT")?.execute([]).map(drop)
}
