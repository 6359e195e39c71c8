//! The header and the keyring record as stored, and the one way from the bytes read to a keyring
//! that is trusted.
//!
//! An [`UnverifiedKeyring`](super::UnverifiedKeyring) is what the disk says. Callers may use only
//! its wraps under keys that they pinned; only [`unlock`](super::UnverifiedKeyring::unlock) turns it
//! into a [`Keyring`](super::Keyring).

use bincode::{Decode, Encode};

use crate::codec;
use crate::crypto::schedule::{VaultId, digest};

use super::KeyringError;

/// First bytes of every header.
const MAGIC: [u8; 8] = *b"secretfs";
/// The only suite: XChaCha20-Poly1305, HKDF-Expand-SHA256, HMAC-SHA256. There is no negotiation.
const SUITE: u16 = 1;
/// The format that this program reads and writes.
pub const FORMAT: u16 = 1;

/// The vault's header, in the clear: 30 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Header {
    magic: [u8; 8],
    /// The format of the stored records.
    pub format: u16,
    /// The oldest format whose readers can read it.
    pub minimum_reader: u16,
    suite: u16,
    vault: [u8; 16],
}

impl Header {
    /// The header of a new vault.
    pub fn new(vault: VaultId) -> Self {
        Self {
            magic: MAGIC,
            format: FORMAT,
            minimum_reader: FORMAT,
            suite: SUITE,
            vault: vault.0,
        }
    }

    /// The vault's identity.
    pub fn vault(&self) -> VaultId {
        VaultId(self.vault)
    }

    /// Decodes a header, of any version.
    ///
    /// # Errors
    /// When the bytes are no header.
    pub fn decode(bytes: &[u8]) -> Result<Self, KeyringError> {
        let header: Self = codec::decode(bytes, "header").map_err(KeyringError::integrity)?;
        if header.magic != MAGIC {
            return Err(KeyringError::integrity(
                "the header does not begin as a header does",
            ));
        }
        Ok(header)
    }

    /// Refuses the header of a vault that this program must not read.
    ///
    /// # Errors
    /// When the vault needs a newer reader, or has another suite.
    pub fn must_be_readable(&self) -> Result<(), KeyringError> {
        if self.minimum_reader > FORMAT || self.suite != SUITE {
            return Err(KeyringError::Newer {
                format: self.format,
                suite: self.suite,
            });
        }
        Ok(())
    }
}

/// A master key generation.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Generation {
    /// Counts from 1, never reused.
    pub number: u64,
    /// The allowed use.
    pub state: GenerationState,
    /// The check value, which tells the right master key from a wrong one.
    pub check: [u8; 32],
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// The master key under each of the vault's KMS keys, in order of preference.
    pub wraps: Vec<Wrap>,
}

/// The allowed use of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum GenerationState {
    /// The key is stored and proved, and not used yet.
    Pending,
    /// The key wraps and unwraps. Exactly one generation is active.
    Active,
    /// The key unwraps records that are not re-wrapped yet.
    DecryptOnly,
}

/// A master key wrapped by one KMS key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Wrap {
    /// The KMS key's URI.
    pub uri: String,
    /// The provider's identifier of the key.
    pub key_id: String,
    /// The provider's ciphertext.
    pub blob: Vec<u8>,
    /// When it was made, in seconds since 1970.
    pub created: i64,
}

/// A rotation under way.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Rotation {
    /// The kind of rotation.
    pub kind: RotationKind,
    /// The last durable state that it reached.
    pub phase: RotationPhase,
    /// The generation that the rotation leaves.
    pub from: u64,
    /// The generation that the rotation enters.
    pub to: u64,
    /// When it began, in seconds since 1970.
    pub started: i64,
}

/// The three rotations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RotationKind {
    /// The same master key gets new wraps.
    Rewrap,
    /// The vault gets a new master key.
    Rotate,
    /// The vault gets a new master key and new data keys.
    Reencrypt,
}

impl std::fmt::Display for RotationKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RotationKind::Rewrap => "rewrap",
            RotationKind::Rotate => "rotate",
            RotationKind::Reencrypt => "reencrypt",
        })
    }
}

/// The durable states of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RotationPhase {
    /// The new key is stored and proved.
    Prepared,
    /// The new key is in use.
    Active,
    /// The records under the old key are being re-wrapped.
    Migrating,
    /// The rotation checks that the old key wraps nothing.
    Verifying,
    /// The old wraps are gone from the record.
    Retired,
    /// The old wraps are being removed from the medium.
    Scrubbing,
}

/// The end of the key-management history.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct HistoryHead {
    /// Number of events.
    pub length: u64,
    /// Hash of the last event, chained over all events before it.
    pub hash: [u8; 32],
}

/// The part of the record that the MACs cover, besides the header.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct KeyringBody {
    /// Grows with every change of this record.
    pub sequence: u64,
    /// The live generations, ascending.
    pub generations: Vec<Generation>,
    /// The rotation under way.
    pub change: Option<Rotation>,
    /// The end of the history.
    pub history: HistoryHead,
}

impl KeyringBody {
    /// The generation in use.
    pub fn active(&self) -> Option<&Generation> {
        self.generations
            .iter()
            .find(|g| g.state == GenerationState::Active)
    }

    /// Whether the generations are those that belong to the phase of the rotation.
    fn fits_change(&self) -> bool {
        use GenerationState::{Active, DecryptOnly, Pending};
        let states: Vec<_> = self
            .generations
            .iter()
            .map(|g| (g.number, g.state))
            .collect();
        let active = self.active().map_or(0, |g| g.number);
        match &self.change {
            None => states == [(active, Active)],
            Some(change) => match change.phase {
                RotationPhase::Prepared => states == [(change.from, Active), (change.to, Pending)],
                RotationPhase::Active | RotationPhase::Migrating | RotationPhase::Verifying => {
                    states == [(change.from, DecryptOnly), (change.to, Active)]
                }
                RotationPhase::Retired | RotationPhase::Scrubbing => {
                    states == [(change.to, Active)]
                }
            },
        }
    }

    /// Whether the parts fit together: exactly one generation is active, numbers ascend, and each
    /// generation is either active or part of the rotation.
    fn is_consistent(&self) -> bool {
        let active = self
            .generations
            .iter()
            .filter(|g| g.state == GenerationState::Active);
        active.count() == 1
            && self.generations.is_sorted_by(|a, b| a.number < b.number)
            && self
                .generations
                .iter()
                .all(|g| g.number > 0 && !g.wraps.is_empty())
            && self.fits_change()
    }
}

/// A body, its MACs, and a checksum. The checksum tells damage from a wrong key and stops no
/// attacker; the MACs do.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(super) struct Record {
    pub(super) body: Vec<u8>,
    /// Each generation, with the MAC under its key.
    pub(super) macs: Vec<(u64, [u8; 32])>,
    checksum: [u8; 32],
}

impl Record {
    pub(super) fn new(header: &[u8], body: Vec<u8>, macs: Vec<(u64, [u8; 32])>) -> Self {
        let checksum = checksum(header, &body, &macs);
        Self {
            body,
            macs,
            checksum,
        }
    }

    /// Decodes a record and checks its checksum, which covers the header too.
    pub(super) fn decode(header: &[u8], bytes: &[u8]) -> Result<(Self, KeyringBody), KeyringError> {
        let record: Self =
            codec::decode(bytes, "keyring record").map_err(KeyringError::integrity)?;
        if record.checksum != checksum(header, &record.body, &record.macs) {
            return Err(KeyringError::integrity(
                "header or keyring record have been changed",
            ));
        }
        let body: KeyringBody =
            codec::decode(&record.body, "keyring body").map_err(KeyringError::integrity)?;
        if !body.is_consistent() {
            return Err(KeyringError::integrity(
                "the keyring's generations do not fit together",
            ));
        }
        Ok((record, body))
    }
}

fn checksum(header: &[u8], body: &[u8], macs: &[(u64, [u8; 32])]) -> [u8; 32] {
    let mut parts = vec![
        *b"secretfs keyring checksum       ",
        digest(&[header]),
        digest(&[body]),
    ];
    for (generation, mac) in macs {
        parts.push(digest(&[&generation.to_le_bytes(), mac]));
    }
    digest(&parts.iter().map(|part| &part[..]).collect::<Vec<_>>())
}
