//! Master keys: made, wrapped by KMS keys, verified, and used to wrap data keys.
//!
//! Never sends anything to a KMS key that the caller did not pin, and uses nothing of a stored
//! keyring before its MAC under the active master key was verified.

mod change;
mod error;
mod history;
mod record;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::codec;
use crate::crypto::schedule::{
    Context, KeyringMacKey, MasterKey, Role, VaultId, WrapKey, digest, same,
};
use crate::crypto::{Nonces, SecretKey};
use crate::kms::{EncryptionContext, KeyService, KeyUri, KmsError, KmsErrorKind};

pub use change::{EventRow, NewGeneration, ProvedKey, is_final};
pub use error::KeyringError;
pub use history::{Event, EventKind, History, PastEvent, UnknownEvent};
pub use record::{
    Body, Change, ChangeKind, ChangePhase, FORMAT, Generation, GenerationState, Header,
    HistoryHead, Wrap,
};

use error::merge;

/// Length of a wrapped data key in bytes: nonce, key, tag.
pub const WRAPPED_LEN: usize = 24 + 32 + 16;

/// A keyring as the store has it. Nothing of it is to be believed.
#[derive(Debug)]
pub struct UnverifiedKeyring {
    header_bytes: Vec<u8>,
    header: Header,
    record: record::Record,
    body: Body,
    digest: [u8; 32],
}

impl UnverifiedKeyring {
    /// Takes header and keyring record apart.
    ///
    /// # Errors
    /// When they are damaged, or written for newer readers.
    pub fn parse(header_bytes: &[u8], record_bytes: &[u8]) -> Result<Self, KeyringError> {
        let header = Header::decode(header_bytes)?;
        let (record, body) = match record::Record::decode(header_bytes, record_bytes) {
            Ok(parts) => parts,
            // A newer format may well keep its keyring in another shape.
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

    /// Which vault it says it belongs to.
    pub fn vault(&self) -> VaultId {
        self.header.vault()
    }

    /// The sequence it claims.
    pub fn sequence(&self) -> u64 {
        self.body.sequence
    }

    /// SHA-256 of the whole record.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The KMS key URIs that it names for the active generation.
    pub fn claimed_uris(&self) -> Vec<String> {
        let wraps = self.body.active().map(|g| &g.wraps[..]).unwrap_or_default();
        wraps.iter().map(|wrap| wrap.uri.clone()).collect()
    }

    /// The same for people: anybody may have written them.
    fn shown_uris(&self) -> String {
        let shown = |uri: &String| uri.escape_debug().take(200).collect::<String>();
        let uris: Vec<String> = self.claimed_uris().iter().take(8).map(shown).collect();
        uris.join(", ")
    }

    /// Has KMS unwrap the active master key and verifies everything with it. Only keys in `pins`
    /// are asked, in the keyring's order.
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

    /// The same for a process that has an earlier state of this keyring unlocked: KMS is asked
    /// only for master keys that are new, and only once the record is known to be authentic. That
    /// shows by a key that both have, so the KMS keys that it names may be asked.
    ///
    /// # Errors
    /// As for [`unlock`](Self::unlock), and when this state is not a later one.
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
        // Not by an older one: that is what is being left, perhaps because somebody has it.
        let Some(key) = keys.get(&known.active) else {
            // More than one rotation was missed: as if it were opened for the first time.
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
                // Nothing stands under a pending key, so a vault can do without it.
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

    /// Compares the record's MAC under one of its master keys.
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

/// A verified keyring with its master keys in memory. Copies share the keys, which are wiped with
/// the last of them.
#[derive(Clone)]
pub struct Keyring {
    header_bytes: Vec<u8>,
    vault: VaultId,
    body: Body,
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
            body: Body {
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

    /// The record as it is to be stored, with a MAC under every live master key.
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

    /// The vault.
    pub fn vault(&self) -> VaultId {
        self.vault
    }

    /// What the record says.
    pub fn body(&self) -> &Body {
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
    /// When no nonce can be drawn.
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

    /// [`wrap`](Self::wrap) for a key that is wrapped otherwise so far, with one of `nonces`: the new
    /// wrap takes the place of the only other one, so it is opened first, and compared.
    ///
    /// # Errors
    /// As there, and when it does not hold the key.
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
                "a key of node {node} cannot be wrapped anew: what was wrapped is another one"
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
    /// When the generation is unknown, or the wrapped key is not what was wrapped.
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

    /// Adds an event to the history and raises the sequence; returns the event's number and bytes,
    /// to be stored in the same transaction as [`encode`](Self::encode).
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
