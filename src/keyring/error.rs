//! Why a keyring does not serve, in classes and plain words.

use crate::crypto::{MemoryError, RandomError, SealError};
use crate::kms::{KmsError, KmsErrorKind};

/// Why a keyring cannot be made, unlocked or used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyringError {
    /// The stored bytes are not what was stored.
    #[error("{0}")]
    Integrity(String),
    /// The vault was written by a newer program.
    #[error(
        "the vault has format {format}, suite {suite}, which this secretfs cannot read; use a newer one"
    )]
    Newer {
        /// Its format.
        format: u16,
        /// Its suite.
        suite: u16,
    },
    /// No KMS key of the vault is pinned on this host.
    #[error("{0}")]
    NotPinned(String),
    /// KMS said no, or nothing.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// A record is wrapped under a generation that the keyring does not name.
    #[error("{1} is under master key generation {0}, which is not in the keyring")]
    UnknownGeneration(u64, String),
    /// The keyring is not in the state that a step begins from.
    #[error("the keyring has changed meanwhile; look at `secretfs status` and ask again")]
    OutOfStep,
    /// No randomness.
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

    /// What stands under a generation that the keyring does not name.
    pub(crate) fn unknown(generation: u64, what: impl std::fmt::Display) -> Self {
        Self::UnknownGeneration(generation, what.to_string())
    }
}

/// Of two refusals, the one that a person can do something about comes first.
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
