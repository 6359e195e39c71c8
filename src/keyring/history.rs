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
    /// Under a running mount, what is stored was found to be older than, or other than, what it
    /// should be.
    TamperingFound {
        /// Number of findings.
        count: u64,
        /// Some of them, in words.
        what: Vec<String>,
    },
}

/// An event as it was read. What a later program has written may be of a kind that this one does not
/// know: it stands in the chain like any other, which the keyring's MAC authenticates. It cannot be
/// encoded, so this program never writes one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum PastEvent {
    /// Of a kind that this program knows.
    Known(Event),
    /// Of another one.
    Unknown(UnknownEvent),
}

/// What can be told of an event of an unknown kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename = "unknown")]
pub struct UnknownEvent {
    /// When, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<i64>,
    /// Recorded later than it happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<bool>,
    /// The number of its kind. One that this program knows has something to it that it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<u32>,
}

impl PastEvent {
    /// Takes in what is stored of an event. Whoever believes it verifies the chain.
    pub fn read(bytes: &[u8]) -> Self {
        match codec::decode(bytes, "event") {
            Ok(event) => Self::Known(event),
            Err(_) => Self::Unknown(UnknownEvent::read(bytes)),
        }
    }

    /// The event, if it is of a kind that this program knows.
    pub fn known(&self) -> Option<&Event> {
        match self {
            Self::Known(event) => Some(event),
            Self::Unknown(_) => None,
        }
    }
}

impl UnknownEvent {
    /// All events begin with the time, whether they are late, and the number of their kind.
    fn read(bytes: &[u8]) -> Self {
        let mut event = Self {
            at: None,
            late: None,
            kind: None,
        };
        if let Ok((at, _)) = codec::decode_prefix(bytes, "time") {
            event.at = Some(at);
        }
        if let Ok(((_, late), _)) = codec::decode_prefix::<(i64, bool)>(bytes, "event") {
            event.late = Some(late);
        }
        if let Ok(((_, _, kind), _)) = codec::decode_prefix::<(i64, bool, u32)>(bytes, "event") {
            event.kind = Some(kind);
        }
        event
    }
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
    /// Takes the next stored event, of whatever kind.
    ///
    /// # Errors
    /// When it is not the next.
    pub fn next(&mut self, sequence: u64, bytes: &[u8]) -> Result<PastEvent, KeyringError> {
        if sequence != self.head.length + 1 {
            return Err(KeyringError::integrity(format!(
                "event {} of the key-management history is missing",
                self.head.length + 1
            )));
        }
        self.head.extend(bytes);
        Ok(PastEvent::read(bytes))
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
