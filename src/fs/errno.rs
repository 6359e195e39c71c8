//! The errno for each failure: one exhaustive table. It only maps.

use crate::crypto::MemoryError;
use crate::keyring::KeyringError;
use crate::kms::KmsErrorKind;
use crate::store::StoreErrorKind;
use crate::vault::{DirectoryBody, FileBody, Node, VaultError};

/// An error number as in errno(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// Its name, such as `EBUSY`.
    pub fn name(self) -> String {
        format!("{:?}", nix::errno::Errno::from_raw(self.0))
    }
}

impl From<MemoryError> for Errno {
    fn from(_: MemoryError) -> Self {
        Errno(libc::ENOMEM)
    }
}

impl From<&VaultError> for Errno {
    fn from(error: &VaultError) -> Self {
        Errno(match error {
            VaultError::Store(error) => match error.kind {
                StoreErrorKind::Full => libc::ENOSPC,
                StoreErrorKind::ReadOnly => libc::EROFS,
                StoreErrorKind::Busy => libc::EBUSY,
                StoreErrorKind::NotAVault
                | StoreErrorKind::Exists
                | StoreErrorKind::Corrupt
                | StoreErrorKind::Denied
                | StoreErrorKind::Moved
                | StoreErrorKind::UnsafeFilesystem
                | StoreErrorKind::Occupied
                | StoreErrorKind::Io => libc::EIO,
            },
            VaultError::Keyring(error) => match error {
                KeyringError::Kms(error) => match error.kind {
                    KmsErrorKind::Denied => libc::EACCES,
                    KmsErrorKind::Disabled
                    | KmsErrorKind::PendingDeletion
                    | KmsErrorKind::NotFound => libc::EKEYREVOKED,
                    KmsErrorKind::Unreachable | KmsErrorKind::Throttled => libc::ETIMEDOUT,
                    KmsErrorKind::WrongKey | KmsErrorKind::NoCredentials => libc::ENOKEY,
                    KmsErrorKind::BadAnswer | KmsErrorKind::Configuration => libc::EIO,
                },
                KeyringError::NotPinned(_) => libc::ENOKEY,
                KeyringError::OutOfStep => libc::EBUSY,
                KeyringError::Memory(_) => libc::ENOMEM,
                KeyringError::Integrity(_)
                | KeyringError::Newer { .. }
                | KeyringError::UnknownGeneration(..)
                | KeyringError::Random(_)
                | KeyringError::Seal(_) => libc::EIO,
            },
            VaultError::Integrity(_)
            | VaultError::Damaged(_)
            | VaultError::Rollback(_)
            | VaultError::Anchor(_)
            | VaultError::Closed
            | VaultError::Unpublished
            | VaultError::Random(_) => libc::EIO,
            VaultError::Busy(_) => libc::EBUSY,
            VaultError::Memory(_) => libc::ENOMEM,
            VaultError::NotFound => libc::ENOENT,
            VaultError::Exists => libc::EEXIST,
            VaultError::NotADirectory => libc::ENOTDIR,
            VaultError::IsADirectory => libc::EISDIR,
            VaultError::NotEmpty => libc::ENOTEMPTY,
            VaultError::NameTooLong => libc::ENAMETOOLONG,
            VaultError::TooManyLinks => libc::EMLINK,
            VaultError::Invalid | VaultError::Setting(_) => libc::EINVAL,
            VaultError::NoAttribute => libc::ENODATA,
            VaultError::AttributesFull => libc::ENOSPC,
            VaultError::ReadOnly => libc::EROFS,
            VaultError::NotPermitted => libc::EPERM,
            VaultError::OutOfNodes => libc::ENOSPC,
        })
    }
}

/// The body of a file.
///
/// # Errors
/// When `node` is of another kind.
pub(super) fn file_of(node: &Node) -> Result<&FileBody, Errno> {
    node.file().map_err(|error| Errno::from(&error))
}

/// The body of a directory.
///
/// # Errors
/// When `node` is of another kind.
pub(super) fn directory_of(node: &Node) -> Result<&DirectoryBody, Errno> {
    node.directory().map_err(|error| Errno::from(&error))
}
