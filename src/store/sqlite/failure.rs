//! Sorts failures of SQLite into the classes of the store.

use rusqlite::{Connection, ErrorCode, ffi};

use crate::store::{StoreError, StoreErrorKind as Kind};

use super::errno;
use super::hostile::Fault;

/// The error that `what` failed on the vault of `connection`.
pub(super) fn of(connection: &Connection, what: &str, fault: impl Into<Fault>) -> StoreError {
    let path = connection.path().unwrap_or("the vault");
    match fault.into() {
        Fault::Corrupt(why) => StoreError::new(
            Kind::Corrupt,
            format!("{what} in {path}: {why}; the file was damaged or tampered with"),
        ),
        Fault::Sql(error) => {
            let errno = || errno::of(connection);
            let kind = classify(&error, errno);
            let next = match kind {
                Kind::Corrupt => "; the file was damaged or tampered with",
                Kind::Full => "; free some space and try again",
                Kind::Busy => "; another program keeps the database locked",
                Kind::Io if errno() == libc::EFBIG => {
                    "; raise the limit (`ulimit -f`, LimitFSIZE= of a systemd unit) and mount again"
                }
                _ => "",
            };
            let why = plainly(&error, errno).unwrap_or_else(|| printable(&error.to_string()));
            StoreError::new(kind, format!("{what} in {path}: {why}{next}"))
        }
    }
}

/// A description in our own words of I/O errors for which SQLite has only one text.
fn plainly(error: &rusqlite::Error, errno: impl FnOnce() -> i32) -> Option<String> {
    let failure = error.sqlite_error()?;
    if failure.code != ErrorCode::SystemIoFailure {
        return None;
    }
    match (failure.extended_code, errno()) {
        (ffi::SQLITE_IOERR_SHORT_READ, _) => Some("the file ends too soon".to_owned()),
        (_, libc::EFBIG) => Some("the process may write no larger file".to_owned()),
        _ => None,
    }
}

/// Makes an error fit for one line of a terminal: SQLite quotes from the file, which an attacker
/// may have written.
fn printable(error: &str) -> String {
    let mut line = String::new();
    for c in error.chars().take(400) {
        match c.is_control() {
            true => line.extend(c.escape_default()),
            false => line.push(c),
        }
    }
    line
}

fn classify(error: &rusqlite::Error, errno: impl FnOnce() -> i32) -> Kind {
    let rusqlite::Error::SqliteFailure(failure, _) = error else {
        // All other errors are rows whose shape does not match the statement.
        return Kind::Corrupt;
    };
    match failure.code {
        ErrorCode::DatabaseBusy
        | ErrorCode::DatabaseLocked
        | ErrorCode::FileLockingProtocolFailed => Kind::Busy,
        ErrorCode::DiskFull => Kind::Full,
        ErrorCode::ReadOnly => Kind::ReadOnly,
        ErrorCode::PermissionDenied => Kind::Denied,
        ErrorCode::CannotOpen => match errno() {
            libc::EACCES | libc::EPERM | libc::EROFS => Kind::Denied,
            libc::ENOSPC | libc::EDQUOT => Kind::Full,
            _ => Kind::Io,
        },
        ErrorCode::SystemIoFailure => match failure.extended_code {
            // Nobody knows what a failed sync has lost, whatever its errno.
            ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC => Kind::Io,
            // A file that is shorter than its header says was cut off.
            ffi::SQLITE_IOERR_SHORT_READ => Kind::Corrupt,
            ffi::SQLITE_IOERR_CORRUPTFS | ffi::SQLITE_IOERR_DATA => Kind::Corrupt,
            _ => match errno() {
                libc::ENOSPC | libc::EDQUOT => Kind::Full,
                // A file system may make itself read-only after an error.
                libc::EROFS => Kind::ReadOnly,
                _ => Kind::Io,
            },
        },
        // `Unknown` is SQLITE_ERROR: a statement that compiled when the schema was verified no
        // longer does.
        ErrorCode::DatabaseCorrupt
        | ErrorCode::NotADatabase
        | ErrorCode::TooBig
        | ErrorCode::TypeMismatch
        | ErrorCode::ConstraintViolation
        | ErrorCode::SchemaChanged
        | ErrorCode::Unknown => Kind::Corrupt,
        _ => Kind::Io,
    }
}
