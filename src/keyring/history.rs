//! The key-management history: a chain of SHA-256 hashes whose end stands under the keyring MAC.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::codec;
use crate::crypto::schedule::digest;

use super::{ChangeKind, HistoryHead, KeyringError};

/// Something that happened to the vault's keys.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Event {
    /// When, in seconds since 1970.
    pub at: i64,
    /// Recorded later than it happened, because keys were not at hand.
    pub late: bool,
    /// What.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// The vault was made.
    Created {
        /// Under these KMS keys.
        kms_keys: Vec<String>,
    },
    /// An older state of the vault than this host had seen was accepted.
    RollbackAccepted {
        /// Keyring sequence that had been seen.
        seen_keyring: u64,
        /// Keyring sequence accepted.
        accepted_keyring: u64,
        /// Commit sequence that had been seen.
        seen_commit: u64,
        /// Commit sequence accepted.
        accepted_commit: u64,
    },
    /// A new master key was stored, wrapped by every KMS key.
    ChangeStarted {
        /// Which of the rotations.
        change: ChangeKind,
        /// Generation that is left.
        from: u64,
        /// Generation that is entered.
        to: u64,
        /// The KMS keys that wrap it.
        kms_keys: Vec<String>,
    },
    /// It came into use.
    Activated {
        /// Its generation.
        generation: u64,
    },
    /// It could not be used and was dropped; nothing was ever wrapped by it.
    ChangeAbandoned {
        /// Which of the rotations.
        change: ChangeKind,
        /// The generation that was not entered.
        generation: u64,
    },
    /// A master key was removed: nothing of the vault stands under it. Copies made before may.
    Retired {
        /// Its generation.
        generation: u64,
    },
    /// The wraps of the master key were replaced.
    Rewrapped {
        /// Its generation.
        generation: u64,
        /// The KMS keys that wrapped it.
        from: Vec<String>,
        /// The KMS keys that wrap it now.
        to: Vec<String>,
    },
    /// A rotation ended: what it left is gone from the medium, too.
    ChangeFinished {
        /// Which of them.
        change: ChangeKind,
        /// The generation in use.
        generation: u64,
    },
    /// A master key was removed because somebody insisted: records that do not open may have stood
    /// under it.
    RetiredDespite {
        /// Its generation.
        generation: u64,
        /// How many there are.
        count: u64,
        /// Some of them.
        records: Vec<String>,
    },
    /// Records that do not open, or do not fit, were taken out or moved.
    Repaired {
        /// Number of deeds.
        count: u64,
        /// Some of them.
        done: Vec<String>,
    },
}

impl HistoryHead {
    /// Adds an event; returns its number, counted from 1, and its bytes.
    pub fn append(&mut self, event: &Event) -> (u64, Vec<u8>) {
        let bytes = codec::encode(event);
        self.extend(&bytes);
        (self.length, bytes)
    }

    fn extend(&mut self, bytes: &[u8]) {
        self.length += 1;
        self.hash = digest(&[
            b"secretfs event",
            &self.hash,
            &self.length.to_le_bytes(),
            bytes,
        ]);
    }
}

/// A history that is being read and verified, from the first event on.
#[derive(Debug, Default)]
pub struct History {
    head: HistoryHead,
}

impl History {
    /// Takes the next stored event.
    ///
    /// # Errors
    /// When it is not the next, or no event.
    pub fn next(&mut self, sequence: u64, bytes: &[u8]) -> Result<Event, KeyringError> {
        if sequence != self.head.length + 1 {
            return Err(KeyringError::integrity(format!(
                "event {} of the key-management history is missing",
                self.head.length + 1
            )));
        }
        self.head.extend(bytes);
        codec::decode(bytes, "event").map_err(KeyringError::integrity)
    }

    /// Whether what was read is the whole history, unchanged.
    ///
    /// # Errors
    /// When it is not.
    pub fn must_end_at(&self, head: &HistoryHead) -> Result<(), KeyringError> {
        if &self.head == head {
            return Ok(());
        }
        Err(KeyringError::integrity(
            "the key-management history was changed, reordered or cut off",
        ))
    }
}
