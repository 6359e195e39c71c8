//! Connections for reading, kept open: opening and verifying one costs a hundred times as much as
//! a look-up.

use std::sync::Arc;

use rusqlite::Connection;

use crate::store::place::{Opened, Place};
use crate::store::{Abort, Body, Read, StoreError, StoreErrorKind as Kind};
use crate::sync::{Condvar, Mutex, MutexGuard, Rank};

use super::connection::{self, Purpose};
use super::failure;
use super::tx::Tx;

/// More are opened when more are needed at once, and closed when they come back.
const IDLE: usize = 8;

/// How often a read is begun anew when a lock was in its way.
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
    /// Readers that could open none. To wake nobody up would be a system call for each read.
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

    /// Takes an idle connection or opens one. Where none can be opened, as when the vault was moved
    /// away under its mount, those that are open already serve one request after the other.
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

    /// One more connection for reading.
    pub(super) fn open_another(&self) -> Result<Connection, StoreError> {
        let purpose = match self.opened.is_still() {
            true => Purpose::ReadStill,
            false => Purpose::Read,
        };
        connection::open_another(&self.place, &self.opened, purpose)
    }

    /// Where the vault was taken for one that nobody changes, and somebody does: it is read like any
    /// other from now on.
    pub(super) fn look_whether_still(&self) {
        if self.opened.is_still() && self.place.has_stirred(&self.opened) {
            self.opened.set_still(false);
            self.clear();
        }
    }

    /// Takes back what was in use: a connection outside of any transaction, or none if it failed.
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

    /// Closes all that are idle.
    pub(super) fn clear(&self) {
        self.connections().idle.clear();
    }

    /// Runs `body` in a read transaction, and always ends it.
    pub(super) fn read(&self, body: Body<'_, dyn Read>) -> Result<Result<(), Abort>, StoreError> {
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
            // A connection that failed, or cannot end its transaction, is closed: that ends it.
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
