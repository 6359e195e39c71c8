//! The one call of SQLite that rusqlite does not wrap.
#![allow(unsafe_code)]

use rusqlite::Connection;

/// The `errno` of the connection's last I/O error. SQLite reports "write failed" both for an
/// exceeded quota and for a dying disk, and callers react to each differently.
pub(super) fn of(connection: &Connection) -> i32 {
    // SAFETY: `handle` returns the connection's own pointer, valid while it is borrowed here, and
    // `sqlite3_system_errno` only reads a field of it. Nobody else uses the connection meanwhile:
    // it is not `Sync`.
    unsafe { rusqlite::ffi::sqlite3_system_errno(connection.handle()) }
}
