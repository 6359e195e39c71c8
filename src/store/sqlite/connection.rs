//! Opens SQLite connections hardened against a hostile database.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::store::place::{Opened, Place};
use crate::store::{StoreError, StoreErrorKind as Kind};

use super::hostile::Fault;
use super::{failure, schema, vfs};

/// Limit on waiting for another connection's lock. It is longer than our checkpoints wait for
/// readers, so that no reader or writer gives up because of a checkpoint.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Number of prepared statements that each connection keeps: enough for all.
const STATEMENTS: usize = 64;

/// The use of a connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Write,
    Read,
    /// Reading where nobody can write, without the files that SQLite has beside the database.
    ReadStill,
}

/// Opens the existing database at `path` and verifies it. Returns the schema cookie with it.
///
/// The connection does not checkpoint when it is closed, unless the caller changes that later.
/// After a failure `close` closes the connection: it knows which files existed before, and may
/// stay.
pub(super) fn open(
    path: &Path,
    purpose: Purpose,
    close: impl FnOnce(Connection),
) -> Result<(Connection, i64), StoreError> {
    let connection = connect(path, purpose).map_err(|error| {
        StoreError::new(Kind::Io, format!("cannot open {}: {error}", path.display()))
    })?;
    match prepare(&connection, purpose) {
        Ok(cookie) => Ok((connection, cookie)),
        Err(error) => {
            close(connection);
            Err(error)
        }
    }
}

/// Opens one more connection to the same database. Refuses another database that is at its path by
/// now, since an older copy would authenticate, too.
pub(super) fn open_another(
    place: &Place,
    opened: &Opened,
    purpose: Purpose,
) -> Result<Connection, StoreError> {
    place.check_unmoved(opened)?;
    let (connection, _) = open(&place.database, purpose, drop)?;
    place.check_unmoved(opened)?;
    Ok(connection)
}

/// Makes a connection, with all settings that do not read the file.
pub(super) fn connect(path: &Path, purpose: Purpose) -> rusqlite::Result<Connection> {
    // Without write permission SQLite falls back to reading by itself. A read-only connection would
    // leave empty WAL files behind, because it cannot remove them.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let connection = match (purpose, vfs::name()) {
        (Purpose::Write, Some(vfs)) => Connection::open_with_flags_and_vfs(path, flags, vfs)?,
        (Purpose::ReadStill, _) => Connection::open_with_flags(
            still_uri(path),
            OpenFlags::SQLITE_OPEN_READ_ONLY
                | OpenFlags::SQLITE_OPEN_URI
                | OpenFlags::SQLITE_OPEN_NO_MUTEX
                | OpenFlags::SQLITE_OPEN_NOFOLLOW,
        )?,
        _ => Connection::open_with_flags(path, flags)?,
    };
    for (setting, value) in [
        (DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true),
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_FKEY, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_CREATE, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_ATTACH_WRITE, false),
        (DbConfig::SQLITE_DBCONFIG_WRITABLE_SCHEMA, false),
        // SQLite does not plan a statement again because its parameters have changed.
        (DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true),
        (DbConfig::SQLITE_DBCONFIG_DQS_DML, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DDL, false),
    ] {
        connection.set_db_config(setting, value)?;
    }
    for (limit, value) in [
        (Limit::SQLITE_LIMIT_LENGTH, schema::MAX_ROW),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, 16 << 10),
        (Limit::SQLITE_LIMIT_COLUMN, 16),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 50),
        (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 4),
        (Limit::SQLITE_LIMIT_FUNCTION_ARG, 8),
        (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, 16),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_TRIGGER_DEPTH, 1),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        connection.set_limit(limit, value)?;
    }
    connection.busy_timeout(PATIENCE)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    Ok(connection)
}

/// SQLite's URI of a file that does not change (<https://www.sqlite.org/uri.html>).
fn still_uri(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(byte);
    let escaped = bytes.iter().map(|byte| match plain(byte) {
        true => char::from(*byte).to_string(),
        false => format!("%{byte:02x}"),
    });
    format!("file://{}?immutable=1", escaped.collect::<String>())
}

/// Runs `work` on a connection that waits at most `time` for a lock.
pub(super) fn waiting<T>(
    connection: &Connection,
    time: Duration,
    work: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let wait_for = |time| {
        connection
            .busy_timeout(time)
            .map_err(|error| failure::of(connection, "cannot set a time limit", error))
    };
    wait_for(time)?;
    let outcome = work(connection);
    wait_for(PATIENCE)?;
    outcome
}

/// Applies the connection's settings that may read the file.
///
/// `secure_delete` is on: SQLite overwrites a removed or replaced record (a wrapped key, a wrap of
/// the master key) with zeros, even if whole pages become free. For records inside a page that
/// costs nothing, because the page is written anyway. Only for large chunks, whose key is removed
/// with them, it is relaxed (see `tx_write`). So a rotation that must show that an old keyring is
/// gone from the raw files rewrites nothing itself: it replaces the record with `put_keyring`,
/// calls `Store::scrub`, and looks.
pub(super) fn set_pragmas(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(
        "PRAGMA cell_size_check = ON; PRAGMA mmap_size = 0; PRAGMA temp_store = MEMORY; \
         PRAGMA secure_delete = ON; PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 0; \
         PRAGMA journal_size_limit = 16777216",
    )
}

fn prepare(connection: &Connection, purpose: Purpose) -> Result<i64, StoreError> {
    let what = "cannot open the database";
    let fail = |fault: Fault| match &fault {
        Fault::Sql(rusqlite::Error::SqliteFailure(failed, _))
            if failed.code == ErrorCode::NotADatabase =>
        {
            let path = connection.path().unwrap_or_default();
            let message = format!("{path} is no vault's database (or its first page is destroyed)");
            StoreError::new(Kind::NotAVault, message)
        }
        _ => explain(failure::of(connection, what, fault)),
    };
    set_pragmas(connection).map_err(|error| fail(error.into()))?;
    if !schema::is_ours(connection).map_err(fail)? {
        let path = connection.path().unwrap_or_default();
        let message = format!("{path} is a SQLite database, but no vault of secretfs");
        return Err(StoreError::new(Kind::NotAVault, message));
    }
    // Without a WAL, SQLite ignores the mode in the file.
    let journal = match purpose {
        Purpose::ReadStill => "delete",
        Purpose::Write | Purpose::Read => "wal",
    };
    let cookie = schema::verify(connection, journal).map_err(fail)?;
    if purpose != Purpose::Write {
        connection
            .execute_batch("PRAGMA query_only = ON")
            .map_err(|error| fail(error.into()))?;
    } else if connection
        .is_readonly(rusqlite::MAIN_DB)
        .map_err(|error| fail(error.into()))?
    {
        return Err(StoreError::new(
            Kind::ReadOnly,
            format!(
                "{} cannot be written: the file system or its permissions do not allow it; mount \
                 with -o ro to read",
                connection.path().unwrap_or_default()
            ),
        ));
    }
    Ok(cookie)
}

/// Explains a denied open: a reader, too, creates two files beside the database, unless another
/// process has it open.
fn explain(error: StoreError) -> StoreError {
    if !matches!(error.kind, Kind::Denied | Kind::ReadOnly) {
        return error;
    }
    let next = "reading needs write permission to the vault's directory, unless another process \
                has the vault open, or the file system is read-only and the vault was unmounted in \
                an orderly way (then there is no vault.db-wal with anything in it)";
    StoreError::new(Kind::Denied, format!("{error}; {next}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_in_a_path_is_escaped_in_its_uri() {
        let path = Path::new("/a b/c?d#e%f/\u{e4}/vault.db");
        let expected = "file:///a%20b/c%3fd%23e%25f/%c3%a4/vault.db?immutable=1";
        assert_eq!(still_uri(path), expected);
    }
}
