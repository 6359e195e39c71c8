//! Errors of a vault, and the class of each for a caller's exit code.

use crate::crypto::{MemoryError, OpenFailure, RandomError, SealError};
use crate::error::Error;
use crate::keyring::KeyringError;
use crate::kms::{KmsError, KmsErrorKind};
use crate::store::{StoreError, StoreErrorKind};

/// The class of this failure, which decides a command's exit code.
pub use crate::error::Class as Failure;

/// An operation on a vault failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum VaultError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The keyring failed.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// A record was changed or damaged, or it is missing since a writer removed it meanwhile. The
    /// text identifies records by number, never by name.
    #[error("integrity failure: {0}")]
    Integrity(String),
    /// A record is certainly damaged: no writer leaves it like this. The text is of the same kind.
    #[error("integrity failure: {0}")]
    Damaged(String),
    /// The state of the vault is older than one that this host has seen, or belongs to another
    /// vault.
    #[error("integrity failure: {0}")]
    Rollback(String),
    /// The anchor of this host cannot be read or written.
    #[error("{0}")]
    Anchor(String),
    /// A setting makes no sense here.
    #[error("{0}")]
    Setting(String),
    /// Another operation excludes this one.
    #[error("{0}")]
    Busy(String),
    /// No memory that may hold secrets.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The system's generator failed.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// The name does not exist, or the node is gone.
    #[error("no such entry")]
    NotFound,
    /// The name is taken.
    #[error("the name is taken")]
    Exists,
    /// The operation needs a directory.
    #[error("not a directory")]
    NotADirectory,
    /// The operation does not work on a directory.
    #[error("is a directory")]
    IsADirectory,
    /// The directory has entries.
    #[error("the directory is not empty")]
    NotEmpty,
    /// Names have at most 255 bytes.
    #[error("the name is too long")]
    NameTooLong,
    /// A node has at most 65,000 links.
    #[error("too many links")]
    TooManyLinks,
    /// The arguments contradict each other.
    #[error("invalid argument")]
    Invalid,
    /// The extended attribute does not exist.
    #[error("no such attribute")]
    NoAttribute,
    /// The extended attributes of a node would become too large.
    #[error("no room for the attribute")]
    AttributesFull,
    /// The vault is open for reading only.
    #[error("the vault is open for reading only")]
    ReadOnly,
    /// The operation is not allowed on this object.
    #[error("not permitted")]
    NotPermitted,
    /// The mount is ending, or the request came too late.
    #[error("the mount is ending; nothing more is written")]
    Closed,
    /// A write that no program waited for could not be stored.
    #[error("some of what was last written could not be stored; the log says more")]
    Unpublished,
    /// No node ids are left.
    #[error("the vault has no node numbers left")]
    OutOfNodes,
}

impl VaultError {
    /// The class.
    pub fn failure(&self) -> Failure {
        match self {
            VaultError::Store(error) => match error.kind {
                StoreErrorKind::NotAVault => Failure::NotAVault,
                StoreErrorKind::Busy => Failure::Busy,
                StoreErrorKind::Corrupt => Failure::Integrity,
                StoreErrorKind::Exists => Failure::Exists,
                StoreErrorKind::Occupied
                | StoreErrorKind::Full
                | StoreErrorKind::ReadOnly
                | StoreErrorKind::Denied
                | StoreErrorKind::Moved
                | StoreErrorKind::UnsafeFilesystem
                | StoreErrorKind::Io => Failure::Failed,
            },
            VaultError::Keyring(error) => match error {
                KeyringError::Integrity(_) | KeyringError::UnknownGeneration(..) => {
                    Failure::Integrity
                }
                // With a URI that is not pinned, an attacker could make us use her key.
                KeyringError::NotPinned(_) => Failure::Integrity,
                KeyringError::Kms(error) => match error.kind {
                    KmsErrorKind::Denied
                    | KmsErrorKind::Disabled
                    | KmsErrorKind::PendingDeletion
                    | KmsErrorKind::NotFound
                    | KmsErrorKind::WrongKey
                    | KmsErrorKind::NoCredentials => Failure::KeyDenied,
                    KmsErrorKind::Throttled | KmsErrorKind::Unreachable => Failure::KmsUnreachable,
                    KmsErrorKind::BadAnswer | KmsErrorKind::Configuration => Failure::Failed,
                },
                KeyringError::OutOfStep => Failure::Busy,
                KeyringError::Newer { .. }
                | KeyringError::Random(_)
                | KeyringError::Memory(_)
                | KeyringError::Seal(_) => Failure::Failed,
            },
            VaultError::Integrity(_) | VaultError::Damaged(_) | VaultError::Rollback(_) => {
                Failure::Integrity
            }
            VaultError::Busy(_) => Failure::Busy,
            VaultError::Anchor(_)
            | VaultError::Setting(_)
            | VaultError::Memory(_)
            | VaultError::Random(_)
            | VaultError::NotFound
            | VaultError::Exists
            | VaultError::NotADirectory
            | VaultError::IsADirectory
            | VaultError::NotEmpty
            | VaultError::NameTooLong
            | VaultError::TooManyLinks
            | VaultError::Invalid
            | VaultError::NoAttribute
            | VaultError::AttributesFull
            | VaultError::ReadOnly
            | VaultError::NotPermitted
            | VaultError::Closed
            | VaultError::Unpublished
            | VaultError::OutOfNodes => Failure::Failed,
        }
    }

    /// Whether the error shows that the vault was changed or damaged. A key that is unavailable or
    /// not pinned does not.
    pub(crate) fn is_damage(&self) -> bool {
        match self {
            VaultError::Integrity(_) | VaultError::Damaged(_) | VaultError::Rollback(_) => true,
            VaultError::Store(error) => error.kind == StoreErrorKind::Corrupt,
            VaultError::Keyring(error) => matches!(error, KeyringError::Integrity(_)),
            _ => false,
        }
    }

    /// The error for a vault that was at commit `from`, and is now at an earlier one, `to`.
    pub(super) fn went_back(from: u64, to: u64) -> Self {
        VaultError::Rollback(format!(
            "the vault was put back under the mount: it had come to commit {from}, and has {to}"
        ))
    }

    /// Whether this error proves damage. A writer may have removed a record that is only missing
    /// since the reader asked for it.
    pub(super) fn is_certain_damage(&self) -> bool {
        match self {
            Self::Damaged(_) => true,
            Self::Store(error) => error.kind == StoreErrorKind::Corrupt,
            _ => false,
        }
    }

    /// An integrity failure of a record, named by kind and number.
    pub(crate) fn tampered(record: impl std::fmt::Display, why: &str) -> Self {
        Self::Integrity(format!("{record} {why}"))
    }

    /// The failure of a record that was not sealed under its key in its place.
    pub(super) fn unauthentic(record: impl std::fmt::Display) -> Self {
        Self::Damaged(format!("{record} does not authenticate"))
    }

    /// The failure of a chunk that is missing in a snapshot that has its version.
    pub(super) fn cut_out(chunk: impl std::fmt::Display) -> Self {
        Self::Damaged(format!("{chunk} is missing, though its version is there"))
    }

    /// The failure of a record whose sealed part could not be opened.
    pub(super) fn unopened(record: impl std::fmt::Display, failure: OpenFailure) -> Self {
        match failure {
            OpenFailure::Open(_) => Self::unauthentic(record),
            OpenFailure::Memory(error) => error.into(),
        }
    }
}

impl From<SealError> for VaultError {
    fn from(error: SealError) -> Self {
        Self::Keyring(error.into())
    }
}

impl From<KmsError> for VaultError {
    fn from(error: KmsError) -> Self {
        Self::Keyring(error.into())
    }
}

impl From<VaultError> for Error {
    fn from(error: VaultError) -> Self {
        Self::new(error.failure(), error)
    }
}
