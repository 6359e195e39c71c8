//! The key-management history for readers.

use serde::Serialize;

use crate::keyring::PastEvent;

use super::VaultError;
use super::chronicle::for_each_event;
use super::records::Records;

/// An event in the format of `audit`.
#[derive(Clone, Debug, Serialize)]
pub struct HistoryLine {
    /// Its number, from 1.
    pub sequence: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: PastEvent,
}

/// The key-management history. Verifies its chain.
///
/// # Errors
/// `Integrity` when an event was changed, removed or reordered.
pub(super) fn read_all(from: &Records) -> Result<Vec<HistoryLine>, VaultError> {
    fail::fail_point!("read-history");
    from.read(|records| {
        let mut lines = Vec::new();
        let head = from.keyring().body().history.clone();
        for_each_event(records, &head, |sequence, event| {
            lines.push(HistoryLine { sequence, event });
        })?;
        Ok(lines)
    })
}
