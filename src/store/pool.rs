//! Connections for reading, kept open: opening and verifying one costs a hundred times as much as
//! a look-up.

use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::Connection;

use super::connection::{self, Purpose};
use super::place::{Opened, Place};
use super::tx::Tx;
use super::{Abort, Body, Read, StoreError, StoreErrorKind as Kind, failure};

/// More are opened when more are needed at once, and closed when they come back.
const IDLE: usize = 8;

/// How often a read is begun anew when a lock was in its way.
const TRIES: usize = 3;

#[derive(Debug)]
pub(super) struct Pool {
    place: Arc<Place>,
    opened: Arc<Opened>,
    idle: Mutex<Vec<Connection>>,
}

impl Pool {
    pub(super) fn new(place: Arc<Place>, opened: Arc<Opened>) -> Self {
        Self {
            place,
            opened,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Takes an idle connection or opens one.
    pub(super) fn take(&self) -> Result<Connection, StoreError> {
        if let Some(idle) = self.idle().pop() {
            return Ok(idle);
        }
        connection::open_another(&self.place, &self.opened, Purpose::Read)
    }

    /// Gives a connection back. It must not be inside of a transaction.
    pub(super) fn give(&self, connection: Connection) {
        let mut idle = self.idle();
        if idle.len() < IDLE {
            idle.push(connection);
        }
    }

    /// Closes all that are idle.
    pub(super) fn clear(&self) {
        self.idle().clear();
    }

    /// Runs `body` in a read transaction, and always ends it.
    pub(super) fn read(&self, body: Body<'_, dyn Read>) -> Result<Result<(), Abort>, StoreError> {
        let mut tries = 1;
        loop {
            let connection = self.take()?;
            begin(&connection)?;
            let mut tx = Tx::new(connection, false);
            let outcome = body(&mut tx);
            let Tx {
                connection,
                trouble,
                ..
            } = tx;
            // A connection that failed, or cannot end its transaction, is closed: that ends it.
            if trouble.is_none() && (connection.is_autocommit() || end(&connection).is_ok()) {
                self.give(connection);
            }
            let busy = trouble.is_some_and(|trouble| trouble.kind == Kind::Busy);
            if busy && outcome.is_err() && tries < TRIES {
                tries += 1;
                continue;
            }
            return Ok(outcome);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        // Nothing is left half done when a push or pop panics.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
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
