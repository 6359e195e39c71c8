//! Errors of the keyring, by class and in plain words.

use crate::crypto::{MemoryError, RandomError, SealError};
use crate::kms::{KmsError, KmsErrorKind};

/// Why a keyring cannot be made, unlocked or used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyringError {
    /// The record was changed or damaged.
    #[error("{0}")]
    Integrity(String),
    /// The vault was written by a newer program.
    #[error(
        "the vault has format {format}, suite {suite}, which this secretfs cannot read; use a newer one"
    )]
    Newer {
        /// The vault's format.
        format: u16,
        /// The vault's suite.
        suite: u16,
    },
    /// No KMS key of the vault is pinned on this host.
    #[error("{0}")]
    NotPinned(String),
    /// KMS refused, or did not answer.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// A record is wrapped under a generation that the keyring does not name.
    #[error("{1} is under master key generation {0}, which is not in the keyring")]
    UnknownGeneration(u64, String),
    /// The keyring is not in the state from which the step begins.
    #[error("the keyring has changed meanwhile; look at `secretfs status` and ask again")]
    OutOfStep,
    /// The system's generator failed.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// Sealing failed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// No memory that may hold secrets.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

impl KeyringError {
    pub(crate) fn integrity(why: impl std::fmt::Display) -> Self {
        Self::Integrity(why.to_string())
    }

    /// `what` is wrapped under a generation that the keyring does not name.
    pub(crate) fn unknown(generation: u64, what: impl std::fmt::Display) -> Self {
        Self::UnknownGeneration(generation, what.to_string())
    }
}

/// Merges two refusals. The result is transient if either is, since a retry may then help;
/// otherwise the first gives the kind.
pub(super) fn merge(first: Option<KmsError>, second: KmsError) -> KmsError {
    match first {
        None => second,
        Some(first) => {
            let passing =
                |kind| matches!(kind, KmsErrorKind::Unreachable | KmsErrorKind::Throttled);
            let kind = if passing(second.kind) {
                second.kind
            } else {
                first.kind
            };
            KmsError {
                kind,
                message: format!("{}; and {}", first.message, second.message),
            }
        }
    }
}
