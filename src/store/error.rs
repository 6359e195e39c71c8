//! Why the store failed, in classes and plain words.

use std::fmt;
use std::io;
use std::path::Path;

/// Why the store failed. The classes are those to which the answer differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// There is nothing at the path, or something that is no vault.
    NotAVault,
    /// A vault is there already (`create`).
    Exists,
    /// Something else is where a vault is to be made.
    Occupied,
    /// Another process has the vault open for writing.
    Busy,
    /// The stored bytes are not what this program wrote: schema, structure or lengths are wrong.
    Corrupt,
    /// No space, or a quota.
    Full,
    /// The medium or the permissions do not allow writing.
    ReadOnly,
    /// The files may not be opened.
    Denied,
    /// The database file is no longer the one at its path.
    Moved,
    /// The file system below cannot keep the promises (network, FUSE).
    UnsafeFilesystem,
    /// Any other failure of the medium.
    Io,
}

/// A failed access to the store: what was attempted, on what, why it failed, in plain words.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct StoreError {
    /// The class.
    pub kind: StoreErrorKind,
    /// One line for people.
    pub message: String,
}

impl StoreError {
    /// An error of this class with this text.
    pub fn new(kind: StoreErrorKind, message: impl fmt::Display) -> Self {
        Self {
            kind,
            message: message.to_string(),
        }
    }

    /// Says that `what` failed on the file at `path`.
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
