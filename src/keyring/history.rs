//! The key-management history: a chain of SHA-256 hashes. The keyring's MAC covers its end.

use bincode::{Decode, Encode};
use serde::Serialize;

use crate::codec;
use crate::crypto::schedule::digest;

use super::{HistoryHead, KeyringError, RotationKind};

/// An event in the life of the vault's keys.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
pub struct Event {
    /// When it happened, in seconds since 1970.
    pub at: i64,
    /// The event was recorded later than it happened, because the keys were not in memory.
    pub late: bool,
    /// The kind, with its details.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// The kinds of events.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum EventKind {
    /// The vault was made.
    Created {
        /// The KMS keys that wrap its master key.
        kms_keys: Vec<String>,
    },
    /// The operator accepted a state of the vault older than the one this host remembered.
    RollbackAccepted {
        /// The keyring sequence that the host remembered.
        seen_keyring: u64,
        /// The keyring sequence that was accepted.
        accepted_keyring: u64,
        /// The commit sequence that the host remembered.
        seen_commit: u64,
        /// The commit sequence that was accepted.
        accepted_commit: u64,
    },
    /// A new master key was stored, wrapped by every KMS key.
    ChangeStarted {
        /// The kind of rotation.
        change: RotationKind,
        /// The generation that the rotation leaves.
        from: u64,
        /// The generation that the rotation enters.
        to: u64,
        /// The KMS keys that wrap the new master key.
        kms_keys: Vec<String>,
    },
    /// The new master key came into use.
    Activated {
        /// Its generation.
        generation: u64,
    },
    /// The new master key was unusable and was dropped; it never wrapped anything.
    ChangeAbandoned {
        /// The kind of rotation.
        change: RotationKind,
        /// The generation that was not entered.
        generation: u64,
    },
    /// A master key was removed: it wraps nothing in this vault any more. Older copies of the vault
    /// may still need it.
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
    /// A rotation ended: the old wraps are gone from the medium, too.
    ChangeFinished {
        /// The kind of rotation.
        change: RotationKind,
        /// The generation in use.
        generation: u64,
    },
    /// The operator forced the removal of a master key that may wrap records that do not open.
    RetiredDespite {
        /// Its generation.
        generation: u64,
        /// The number of such records.
        count: u64,
        /// Some of these records.
        records: Vec<String>,
    },
    /// A repair removed or moved records that do not open or do not fit.
    Repaired {
        /// The number of repairs.
        count: u64,
        /// Some of these repairs.
        done: Vec<String>,
    },
    /// A running mount found stored records that were older than they should be, or changed.
    TamperingFound {
        /// The number of findings.
        count: u64,
        /// Some of these findings, in words.
        what: Vec<String>,
    },
}

/// An event as read. A later program may have written a kind that this one does not know: such an
/// event is part of the chain like any other, and the keyring's MAC authenticates it. This type
/// cannot be encoded, so this program never writes an unknown event.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum PastEvent {
    /// An event of a kind that this program knows.
    Known(Event),
    /// An event of another kind.
    Unknown(UnknownEvent),
}

/// The readable part of an event of an unknown kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename = "unknown")]
pub struct UnknownEvent {
    /// When it happened, in seconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<i64>,
    /// The event was recorded later than it happened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub late: Option<bool>,
    /// The number of its kind. If this program knows the kind, a later one has added fields to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<u32>,
}

impl PastEvent {
    /// Decodes a stored event. A caller that relies on it verifies the chain.
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
    /// Decodes as much as it can: all events begin with the time, the late flag, and the number of
    /// their kind.
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

/// Verifies a history event by event, from the first.
#[derive(Debug, Default)]
pub struct History {
    head: HistoryHead,
}

impl History {
    /// Adds the next stored event, of any kind.
    ///
    /// # Errors
    /// When `sequence` is not that of the next event.
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

    /// Checks that the events read are the whole history, unchanged.
    ///
    /// # Errors
    /// When they are not.
    pub fn must_end_at(&self, head: &HistoryHead) -> Result<(), KeyringError> {
        if &self.head == head {
            return Ok(());
        }
        Err(KeyringError::integrity(
            "the key-management history was changed, reordered or cut off",
        ))
    }
}
