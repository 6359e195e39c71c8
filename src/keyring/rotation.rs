//! The transitions of the three rotations: each takes the keyring from one durable state to the
//! next.
//!
//! Callers ask KMS before a transition and pass its results in; no transition waits for KMS. A
//! transition changes a copy in memory, and takes effect once the copy is stored.

use std::sync::Arc;

use crate::crypto::SecretKey;
use crate::crypto::schedule::{MasterKey, same};
use crate::kms::{EncryptionContext, KeyService, KeyUri, KmsError, KmsErrorKind};

use super::error::merge;
use super::record::{Generation, GenerationState, Rotation, RotationKind, RotationPhase, Wrap};
use super::{Event, EventKind, Keyring, KeyringError, LiveKey, wrap_and_prove};

/// A stored event: its number and its bytes.
pub type EventRow = (u64, Vec<u8>);

/// A new master key for a rotation, wrapped by every KMS key and proved, and not stored yet.
pub struct NewGeneration {
    generation: Generation,
    key: Arc<LiveKey>,
}

impl Keyring {
    /// The KMS keys that wrap the active master key, in order.
    ///
    /// # Errors
    /// When one of them is not a URI.
    pub fn kms_keys(&self) -> Result<Vec<KeyUri>, KeyringError> {
        let wraps = self.body.active().map(|g| &g.wraps[..]).unwrap_or_default();
        wraps
            .iter()
            .map(|wrap| wrap.uri.parse().map_err(KeyringError::integrity))
            .collect()
    }

    /// Has KMS unwrap the active master key again: a host that replaces the wraps must still be
    /// able to use the present ones.
    ///
    /// # Errors
    /// When no KMS key unwraps it.
    pub fn prove_active(&self, kms: &dyn KeyService) -> Result<(), KeyringError> {
        self.prove(self.active, kms).map(drop)
    }

    /// Has KMS unwrap a generation from its wraps in this record, and compares the key with the
    /// check value. Returns the key, which [`activate`](Self::activate) takes into memory if it is
    /// missing there.
    ///
    /// # Errors
    /// When KMS refuses, does not answer, or unwraps another key.
    pub fn prove(&self, number: u64, kms: &dyn KeyService) -> Result<ProvedKey, KeyringError> {
        let generation = self.generation(number)?;
        let context = EncryptionContext::master_key(&self.vault.to_string(), number);
        let mut refusal: Option<KmsError> = None;
        for wrap in &generation.wraps {
            let uri: KeyUri = wrap.uri.parse().map_err(KeyringError::integrity)?;
            match kms.unwrap(&uri, &wrap.blob, &context) {
                Ok(key) => {
                    let master = MasterKey(key.into_master_memory());
                    let check = master.check_value(&self.header_bytes, self.vault, number);
                    if !same(&check, &generation.check) {
                        return Err(KeyringError::integrity(format!(
                            "wrong key: what {uri} unwrapped for generation {number} is not the \
                             master key of this header and keyring"
                        )));
                    }
                    return Ok(ProvedKey {
                        number,
                        key: Arc::new(LiveKey::new(master)),
                    });
                }
                Err(error) => refusal = Some(merge(refusal, error)),
            }
        }
        Err(refusal.map_or_else(
            || KeyringError::integrity(format!("generation {number} has no wraps")),
            KeyringError::from,
        ))
    }

    /// Makes the next master key, wraps it with each of `kms_keys`, and proves each wrap by
    /// unwrapping it again. No generation may ever have had `number`, not even one that was
    /// dropped.
    ///
    /// # Errors
    /// When a KMS key does not wrap, or does not unwrap what it wrapped.
    pub fn make_generation(
        &self,
        number: u64,
        kms_keys: &[KeyUri],
        kms: &dyn KeyService,
        now: i64,
    ) -> Result<NewGeneration, KeyringError> {
        let master = MasterKey(SecretKey::generate()?.into_master_memory());
        let wraps = kms_keys
            .iter()
            .map(|uri| wrap_and_prove(uri, &master, self.vault, number, kms, now))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(NewGeneration {
            generation: Generation {
                number,
                state: GenerationState::Pending,
                check: master.check_value(&self.header_bytes, self.vault, number),
                created: now,
                wraps,
            },
            key: Arc::new(LiveKey::new(master)),
        })
    }

    /// Wraps the active master key again with each of `kms_keys`, and proves each wrap.
    ///
    /// # Errors
    /// As for [`make_generation`](Self::make_generation).
    pub fn make_wraps(
        &self,
        kms_keys: &[KeyUri],
        kms: &dyn KeyService,
        now: i64,
    ) -> Result<Vec<Wrap>, KeyringError> {
        let master = &self.live(self.active)?.master;
        kms_keys
            .iter()
            .map(|uri| wrap_and_prove(uri, master, self.vault, self.active, kms, now))
            .collect()
    }

    /// Adds a new master key as pending: the first durable state of a rotation.
    ///
    /// # Errors
    /// When a rotation is under way, or the key was made for another state of the keyring.
    pub fn prepare(
        &mut self,
        kind: RotationKind,
        new: NewGeneration,
        now: i64,
    ) -> Result<EventRow, KeyringError> {
        let (from, to) = (self.active, new.generation.number);
        let newest = self.body.generations.last().map_or(0, |g| g.number);
        if self.body.change.is_some() || to <= newest {
            return Err(KeyringError::OutOfStep);
        }
        let kms_keys = new.generation.wraps.iter().map(|w| w.uri.clone()).collect();
        self.keys.insert(to, new.key);
        self.body.generations.push(new.generation);
        self.body.change = Some(Rotation {
            kind,
            phase: RotationPhase::Prepared,
            from,
            to,
            started: now,
        });
        Ok(self.record(
            now,
            EventKind::ChangeStarted {
                change: kind,
                from,
                to,
                kms_keys,
            },
        ))
    }

    /// Makes the pending key active; the old one only unwraps from now on. The rotation cannot go
    /// back after this.
    ///
    /// # Errors
    /// When the rotation is not in the prepared state, or `proved` is another key.
    pub fn activate(&mut self, proved: ProvedKey, now: i64) -> Result<EventRow, KeyringError> {
        let change = self.change_in(&[RotationPhase::Prepared])?.clone();
        if proved.number != change.to {
            return Err(KeyringError::OutOfStep);
        }
        self.keys.entry(change.to).or_insert(proved.key);
        for generation in &mut self.body.generations {
            if generation.number == change.from {
                generation.state = GenerationState::DecryptOnly;
            } else if generation.number == change.to {
                generation.state = GenerationState::Active;
            }
        }
        self.active = change.to;
        self.enter(RotationPhase::Active);
        Ok(self.record(
            now,
            EventKind::Activated {
                generation: change.to,
            },
        ))
    }

    /// Drops a pending key that cannot be used. It never wrapped anything.
    ///
    /// # Errors
    /// When the rotation is not in the prepared state.
    pub fn abandon(&mut self, now: i64) -> Result<EventRow, KeyringError> {
        let change = self.change_in(&[RotationPhase::Prepared])?.clone();
        self.drop_generation(change.to);
        self.body.change = None;
        Ok(self.record(
            now,
            EventKind::ChangeAbandoned {
                change: change.kind,
                generation: change.to,
            },
        ))
    }

    /// Enters a durable state that changes nothing but the phase.
    ///
    /// # Errors
    /// When the rotation cannot go from its phase to `to`.
    pub fn advance(&mut self, to: RotationPhase) -> Result<(), KeyringError> {
        let before = match to {
            RotationPhase::Migrating => &[RotationPhase::Active, RotationPhase::Verifying][..],
            RotationPhase::Verifying => &[RotationPhase::Migrating],
            RotationPhase::Scrubbing => &[RotationPhase::Retired],
            RotationPhase::Prepared | RotationPhase::Active | RotationPhase::Retired => &[],
        };
        self.change_in(before)?;
        self.enter(to);
        self.body.sequence += 1;
        Ok(())
    }

    /// Removes the old master key from memory, and its wraps from the record. The caller has shown,
    /// in the transaction that stores this, that the key wraps nothing.
    ///
    /// # Errors
    /// When the rotation is not in the verifying state.
    pub fn retire(&mut self, now: i64) -> Result<EventRow, KeyringError> {
        let change = self.change_in(&[RotationPhase::Verifying])?.clone();
        self.drop_generation(change.from);
        self.enter(RotationPhase::Retired);
        Ok(self.record(
            now,
            EventKind::Retired {
                generation: change.from,
            },
        ))
    }

    /// As [`retire`](Self::retire), although `count` records do not open and may be under the old
    /// key. `records` names some of them.
    ///
    /// # Errors
    /// As for [`retire`](Self::retire).
    pub fn retire_despite(
        &mut self,
        count: u64,
        records: Vec<String>,
        now: i64,
    ) -> Result<EventRow, KeyringError> {
        let change = self.change_in(&[RotationPhase::Verifying])?.clone();
        self.drop_generation(change.from);
        self.enter(RotationPhase::Retired);
        Ok(self.record(
            now,
            EventKind::RetiredDespite {
                generation: change.from,
                count,
                records,
            },
        ))
    }

    /// Replaces the wraps of the active master key. A rewrap has this one durable state, and then
    /// only scrubs the old wraps from the medium.
    ///
    /// # Errors
    /// When a rotation is under way, or `wraps` is empty.
    pub fn replace_wraps(&mut self, wraps: Vec<Wrap>, now: i64) -> Result<EventRow, KeyringError> {
        if self.body.change.is_some() || wraps.is_empty() {
            return Err(KeyringError::OutOfStep);
        }
        let active = self.active;
        let generation = self
            .body
            .generations
            .iter_mut()
            .find(|g| g.number == active)
            .ok_or_else(|| KeyringError::unknown(active, "the keyring record"))?;
        let old = std::mem::replace(&mut generation.wraps, wraps);
        if let Some(first) = generation.wraps.first() {
            self.unlocked_by.clone_from(&first.uri);
        }
        let names = |wraps: &[Wrap]| wraps.iter().map(|w| w.uri.clone()).collect();
        let event = EventKind::Rewrapped {
            generation: active,
            from: names(&old),
            to: names(&generation.wraps),
        };
        self.body.change = Some(Rotation {
            kind: RotationKind::Rewrap,
            phase: RotationPhase::Scrubbing,
            from: active,
            to: active,
            started: now,
        });
        Ok(self.record(now, event))
    }

    /// Ends the rotation.
    ///
    /// # Errors
    /// When it is not in the scrubbing state.
    pub fn finish(&mut self, now: i64) -> Result<EventRow, KeyringError> {
        let change = self.change_in(&[RotationPhase::Scrubbing])?.clone();
        self.body.change = None;
        Ok(self.record(
            now,
            EventKind::ChangeFinished {
                change: change.kind,
                generation: change.to,
            },
        ))
    }

    /// Whether the rotation replaces data keys, not only their wraps.
    pub fn renews_data_keys(&self) -> bool {
        let change = self.body.change.as_ref();
        change.is_some_and(|change| change.kind == RotationKind::Reencrypt)
    }

    /// Whether the master key of a generation is in memory.
    pub fn holds(&self, generation: u64) -> bool {
        self.keys.contains_key(&generation)
    }

    fn generation(&self, number: u64) -> Result<&Generation, KeyringError> {
        let mut generations = self.body.generations.iter();
        generations
            .find(|g| g.number == number)
            .ok_or_else(|| KeyringError::unknown(number, "the keyring record"))
    }

    fn drop_generation(&mut self, number: u64) {
        self.body.generations.retain(|g| g.number != number);
        // The key is wiped when the last request that still uses it has ended.
        self.keys.remove(&number);
    }

    fn change_in(&self, phases: &[RotationPhase]) -> Result<&Rotation, KeyringError> {
        let change = self.body.change.as_ref();
        change
            .filter(|change| phases.contains(&change.phase))
            .ok_or(KeyringError::OutOfStep)
    }

    fn enter(&mut self, phase: RotationPhase) {
        if let Some(change) = &mut self.body.change {
            change.phase = phase;
        }
    }

    fn record(&mut self, at: i64, kind: EventKind) -> EventRow {
        self.record_event(&Event {
            at,
            late: false,
            kind,
        })
    }
}

/// A master key that KMS has just unwrapped from its stored wrap.
pub struct ProvedKey {
    number: u64,
    key: Arc<LiveKey>,
}

/// Whether a retry can never help: the wrap is not of the expected key. A key that is denied or
/// disabled may still come back.
pub fn is_final(error: &KeyringError) -> bool {
    matches!(
        error,
        KeyringError::Kms(KmsError {
            kind: KmsErrorKind::WrongKey,
            ..
        })
    )
}
