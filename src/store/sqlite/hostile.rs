//! Turns values from the database into numbers and bytes within bounds.
//!
//! Everything here treats its input as written by an attacker: no conversion wraps, every length is
//! compared with a bound before an allocation, and nothing panics.

use rusqlite::Row;
use rusqlite::types::ValueRef;

use crate::store::{MAX_ID, NameTag, Record};

/// Why a row could not be read.
#[derive(Debug)]
pub(super) enum Fault {
    /// SQLite failed.
    Sql(rusqlite::Error),
    /// This program did not write the row; the reason in plain words.
    Corrupt(String),
}

impl Fault {
    pub(super) fn corrupt(why: impl Into<String>) -> Self {
        Self::Corrupt(why.into())
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

/// An id, version, generation or sequence: 0 to [`MAX_ID`].
pub(super) fn id(row: &Row<'_>, column: usize) -> Result<u64, Fault> {
    match row.get_ref(column)? {
        ValueRef::Integer(number) => match u64::try_from(number) {
            Ok(number) if number <= MAX_ID => Ok(number),
            _ => Err(Fault::corrupt(format!(
                "the number {number} is out of range"
            ))),
        },
        _ => Err(Fault::corrupt("a number is not stored as one")),
    }
}

/// The index of a chunk.
pub(super) fn index(row: &Row<'_>, column: usize) -> Result<u32, Fault> {
    let number = id(row, column)?;
    u32::try_from(number).map_err(|_| Fault::corrupt(format!("chunk index {number}")))
}

/// A value of at most `max` bytes.
pub(super) fn blob(row: &Row<'_>, column: usize, max: usize) -> Result<Vec<u8>, Fault> {
    bytes(row, column, max).map(<[u8]>::to_vec)
}

/// The same without a copy.
pub(super) fn bytes<'a>(row: &'a Row<'_>, column: usize, max: usize) -> Result<&'a [u8], Fault> {
    match row.get_ref(column)? {
        ValueRef::Blob(bytes) if bytes.len() <= max => Ok(bytes),
        ValueRef::Blob(bytes) => Err(Fault::corrupt(format!(
            "a value has {} bytes where {max} are the most",
            bytes.len()
        ))),
        _ => Err(Fault::corrupt("a value is not stored as bytes")),
    }
}

/// The record in a row that has generation and value from column `at` on.
pub(super) fn keyed(row: &Row<'_>, at: usize, max: usize) -> Result<Record, Fault> {
    Ok(Record {
        generation: id(row, at)?,
        value: blob(row, at + 1, max)?,
    })
}

/// The record in a row that has the value in column `at`, and no generation.
pub(super) fn plain(row: &Row<'_>, at: usize, max: usize) -> Result<Record, Fault> {
    Ok(Record {
        generation: 0,
        value: blob(row, at, max)?,
    })
}

/// A name's tag: exactly 32 bytes.
pub(super) fn tag(row: &Row<'_>, column: usize) -> Result<NameTag, Fault> {
    match row.get_ref(column)? {
        ValueRef::Blob(bytes) => bytes.try_into().map_err(|_| {
            Fault::corrupt(format!(
                "a name's tag has {} bytes instead of 32",
                bytes.len()
            ))
        }),
        _ => Err(Fault::corrupt("a name's tag is not stored as bytes")),
    }
}

/// Checks that keys rise strictly, beginning after `after`.
///
/// A scan continues after the last key it saw, so a forged tree with repeated or unordered keys
/// would let it run forever.
pub(super) fn ascending<K: Ord>(
    after: Option<K>,
    keys: impl Iterator<Item = K>,
) -> Result<(), Fault> {
    let mut previous = after;
    for key in keys {
        if previous.as_ref().is_some_and(|previous| *previous >= key) {
            return Err(Fault::corrupt("rows are not in order"));
        }
        previous = Some(key);
    }
    Ok(())
}
