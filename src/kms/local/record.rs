//! The format of a local KMS key's file.
//!
//! Decoding must never panic, nor leave key material in an unwiped buffer. So the few fields are
//! decoded by hand here, where every copy is visible.
//!
//! ```text
//! "sfs-lk1\n" | state u8 | deletion date u64 | created u64 | name length u8 | name
//!             | count u32 | count x (version u32, created u64, key 32 bytes) | SHA-256
//! ```
//! Numbers are little endian, dates are seconds since 1970. The checksum covers all bytes before it,
//! and tells damage from a wrong key. It does not stop an attacker who can write the file, who can
//! read it, too.

use std::time::{SystemTime, UNIX_EPOCH};

use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::crypto::SecretKey;

const MAGIC: &[u8; 8] = b"sfs-lk1\n";
const CHECKSUM_LEN: usize = 32;
const VERSION_LEN: usize = 4 + 8 + SecretKey::LEN;
/// Limit on the versions of a key: one rotation a day for 27 years.
pub(super) const MAX_VERSIONS: usize = 10_000;
/// Limit on the length of a key file, in bytes.
pub(super) const MAX_LEN: usize = 512 + MAX_VERSIONS * VERSION_LEN;

/// Whether a local key can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LocalState {
    /// The key wraps and unwraps.
    Enabled,
    /// The key refuses to, until it is enabled again.
    Disabled,
    /// The key refuses to. The first use after `at` erases it.
    PendingDeletion {
        /// The deletion date, in seconds since 1970.
        at: u64,
    },
}

/// The present time, in seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// One version of a key's material.
pub(super) struct Material {
    /// Counts from 1.
    pub(super) version: u32,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) key: SecretKey,
}

/// A whole key. It has no `Debug`: it holds nothing but secrets and dates.
pub(super) struct Record {
    pub(super) name: String,
    pub(super) state: LocalState,
    pub(super) created: u64,
    /// Oldest first, never empty, numbered without gaps from 1.
    pub(super) versions: Vec<Material>,
}

impl Record {
    /// The version that wraps.
    pub(super) fn newest(&self) -> Option<&Material> {
        self.versions.last()
    }

    /// The bytes to store: at most [`MAX_LEN`] if there are at most [`MAX_VERSIONS`] versions.
    /// `None` if the name or the number of versions does not fit its field.
    pub(super) fn encode(&self) -> Option<Zeroizing<Vec<u8>>> {
        let name_len = u8::try_from(self.name.len()).ok()?;
        let count = u32::try_from(self.versions.len()).ok()?;
        // Reserve all room at once: a vector that grows leaves unwiped copies behind.
        let room = 64 + self.name.len() + self.versions.len() * VERSION_LEN + CHECKSUM_LEN;
        let mut bytes = Zeroizing::new(Vec::with_capacity(room));
        let (state, at) = match self.state {
            LocalState::Enabled => (0, 0),
            LocalState::Disabled => (1, 0),
            LocalState::PendingDeletion { at } => (2, at),
        };
        bytes.extend_from_slice(MAGIC);
        bytes.push(state);
        bytes.extend_from_slice(&u64::to_le_bytes(at));
        bytes.extend_from_slice(&self.created.to_le_bytes());
        bytes.push(name_len);
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.extend_from_slice(&count.to_le_bytes());
        for material in &self.versions {
            bytes.extend_from_slice(&material.version.to_le_bytes());
            bytes.extend_from_slice(&material.created.to_le_bytes());
            bytes.extend_from_slice(material.key.expose());
        }
        let checksum = Sha256::digest(bytes.as_slice());
        bytes.extend_from_slice(&checksum);
        Some(bytes)
    }

    /// Decodes the bytes of [`encode`](Self::encode).
    ///
    /// # Errors
    /// The defect of the bytes, in plain words.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() < MAGIC.len() + CHECKSUM_LEN {
            return Err("it is too short");
        }
        if !bytes.starts_with(MAGIC) {
            return Err("it is no key file of this version of secretfs");
        }
        let (covered, checksum) = bytes.split_at(bytes.len() - CHECKSUM_LEN);
        if Sha256::digest(covered).as_slice() != checksum {
            return Err("its checksum is wrong: it is damaged");
        }
        Self::decode_fields(&covered[MAGIC.len()..])
            .ok_or("its checksum is right but its content makes no sense")
    }

    fn decode_fields(mut rest: &[u8]) -> Option<Self> {
        let rest = &mut rest;
        let [state] = take(rest)?;
        let at = u64::from_le_bytes(take(rest)?);
        let state = match state {
            0 => LocalState::Enabled,
            1 => LocalState::Disabled,
            2 => LocalState::PendingDeletion { at },
            _ => return None,
        };
        let created = u64::from_le_bytes(take(rest)?);
        let [name_len] = take(rest)?;
        let name = rest.split_off(..usize::from(name_len))?;
        let name = std::str::from_utf8(name).ok()?.to_owned();
        let count = usize::try_from(u32::from_le_bytes(take(rest)?)).ok()?;
        // Check the count before multiplying it or reserving room for it.
        if count == 0 || count > MAX_VERSIONS || rest.len() != count * VERSION_LEN {
            return None;
        }
        let mut versions = Vec::with_capacity(count);
        for expected in 1..=u32::try_from(count).ok()? {
            let version = u32::from_le_bytes(take(rest)?);
            let created = u64::from_le_bytes(take(rest)?);
            let key = SecretKey::from_slice(rest.split_off(..SecretKey::LEN)?)?;
            if version != expected {
                return None;
            }
            versions.push(Material {
                version,
                created,
                key,
            });
        }
        Some(Self {
            name,
            state,
            created,
            versions,
        })
    }
}

/// Takes the first `N` bytes off `rest`.
fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    rest.split_off(..N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let version = |version, created, byte| Material {
            version,
            created,
            key: SecretKey::from_slice(&[byte; 32]).unwrap(),
        };
        Record {
            name: "default".to_owned(),
            state: LocalState::PendingDeletion { at: 5 },
            created: 3,
            versions: vec![version(1, 3, 0xaa), version(2, 4, 0xbb)],
        }
    }

    #[test]
    fn golden_key_file_stays_readable_and_its_bytes_stay_the_same() {
        let bytes = record().encode().unwrap();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let expected = [
            "7366732d6c6b310a",
            "02",
            "0500000000000000",
            "0300000000000000",
            "07",
            "64656661756c74",
            "02000000",
            "010000000300000000000000",
            &"aa".repeat(32),
            "020000000400000000000000",
            &"bb".repeat(32),
            "81416488d714272f668ad62406a31fa399d9746b30a6d18ce6d25517f3dacf44",
        ]
        .concat();
        assert_eq!(hex, expected);
        let back = Record::decode(&bytes).unwrap();
        assert_eq!(back.name, "default");
        assert_eq!(back.state, LocalState::PendingDeletion { at: 5 });
        assert_eq!((back.created, back.versions.len()), (3, 2));
        assert_eq!(back.newest().unwrap().key.expose(), &[0xbb; 32]);
    }

    #[test]
    fn damage_to_any_byte_of_a_key_file_is_detected() {
        let good = record().encode().unwrap();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.to_vec();
                bad[at] ^= 1 << bit;
                assert!(Record::decode(&bad).is_err(), "byte {at}, bit {bit}");
            }
            assert!(Record::decode(&good[..at]).is_err(), "cut at {at}");
        }
        assert!(Record::decode(&[&good[..], &[0]].concat()).is_err());
    }

    #[test]
    fn nonsense_under_a_right_checksum_is_refused_without_a_panic() {
        let good = record().encode().unwrap();
        let covered = &good[..good.len() - CHECKSUM_LEN];
        let with_checksum = |bytes: &[u8]| [bytes, &Sha256::digest(bytes)].concat();
        assert!(Record::decode(&with_checksum(covered)).is_ok());
        for cut in MAGIC.len()..covered.len() {
            assert!(
                Record::decode(&with_checksum(&covered[..cut])).is_err(),
                "cut at {cut}"
            );
        }
        for value in [0, 0x7f, 0xff] {
            for at in 0..covered.len() {
                let mut changed = covered.to_vec();
                changed[at] = value;
                let _ = Record::decode(&with_checksum(&changed));
            }
        }
        let huge = [&covered[..33], &u32::MAX.to_le_bytes(), &covered[37..]].concat();
        assert!(Record::decode(&with_checksum(&huge)).is_err());
    }
}
