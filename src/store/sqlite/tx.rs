//! One transaction: its connection, and its failures so far.

use rusqlite::{Connection, Params, Row};

use crate::store::{MAX_ID, StoreError, StoreErrorKind as Kind};

use super::failure;
use super::hostile::{Fault, ascending};

/// A connection in a transaction. It owns the connection, so that a panic in a body closes it,
/// which rolls back, instead of leaving it to the next user.
pub(super) struct Tx {
    pub(super) connection: Connection,
    /// The first failure that forbids a commit, or calls for a retry: a body may ignore the error
    /// that it got.
    pub(super) trouble: Option<StoreError>,
    /// Whether the transaction was begun for writing.
    pub(super) writing: bool,
    /// The first chunk of a version gets no number below this: numbers below are reserved for
    /// versions that were begun.
    pub(super) chunks_from: u64,
}

impl Tx {
    pub(super) fn new(connection: Connection, writing: bool) -> Self {
        Self {
            connection,
            trouble: None,
            writing,
            chunks_from: 1,
        }
    }

    /// Fails if SQLite has ended the transaction itself, as it does after some errors: each later
    /// statement would commit by itself.
    pub(super) fn alive(&self) -> Result<(), StoreError> {
        match &self.trouble {
            Some(trouble) if self.writing || self.connection.is_autocommit() => {
                Err(trouble.clone())
            }
            _ if self.connection.is_autocommit() => Err(StoreError::new(
                Kind::Io,
                "the transaction has ended already",
            )),
            _ => Ok(()),
        }
    }

    /// Turns a failure into an error, and keeps it if the transaction cannot go on.
    pub(super) fn blame(&mut self, what: &str, fault: Fault) -> StoreError {
        let fatal = matches!(fault, Fault::Sql(_));
        let error = failure::of(&self.connection, what, fault);
        if fatal && (error.kind != Kind::Corrupt || self.connection.is_autocommit()) {
            self.trouble.get_or_insert_with(|| error.clone());
        }
        error
    }

    pub(super) fn one<T>(
        &mut self,
        what: &str,
        sql: &str,
        params: impl Params,
        take: impl FnOnce(&Row<'_>) -> Result<T, Fault>,
    ) -> Result<Option<T>, StoreError> {
        self.alive()?;
        one(&self.connection, sql, params, take).map_err(|fault| self.blame(what, fault))
    }

    pub(super) fn many<T>(
        &mut self,
        what: &str,
        sql: &str,
        params: impl Params,
        take: impl FnMut(&Row<'_>) -> Result<T, Fault>,
    ) -> Result<Vec<T>, StoreError> {
        self.until(what, sql, params, take, |_| false)
    }

    /// Rows up to and including the first one for which `enough` returns true.
    pub(super) fn until<T>(
        &mut self,
        what: &str,
        sql: &str,
        params: impl Params,
        take: impl FnMut(&Row<'_>) -> Result<T, Fault>,
        enough: impl FnMut(&T) -> bool,
    ) -> Result<Vec<T>, StoreError> {
        self.alive()?;
        many(&self.connection, sql, params, take, enough).map_err(|fault| self.blame(what, fault))
    }

    pub(super) fn ordered<K: Ord>(
        &mut self,
        what: &str,
        after: Option<K>,
        keys: impl Iterator<Item = K>,
    ) -> Result<(), StoreError> {
        ascending(after, keys).map_err(|fault| self.blame(what, fault))
    }
}

/// At most one row.
pub(super) fn one<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    take: impl FnOnce(&Row<'_>) -> Result<T, Fault>,
) -> Result<Option<T>, Fault> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    rows.next()?.map(take).transpose()
}

fn many<T>(
    connection: &Connection,
    sql: &str,
    params: impl Params,
    mut take: impl FnMut(&Row<'_>) -> Result<T, Fault>,
    mut enough: impl FnMut(&T) -> bool,
) -> Result<Vec<T>, Fault> {
    let mut statement = connection.prepare_cached(sql)?;
    let mut rows = statement.query(params)?;
    let mut taken = Vec::new();
    while let Some(row) = rows.next()? {
        let one = take(row)?;
        let enough = enough(&one);
        taken.push(one);
        if enough {
            break;
        }
    }
    Ok(taken)
}

/// Checks a number that is about to become a key.
pub(super) fn key(number: u64) -> Result<i64, StoreError> {
    match i64::try_from(number) {
        Ok(signed) if number <= MAX_ID => Ok(signed),
        _ => Err(StoreError::new(
            Kind::Corrupt,
            format!("{number} is out of range for an id"),
        )),
    }
}

/// A number of rows in SQLite's type.
pub(super) fn rows(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
