//! The one question to SQLite that rusqlite does not ask.
#![allow(unsafe_code)]

use rusqlite::Connection;

/// The `errno` behind the connection's last I/O error: SQLite reports "write failed" for an
/// exceeded quota and for a dying disk alike, and the answers differ.
pub(super) fn of(connection: &Connection) -> i32 {
    // SAFETY: `handle` returns the connection's own pointer, valid while it is borrowed here, and
    // `sqlite3_system_errno` only reads a field of it. Nobody else uses the connection meanwhile:
    // it is not `Sync`.
    unsafe { rusqlite::ffi::sqlite3_system_errno(connection.handle()) }
}
