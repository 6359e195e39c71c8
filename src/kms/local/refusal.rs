//! Errors for keys that cannot be used in their state.

use super::record::{LocalState, Record, now};
use crate::kms::{KmsError, KmsErrorKind};

pub(super) fn fail(kind: KmsErrorKind, message: String) -> KmsError {
    KmsError { kind, message }
}

/// Refuses a key that is not enabled.
pub(super) fn serving(record: &Record) -> Result<(), KmsError> {
    match record.state {
        LocalState::Enabled => Ok(()),
        LocalState::Disabled => Err(fail(
            KmsErrorKind::Disabled,
            format!(
                "local-kms://{} is disabled; enable it to use it again",
                record.name
            ),
        )),
        LocalState::PendingDeletion { at } => Err(pending(&record.name, at)),
    }
}

/// The error for a key that is scheduled for deletion.
pub(super) fn pending(name: &str, at: u64) -> KmsError {
    let hours = at.saturating_sub(now()).div_ceil(3600);
    fail(
        KmsErrorKind::PendingDeletion,
        format!(
            "local-kms://{name} will be deleted within {hours} h and serves nobody until then; cancel the deletion and enable the key to keep it"
        ),
    )
}
