//! The vault of the golden vectors, whose keys are known.

use std::collections::HashMap;
use std::sync::OnceLock;

use secretfs::crypto::SecretKey;
use secretfs::crypto::schedule::{ContentKey, MasterKey, MetadataKey, Role};
use secretfs::keyring::{Keyring, KeyringError, UnverifiedKeyring};
use secretfs::kms::{
    EncryptionContext, KeyDescription, KeyService, KeyUri, KmsError, KmsErrorKind, Wrapped,
};
use secretfs::store::Record;
use secretfs::vault::{Node, ROOT, SYSTEM, decode};

/// The file in it.
pub(super) const FILE: u64 = 2;
/// A directory whose names are being moved under another key.
pub(super) const MOVING: u64 = 3;
/// The version of the file's content.
pub(super) const VERSION: u64 = 4;
/// Length of a wrapped data key.
pub(super) const WRAPPED: usize = 72;

/// Gives the vault's master key to everybody.
struct Gives;

fn refuses() -> KmsError {
    KmsError {
        kind: KmsErrorKind::Denied,
        message: "this is not done here".into(),
    }
}

impl KeyService for Gives {
    fn wrap(&self, _: &KeyUri, _: &SecretKey, _: &EncryptionContext) -> Result<Wrapped, KmsError> {
        Err(refuses())
    }

    fn unwrap(&self, _: &KeyUri, _: &[u8], _: &EncryptionContext) -> Result<SecretKey, KmsError> {
        Ok(master().0)
    }

    fn describe(&self, _: &KeyUri) -> Result<KeyDescription, KmsError> {
        Err(refuses())
    }
}

pub(super) fn master() -> MasterKey {
    MasterKey(SecretKey::filled_by(|key| key.fill(7)))
}

pub(super) fn unlock(unverified: UnverifiedKeyring) -> Result<Keyring, KeyringError> {
    unverified.unlock(&[KeyUri::default_local()], &Gives)
}

pub(super) struct World {
    pub(super) vectors: HashMap<&'static str, Vec<u8>>,
    pub(super) keyring: Keyring,
    pub(super) system: Node,
    pub(super) root: Node,
    pub(super) moving: Node,
    pub(super) summing: Node,
}

pub(super) fn keyed(generation: u64, value: &[u8]) -> Record {
    Record {
        generation,
        value: value.to_vec(),
    }
}

pub(super) fn world() -> &'static World {
    static WORLD: OnceLock<World> = OnceLock::new();
    WORLD.get_or_init(|| {
        let vectors = vectors();
        let keyring = UnverifiedKeyring::parse(&vectors["header"], &vectors["keyring"])
            .and_then(unlock)
            .expect("the keyring of the vectors");
        let node = |id, name| {
            decode::node(&keyring, id, &keyed(1, &vectors[name])).expect("a node of the vectors")
        };
        World {
            system: node(SYSTEM, "system"),
            root: node(ROOT, "root"),
            moving: node(MOVING, "moving"),
            summing: node(SYSTEM, "summing_system"),
            vectors,
            keyring,
        }
    })
}

pub(super) fn vectors() -> HashMap<&'static str, Vec<u8>> {
    let byte = |pair: &[u8]| {
        u8::from_str_radix(std::str::from_utf8(pair).expect("digits"), 16).expect("digits")
    };
    include_str!("../../vectors/format1.txt")
        .lines()
        .map(|line| line.split_once(' ').expect("a name and digits"))
        .map(|(name, hex)| (name, hex.as_bytes().chunks(2).map(byte).collect()))
        .collect()
}

impl World {
    /// The wrapped metadata key of a node's record, behind kind and revision.
    pub(super) fn wrapped(&self, name: &str) -> &[u8] {
        &self.vectors[name][9..9 + WRAPPED]
    }

    pub(super) fn metadata_key(&self, id: u64, name: &str) -> MetadataKey {
        let key = self
            .keyring
            .unwrap(1, id, Role::Metadata, self.wrapped(name));
        MetadataKey(key.expect("the key of a node"))
    }

    /// The wrapped new key of a node with two, at the end of its record.
    pub(super) fn wrapped_new(&self, name: &str) -> &[u8] {
        let record = &self.vectors[name];
        &record[record.len() - WRAPPED..]
    }

    pub(super) fn new_key(&self, id: u64, name: &str) -> MetadataKey {
        let key = self
            .keyring
            .unwrap(1, id, Role::Metadata, self.wrapped_new(name));
        MetadataKey(key.expect("the new key of a node"))
    }

    pub(super) fn content_key(&self) -> ContentKey {
        let role = Role::Content { version: VERSION };
        let wrapped = &self.vectors["version"][..WRAPPED];
        ContentKey(
            self.keyring
                .unwrap(1, FILE, role, wrapped)
                .expect("the key of the content"),
        )
    }
}
