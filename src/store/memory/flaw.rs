//! The promises that a store in memory breaks if a test plants a flaw: tests of crashes must find
//! each.

use std::sync::Arc;

use super::tables::{Commit, Tables};

/// A broken promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flaw {
    /// A commit is acknowledged as durable, and is not.
    SyncsNothing,
    /// A power cut takes the last record of the last commit.
    LosesLastRecord,
    /// A power cut leaves a part of a commit.
    TearsCommits,
    /// A power cut takes a commit, and leaves later ones.
    Reorders,
    /// Some readers see the state before the last commit.
    ShowsStaleState,
    /// The chunks of a removed version stay.
    KeepsChunks,
}

impl Flaw {
    /// All of them.
    pub(crate) const ALL: [Self; 6] = [
        Self::SyncsNothing,
        Self::LosesLastRecord,
        Self::TearsCommits,
        Self::Reorders,
        Self::ShowsStaleState,
        Self::KeepsChunks,
    ];

    pub(super) fn skips_syncs(self) -> bool {
        self == Self::SyncsNothing
    }

    pub(super) fn keeps_chunks(self) -> bool {
        self == Self::KeepsChunks
    }

    /// Whether the read with this number gets a stale state.
    pub(super) fn is_stale(self, read: u64) -> bool {
        self == Self::ShowsStaleState && read % 4 == 3
    }

    /// The records after a power cut that `number` of the `pending` commits survived, which would
    /// leave `sound`; `last` is the last one that was durable.
    pub(super) fn after_cut(
        self,
        (durable, last, pending): (&Arc<Tables>, Option<&Commit>, &[Commit]),
        number: usize,
        sound: Arc<Tables>,
    ) -> Arc<Tables> {
        match self {
            Self::LosesLastRecord => {
                let last = match number.checked_sub(1) {
                    Some(last) => pending.get(last),
                    None => last,
                };
                let Some((last, (_, kept))) =
                    last.and_then(|last| last.changes.split_last().map(|changes| (last, changes)))
                else {
                    return sound;
                };
                let mut tables = Tables::clone(&last.before);
                kept.iter().for_each(|change| tables.apply(change));
                Arc::new(tables)
            }
            Self::TearsCommits => {
                let Some(torn) = pending.get(number) else {
                    return sound;
                };
                let mut tables = Tables::clone(&sound);
                let half = torn.changes.len().div_ceil(2);
                torn.changes[..half]
                    .iter()
                    .for_each(|change| tables.apply(change));
                Arc::new(tables)
            }
            Self::Reorders => {
                let mut tables = Tables::clone(durable);
                let later = pending.iter().skip(1).flat_map(|commit| &commit.changes);
                later.for_each(|change| tables.apply(change));
                Arc::new(tables)
            }
            Self::SyncsNothing | Self::ShowsStaleState | Self::KeepsChunks => sound,
        }
    }
}
