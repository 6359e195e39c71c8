//! Master keys: this module makes them, has KMS keys wrap them, verifies them, and wraps data keys
//! with them.
//!
//! It never sends anything to a KMS key that the caller did not pin, and uses no part of a stored
//! keyring before it has verified the MAC under the active master key.

mod error;
mod history;
mod record;
mod rotation;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::codec;
use crate::crypto::schedule::{
    Context, KeyringMacKey, MasterKey, Role, VaultId, WrapKey, digest, same,
};
use crate::crypto::{Nonces, SecretKey};
use crate::kms::{EncryptionContext, KeyService, KeyUri, KmsError, KmsErrorKind};

pub use error::KeyringError;
pub use history::{Event, EventKind, History, PastEvent, UnknownEvent};
pub use record::{
    FORMAT, Generation, GenerationState, Header, HistoryHead, KeyringBody, Rotation, RotationKind,
    RotationPhase, Wrap,
};
pub use rotation::{EventRow, NewGeneration, ProvedKey, is_final};

use error::merge;

/// Length of a wrapped data key in bytes: nonce, key, tag.
pub const WRAPPED_LEN: usize = 24 + 32 + 16;

/// A keyring as stored: nothing in it is trusted yet.
#[derive(Debug)]
pub struct UnverifiedKeyring {
    header_bytes: Vec<u8>,
    header: Header,
    record: record::Record,
    body: KeyringBody,
    digest: [u8; 32],
}

impl UnverifiedKeyring {
    /// Decodes header and keyring record.
    ///
    /// # Errors
    /// When they are damaged, or need a newer reader.
    pub fn parse(header_bytes: &[u8], record_bytes: &[u8]) -> Result<Self, KeyringError> {
        let header = Header::decode(header_bytes)?;
        let (record, body) = match record::Record::decode(header_bytes, record_bytes) {
            Ok(parts) => parts,
            // A newer format may encode its keyring in another way.
            Err(error) => return Err(header.must_be_readable().err().unwrap_or(error)),
        };
        header.must_be_readable()?;
        Ok(Self {
            header_bytes: header_bytes.to_vec(),
            header,
            record,
            body,
            digest: digest(&[record_bytes]),
        })
    }

    /// The vault that the header claims.
    pub fn vault(&self) -> VaultId {
        self.header.vault()
    }

    /// The sequence that the record claims.
    pub fn sequence(&self) -> u64 {
        self.body.sequence
    }

    /// SHA-256 of the whole record.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The KMS key URIs that the record claims for the active generation.
    pub fn claimed_uris(&self) -> Vec<String> {
        let wraps = self.body.active().map(|g| &g.wraps[..]).unwrap_or_default();
        wraps.iter().map(|wrap| wrap.uri.clone()).collect()
    }

    /// The claimed URIs, escaped and cut for display: an attacker may have written them.
    fn shown_uris(&self) -> String {
        let shown = |uri: &String| uri.escape_debug().take(200).collect::<String>();
        let uris: Vec<String> = self.claimed_uris().iter().take(8).map(shown).collect();
        uris.join(", ")
    }

    /// Has KMS unwrap the active master key, and verifies the record with it. Asks only keys in
    /// `pins`, in the keyring's order.
    ///
    /// # Errors
    /// When no key is pinned, KMS refuses or does not answer, or the record is not authentic.
    pub fn unlock(self, pins: &[KeyUri], kms: &dyn KeyService) -> Result<Keyring, KeyringError> {
        let active = self.active()?;
        let (key, wrap) = self.unwrap_generation(active, pins, kms)?;
        self.must_be_authentic(active.number, &key)?;
        let keys = BTreeMap::from([(active.number, key)]);
        let unlocked_by = wrap.uri.clone();
        self.unlock_rest(keys, unlocked_by, pins, kms)
    }

    /// Unlocks this keyring in a process that already holds an earlier state of it. A master key
    /// that both share proves that the record is authentic; only then is KMS asked, for new master
    /// keys only. So the KMS keys that the record names count as pinned.
    ///
    /// # Errors
    /// As for [`unlock`](Self::unlock), and when this state is older than the known one.
    pub fn follow(
        self,
        known: &Keyring,
        pins: &[KeyUri],
        kms: &dyn KeyService,
    ) -> Result<Keyring, KeyringError> {
        if self.header_bytes != known.header_bytes || self.body.sequence < known.body.sequence {
            return Err(KeyringError::integrity(
                "the keyring record was replaced by an older one, or by that of another vault",
            ));
        }
        let active = self.active()?.number;
        if active < known.active {
            return Err(KeyringError::integrity(
                "the keyring record goes back to a master key that was left",
            ));
        }
        let shared = self.body.generations.iter().filter_map(|generation| {
            let key = known.keys.get(&generation.number)?;
            let check = key
                .master
                .check_value(&self.header_bytes, self.vault(), generation.number);
            same(&check, &generation.check).then(|| (generation.number, Arc::clone(key)))
        });
        let keys: BTreeMap<_, _> = shared.collect();
        // An older key proves nothing: the rotation may leave it because an attacker has it.
        let Some(key) = keys.get(&known.active) else {
            // This process missed more than one rotation, so it unlocks as if for the first time.
            return self.unlock(pins, kms);
        };
        self.must_be_authentic(known.active, key)?;
        let named = self.body.generations.iter().flat_map(|g| &g.wraps);
        let named = named.map(|wrap| wrap.uri.parse().map_err(KeyringError::integrity));
        let pins = named.collect::<Result<Vec<_>, _>>()?;
        self.unlock_rest(keys, known.unlocked_by.clone(), &pins, kms)
    }

    fn unlock_rest(
        self,
        mut keys: BTreeMap<u64, Arc<LiveKey>>,
        unlocked_by: String,
        pins: &[KeyUri],
        kms: &dyn KeyService,
    ) -> Result<Keyring, KeyringError> {
        for generation in &self.body.generations {
            if keys.contains_key(&generation.number) {
                continue;
            }
            match self.unwrap_generation(generation, pins, kms) {
                Ok((key, _)) => {
                    keys.insert(generation.number, key);
                }
                // A pending key wraps nothing, so the vault works without it.
                Err(KeyringError::Kms(error)) if generation.state == GenerationState::Pending => {
                    tracing::warn!("the pending master key cannot be unwrapped yet: {error}");
                }
                Err(error) => return Err(error),
            }
        }
        let active = self.active()?.number;
        let key = keys
            .get(&active)
            .ok_or_else(|| KeyringError::unknown(active, "the keyring record"))?;
        self.must_be_authentic(active, key)?;
        Ok(Keyring {
            active,
            vault: self.header.vault(),
            header_bytes: self.header_bytes,
            body: self.body,
            keys,
            unlocked_by,
        })
    }

    fn active(&self) -> Result<&Generation, KeyringError> {
        self.body
            .active()
            .ok_or_else(|| KeyringError::integrity("no active key"))
    }

    /// Checks the record's MAC under one of its master keys.
    fn must_be_authentic(&self, generation: u64, key: &LiveKey) -> Result<(), KeyringError> {
        let mac = KeyringMacKey::derive(&key.master).mac(&self.header_bytes, &self.record.body);
        let mut macs = self.record.macs.iter();
        let stored = macs.find(|(number, _)| *number == generation);
        if stored.is_some_and(|(_, stored)| same(stored, &mac)) {
            return Ok(());
        }
        Err(KeyringError::integrity(format!(
            "the keyring record does not carry the MAC of master key generation {generation}"
        )))
    }

    fn unwrap_generation<'a>(
        &'a self,
        generation: &'a Generation,
        pins: &[KeyUri],
        kms: &dyn KeyService,
    ) -> Result<(Arc<LiveKey>, &'a Wrap), KeyringError> {
        let context = EncryptionContext::master_key(&self.vault().to_string(), generation.number);
        let mut refusal: Option<KmsError> = None;
        for wrap in &generation.wraps {
            let Some(uri) = pins.iter().find(|pin| pin.as_str() == wrap.uri) else {
                continue;
            };
            match kms.unwrap(uri, &wrap.blob, &context) {
                Ok(key) => {
                    let master = MasterKey(key.into_master_memory());
                    let check =
                        master.check_value(&self.header_bytes, self.vault(), generation.number);
                    if !same(&check, &generation.check) {
                        return Err(KeyringError::integrity(format!(
                            "wrong key: what {uri} unwrapped for generation {} is not the master \
                             key of this header and keyring",
                            generation.number
                        )));
                    }
                    return Ok((Arc::new(LiveKey::new(master)), wrap));
                }
                Err(error) => refusal = Some(merge(refusal, error)),
            }
        }
        Err(match refusal {
            Some(error) => error.into(),
            None => KeyringError::NotPinned(format!(
                "the vault names KMS keys that are not pinned on this host ({}), so none was \
                 asked; if you moved the vault to such a key elsewhere, pin it with \
                 `-o kms-key=URI`",
                self.shown_uris()
            )),
        })
    }
}

struct LiveKey {
    master: MasterKey,
    wrap: WrapKey,
}

impl LiveKey {
    fn new(master: MasterKey) -> Self {
        Self {
            wrap: WrapKey::derive(&master),
            master,
        }
    }
}

/// A verified keyring with its master keys in memory. Clones share the keys, which are wiped with
/// the last clone.
#[derive(Clone)]
pub struct Keyring {
    header_bytes: Vec<u8>,
    vault: VaultId,
    body: KeyringBody,
    active: u64,
    keys: BTreeMap<u64, Arc<LiveKey>>,
    unlocked_by: String,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Keyring(vault {}, generation {})",
            self.vault, self.active
        )
    }
}

impl Keyring {
    /// Makes the keyring of a new vault: a fresh master key, wrapped by each of `kms_keys`, each
    /// wrap proved by unwrapping it again.
    ///
    /// # Errors
    /// When a KMS key does not wrap, or does not unwrap what it wrapped.
    pub fn create(
        header: &Header,
        kms_keys: &[KeyUri],
        kms: &dyn KeyService,
        now: i64,
    ) -> Result<Self, KeyringError> {
        let header_bytes = codec::encode(header);
        let vault = header.vault();
        let master = MasterKey(SecretKey::generate()?.into_master_memory());
        let number = 1;
        let wraps = kms_keys
            .iter()
            .map(|uri| wrap_and_prove(uri, &master, vault, number, kms, now))
            .collect::<Result<Vec<_>, _>>()?;
        let generation = Generation {
            number,
            state: GenerationState::Active,
            check: master.check_value(&header_bytes, vault, number),
            created: now,
            wraps,
        };
        Ok(Self {
            header_bytes,
            vault,
            body: KeyringBody {
                sequence: 1,
                generations: vec![generation],
                change: None,
                history: HistoryHead::default(),
            },
            active: number,
            keys: BTreeMap::from([(number, Arc::new(LiveKey::new(master)))]),
            unlocked_by: kms_keys
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
        })
    }

    /// The header's bytes.
    pub fn header_bytes(&self) -> &[u8] {
        &self.header_bytes
    }

    /// The record to store, with a MAC under every master key in memory.
    pub fn encode(&self) -> Vec<u8> {
        let body = codec::encode(&self.body);
        let macs = self
            .keys
            .iter()
            .map(|(generation, key)| {
                let mac = KeyringMacKey::derive(&key.master).mac(&self.header_bytes, &body);
                (*generation, mac)
            })
            .collect();
        codec::encode(&record::Record::new(&self.header_bytes, body, macs))
    }

    /// The vault's identity.
    pub fn vault(&self) -> VaultId {
        self.vault
    }

    /// The record's body.
    pub fn body(&self) -> &KeyringBody {
        &self.body
    }

    /// The generation that wraps new keys.
    pub fn active(&self) -> u64 {
        self.active
    }

    /// The KMS key that unwrapped the active master key.
    pub fn unlocked_by(&self) -> &str {
        &self.unlocked_by
    }

    /// Wraps a data key under the active master key; returns the generation and the wrapped key.
    ///
    /// # Errors
    /// When the generator yields no nonce.
    pub fn wrap(
        &self,
        node: u64,
        role: Role,
        key: &SecretKey,
    ) -> Result<(u64, Vec<u8>), KeyringError> {
        let (generation, live, context) = self.wrapping(node, role)?;
        let wrapped = live.wrap.seal(self.vault, context, key.expose())?;
        Ok((generation, wrapped))
    }

    /// As [`wrap`](Self::wrap), for a key that already has a wrap, and with one of `nonces`. The
    /// new wrap will replace the only other one, so it is opened and compared first.
    ///
    /// # Errors
    /// As for [`wrap`](Self::wrap), and when the new wrap does not open to `key`.
    pub fn wrap_anew(
        &self,
        nonces: &mut Nonces,
        node: u64,
        role: Role,
        key: &SecretKey,
    ) -> Result<(u64, Vec<u8>), KeyringError> {
        let (generation, live, context) = self.wrapping(node, role)?;
        let wrapped = live
            .wrap
            .seal_with(nonces, self.vault, context, key.expose())?;
        match self.unwrap(generation, node, role, &wrapped)? == *key {
            true => Ok((generation, wrapped)),
            false => Err(KeyringError::integrity(format!(
                "a key of node {node} cannot be re-wrapped: the new wrap opens to another key"
            ))),
        }
    }

    fn wrapping(
        &self,
        node: u64,
        role: Role,
    ) -> Result<(u64, &LiveKey, Context<'static>), KeyringError> {
        let generation = self.active;
        let context = Context::Key {
            node,
            role,
            generation,
        };
        Ok((generation, self.live(generation)?, context))
    }

    /// Unwraps a data key.
    ///
    /// # Errors
    /// When the generation is unknown, or the wrapped key does not authenticate.
    pub fn unwrap(
        &self,
        generation: u64,
        node: u64,
        role: Role,
        wrapped: &[u8],
    ) -> Result<SecretKey, KeyringError> {
        let context = Context::Key {
            node,
            role,
            generation,
        };
        let what = || match role {
            Role::Metadata => format!("the wrapped key of node {node}"),
            Role::Content { version } => {
                format!("the wrapped key of version {version} of node {node}")
            }
        };
        let live = self.keys.get(&generation);
        let live = live.ok_or_else(|| KeyringError::unknown(generation, what()))?;
        let mut opened = Ok(());
        let key = SecretKey::filled_by(|key| {
            opened = live.wrap.open_into(self.vault, context, wrapped, key);
        });
        match opened {
            Ok(()) => Ok(key),
            Err(_) => {
                let why = format!("{} does not authenticate", what());
                Err(KeyringError::integrity(why))
            }
        }
    }

    /// Adds an event to the history and raises the sequence. Returns the event's number and bytes;
    /// the caller stores them in one transaction with [`encode`](Self::encode).
    pub fn record_event(&mut self, event: &Event) -> (u64, Vec<u8>) {
        self.body.sequence += 1;
        self.body.history.append(event)
    }

    fn live(&self, generation: u64) -> Result<&LiveKey, KeyringError> {
        self.keys
            .get(&generation)
            .map(|key| &**key)
            .ok_or_else(|| KeyringError::unknown(generation, "a data key"))
    }
}

fn wrap_and_prove(
    uri: &KeyUri,
    master: &MasterKey,
    vault: VaultId,
    generation: u64,
    kms: &dyn KeyService,
    now: i64,
) -> Result<Wrap, KeyringError> {
    let context = EncryptionContext::master_key(&vault.to_string(), generation);
    let wrapped = kms.wrap(uri, &master.0, &context)?;
    if kms.unwrap(uri, &wrapped.blob, &context)? != master.0 {
        return Err(KmsError {
            kind: KmsErrorKind::BadAnswer,
            message: format!(
                "{uri} unwrapped something else than it had wrapped; nothing was stored"
            ),
        }
        .into());
    }
    Ok(Wrap {
        uri: uri.to_string(),
        key_id: wrapped.key_id,
        blob: wrapped.blob,
        created: now,
    })
}
