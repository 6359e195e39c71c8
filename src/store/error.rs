//! Errors of the store, by class and in plain words.

use std::fmt;
use std::io;
use std::path::Path;

/// Why the store failed: one class for each different reaction of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// The path does not exist, or is not a vault.
    NotAVault,
    /// A vault exists already (`create`).
    Exists,
    /// The directory for a new vault is not empty.
    Occupied,
    /// Another process has the vault open for writing.
    Busy,
    /// This program did not write the stored bytes: schema, structure or lengths are wrong.
    Corrupt,
    /// No space, or a quota.
    Full,
    /// The medium or the permissions do not allow writing.
    ReadOnly,
    /// The permissions do not allow to open the files.
    Denied,
    /// The open database is no longer the file at its path.
    Moved,
    /// The file system cannot keep the promises that a vault needs (network, FUSE).
    UnsafeFilesystem,
    /// Any other failure of the medium.
    Io,
}

/// A failed access to the store: the attempt, its object, and the reason, in plain words.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// The class.
    pub kind: StoreErrorKind,
    /// The message, one line.
    pub message: String,
}

impl StoreError {
    /// An error of class `kind` with the text `message`.
    pub fn new(kind: StoreErrorKind, message: impl fmt::Display) -> Self {
        Self {
            kind,
            message: message.to_string(),
        }
    }

    /// The error of a write to a vault in `directory` that was opened for reading.
    pub(super) fn of_reader(directory: &Path) -> Self {
        let message = format!("{} was opened for reading only", directory.display());
        Self::new(StoreErrorKind::ReadOnly, message)
    }

    /// The error that `what` failed on the file at `path`.
    pub(super) fn of_file(what: &str, path: &Path, error: &io::Error) -> Self {
        let kind = match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => StoreErrorKind::NotAVault,
            Some(libc::EACCES | libc::EPERM) => StoreErrorKind::Denied,
            Some(libc::EROFS) => StoreErrorKind::ReadOnly,
            Some(libc::ENOSPC | libc::EDQUOT) => StoreErrorKind::Full,
            _ => StoreErrorKind::Io,
        };
        Self::new(kind, format!("{what} {}: {error}", path.display()))
    }
}
