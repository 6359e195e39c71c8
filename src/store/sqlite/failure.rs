//! Sorts failures of SQLite into the classes to which the answers differ.

use rusqlite::{Connection, ErrorCode, ffi};

use crate::store::{StoreError, StoreErrorKind as Kind};

use super::errno;
use super::hostile::Fault;

/// Says that `what` (on the vault of `connection`) failed.
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

/// What SQLite calls an I/O error alike, in words of its own.
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

/// SQLite quotes from the file, which may be anybody's words: fit for one line of a terminal.
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
        // What is left are rows of another shape than the statement must give.
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
            // What a failed sync has lost cannot be known, whatever its errno says.
            ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC => Kind::Io,
            // A file that ends before what it says it holds was cut off.
            ffi::SQLITE_IOERR_SHORT_READ => Kind::Corrupt,
            ffi::SQLITE_IOERR_CORRUPTFS | ffi::SQLITE_IOERR_DATA => Kind::Corrupt,
            _ => match errno() {
                libc::ENOSPC | libc::EDQUOT => Kind::Full,
                // It became so under us: file systems do that to themselves after an error.
                libc::EROFS => Kind::ReadOnly,
                _ => Kind::Io,
            },
        },
        // `Unknown` is SQLITE_ERROR: a statement that was right when the schema was verified
        // no longer compiles.
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
