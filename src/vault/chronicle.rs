//! The summary of the key-management history: the generations that earlier copies need, and the
//! time when each kind of rotation last ended.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::keyring::{EventKind, EventRow, History, HistoryHead, PastEvent, RotationKind};
use crate::store::{Read, ReadRecords as _};

use super::VaultError;

/// A master key that the vault no longer needs, but earlier copies may.
#[derive(Clone, Debug, Serialize)]
pub struct RetiredGeneration {
    /// Its generation.
    pub generation: u64,
    /// Copies of the vault from before this time may still open with it, in seconds since 1970.
    pub retired: i64,
}

/// The summary of the history.
#[derive(Clone, Debug, Default)]
pub(super) struct Chronicle {
    /// The newest event.
    pub(super) last: Option<PastEvent>,
    /// When each kind of rotation last ended.
    pub(super) finished: BTreeMap<RotationKind, i64>,
    /// Master keys that were retired.
    pub(super) retired: Vec<RetiredGeneration>,
    /// The highest generation ever made.
    pub(super) newest_generation: u64,
}

impl Chronicle {
    /// Reads the history, and verifies that it ends at `head`.
    pub(super) fn read(records: &mut dyn Read, head: &HistoryHead) -> Result<Self, VaultError> {
        let mut chronicle = Self {
            newest_generation: 1,
            ..Self::default()
        };
        for_each_event(records, head, |_, event| chronicle.note(event))?;
        Ok(chronicle)
    }

    /// Adds an event that was just stored.
    pub(super) fn take(&mut self, event: Option<&EventRow>) {
        if let Some((_, bytes)) = event {
            self.note(PastEvent::read(bytes));
        }
    }

    fn note(&mut self, event: PastEvent) {
        if let Some(event) = event.known() {
            self.note_kind(event.at, &event.kind);
        }
        self.last = Some(event);
    }

    fn note_kind(&mut self, at: i64, kind: &EventKind) {
        match kind {
            EventKind::ChangeStarted { to, .. } => {
                self.newest_generation = self.newest_generation.max(*to);
            }
            EventKind::Retired { generation } | EventKind::RetiredDespite { generation, .. } => {
                self.retired.push(RetiredGeneration {
                    generation: *generation,
                    retired: at,
                })
            }
            EventKind::ChangeFinished { change, .. } => {
                self.finished.insert(*change, at);
            }
            EventKind::Created { .. }
            | EventKind::RollbackAccepted { .. }
            | EventKind::Activated { .. }
            | EventKind::ChangeAbandoned { .. }
            | EventKind::Rewrapped { .. }
            | EventKind::Repaired { .. }
            | EventKind::TamperingFound { .. } => {}
        }
    }
}

/// Passes every event of the history to `take`, in order, with its number, and verifies the chain.
/// After an error at its end, the caller must not trust the events passed before either.
pub(super) fn for_each_event(
    records: &mut dyn Read,
    head: &HistoryHead,
    mut take: impl FnMut(u64, PastEvent),
) -> Result<(), VaultError> {
    const BATCH: usize = 256;
    let mut history = History::default();
    let mut read = 0;
    while read < head.length {
        let left = usize::try_from(head.length - read).unwrap_or(BATCH);
        let batch = records.events(read + 1, left.min(BATCH))?;
        if batch.is_empty() {
            break;
        }
        for (sequence, bytes) in &batch {
            take(*sequence, history.next(*sequence, bytes)?);
            read += 1;
        }
    }
    Ok(history.must_end_at(head)?)
}
