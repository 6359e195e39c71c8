//! The schema of a vault's database, to the letter.
//!
//! Opening a file compares its schema with the texts below. They must never change under one
//! [`USER_VERSION`]: a changed comma makes every existing vault unreadable.

use rusqlite::Connection;
use rusqlite::types::ValueRef;

use super::hostile::Fault;

/// `SECF`, at offset 68 of the file, where file(1) looks for it.
pub(super) const APPLICATION_ID: i64 = 0x5345_4346;
/// Version of the layout below.
pub(super) const USER_VERSION: i64 = 1;
/// One page of the file system, so that crashes tear as few pages as possible.
pub(super) const PAGE_SIZE: i64 = 4096;

/// Limit on one row that SQLite loads. It is more than the longest record, so that our own check
/// reports a longer one, and small enough that a forged length costs little.
pub(super) const MAX_ROW: i32 = 2 << 20;

/// The tables in the order in which they are created.
///
/// There are no secondary indexes: an attacker can make an index disagree with its table, and the
/// deletion of a key must not depend on one. Instead, a version names the row of its first chunk,
/// and chunk `idx` is row `first_chunk + idx`. Each row names the chunk that it holds, and every
/// look-up compares. Small chunks are then next to each other inside a B-tree leaf. `first_chunk`
/// is 0 for a version without content.
pub(super) const TABLES: [(&str, &str); 9] = [
    (
        "header",
        "CREATE TABLE header (id INTEGER PRIMARY KEY CHECK (id = 0), value BLOB NOT NULL) STRICT",
    ),
    (
        "keyring",
        "CREATE TABLE keyring (id INTEGER PRIMARY KEY CHECK (id = 0), value BLOB NOT NULL) STRICT",
    ),
    (
        "state",
        "CREATE TABLE state (id INTEGER PRIMARY KEY CHECK (id = 0), value BLOB NOT NULL) STRICT",
    ),
    (
        "node",
        "CREATE TABLE node (id INTEGER PRIMARY KEY, generation INTEGER NOT NULL, \
         value BLOB NOT NULL) STRICT",
    ),
    (
        "entry",
        "CREATE TABLE entry (directory INTEGER NOT NULL, tag BLOB NOT NULL, value BLOB NOT NULL, \
         PRIMARY KEY (directory, tag)) STRICT, WITHOUT ROWID",
    ),
    (
        "version",
        "CREATE TABLE version (node INTEGER NOT NULL, version INTEGER NOT NULL, \
         generation INTEGER NOT NULL, first_chunk INTEGER NOT NULL, value BLOB NOT NULL, \
         PRIMARY KEY (node, version)) STRICT, WITHOUT ROWID",
    ),
    (
        "chunk",
        "CREATE TABLE chunk (id INTEGER PRIMARY KEY, node INTEGER NOT NULL, \
         version INTEGER NOT NULL, idx INTEGER NOT NULL, sealed BLOB NOT NULL) STRICT",
    ),
    (
        "orphan",
        "CREATE TABLE orphan (id INTEGER PRIMARY KEY) STRICT",
    ),
    (
        "event",
        "CREATE TABLE event (sequence INTEGER PRIMARY KEY, value BLOB NOT NULL) STRICT",
    ),
];

/// Creates the tables in an empty database and marks it as ours, in the caller's transaction.
pub(super) fn create(connection: &Connection) -> rusqlite::Result<()> {
    for (_, sql) in TABLES {
        connection.execute_batch(sql)?;
    }
    connection.execute_batch(&format!(
        "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {USER_VERSION}"
    ))
}

/// Whether the database claims to be a secretfs vault. Callers ask before [`verify`].
pub(super) fn is_ours(connection: &Connection) -> Result<bool, Fault> {
    Ok(number(connection, "PRAGMA application_id")? == APPLICATION_ID)
}

/// Compares every setting that governs what SQLite does with the file with those of [`create`].
/// Returns the schema cookie, which changes with every change of the schema.
///
/// # Errors
/// When anything differs: an extra trigger or index, a changed default.
pub(super) fn verify(connection: &Connection, journal: &str) -> Result<i64, Fault> {
    let version = number(connection, "PRAGMA user_version")?;
    if version != USER_VERSION {
        return Err(Fault::corrupt(format!(
            "the layout has version {version}, and this program knows only {USER_VERSION}; \
             was it made by a newer secretfs?"
        )));
    }
    for (pragma, expected) in [("PRAGMA page_size", PAGE_SIZE), ("PRAGMA auto_vacuum", 0)] {
        let found = number(connection, pragma)?;
        if found != expected {
            return Err(Fault::corrupt(format!(
                "{pragma} is {found} instead of {expected}"
            )));
        }
    }
    for (pragma, expected) in [
        ("PRAGMA journal_mode", journal),
        ("PRAGMA encoding", "UTF-8"),
    ] {
        let found: String = connection.query_row(pragma, [], |row| row.get(0))?;
        if found != expected {
            return Err(Fault::corrupt(format!(
                "{pragma} is {found} instead of {expected}"
            )));
        }
    }
    tables(connection)?;
    cookie(connection)
}

/// The schema cookie as the running transaction sees it.
pub(super) fn cookie(connection: &Connection) -> Result<i64, Fault> {
    let mut statement = connection.prepare_cached("PRAGMA schema_version")?;
    Ok(statement.query_row([], |row| row.get(0))?)
}

fn tables(connection: &Connection) -> Result<(), Fault> {
    // Select one row more than expected, which shows a surplus without reading all of it.
    let mut statement = connection.prepare(
        "SELECT type, name, tbl_name, sql, rootpage FROM sqlite_schema ORDER BY rowid LIMIT 10",
    )?;
    let mut rows = statement.query([])?;
    let mut roots = Vec::with_capacity(TABLES.len());
    while let Some(row) = rows.next()? {
        let Some((name, sql)) = TABLES.get(roots.len()) else {
            return Err(Fault::corrupt(
                "the schema has more in it than secretfs made",
            ));
        };
        for (column, expected) in [(0, "table"), (1, *name), (2, *name), (3, *sql)] {
            if row.get_ref(column)? != ValueRef::Text(expected.as_bytes()) {
                return Err(Fault::corrupt(format!(
                    "the schema of `{name}` was changed"
                )));
            }
        }
        let root: i64 = row.get(4)?;
        // If two tables shared a B-tree, a write to one would change the other.
        if root < 2 || roots.contains(&root) {
            return Err(Fault::corrupt(format!(
                "`{name}` lies on another table's pages"
            )));
        }
        roots.push(root);
    }
    if roots.len() == TABLES.len() {
        Ok(())
    } else {
        Err(Fault::corrupt("the schema lacks a table"))
    }
}

fn number(connection: &Connection, pragma: &str) -> Result<i64, Fault> {
    Ok(connection.query_row(pragma, [], |row| row.get(0))?)
}
