//! The key-management history, as a vault shows it.

use serde::Serialize;

use crate::keyring::{HistoryHead, PastEvent};

use super::chronicle::for_each_event;
use super::{Vault, VaultError};

/// An event as `audit` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct HistoryLine {
    /// Its number, from 1.
    pub sequence: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: PastEvent,
}

impl Vault {
    /// Where the key-management history ends. It only grows, and another of the same length has another
    /// hash.
    pub fn history_head(&self) -> HistoryHead {
        self.keyring().body().history.clone()
    }

    /// The key-management history, its chain verified.
    ///
    /// # Errors
    /// `Integrity` when an event was changed, removed or reordered.
    pub fn history(&self) -> Result<Vec<HistoryLine>, VaultError> {
        fail::fail_point!("read-history");
        self.read(|records| {
            let mut lines = Vec::new();
            let head = self.keyring().body().history.clone();
            for_each_event(records, &head, |sequence, event| {
                lines.push(HistoryLine { sequence, event });
            })?;
            Ok(lines)
        })
    }
}
