//! The keys of a vault, had as its owner can have them: from the stored records and the KMS.

use hkdf::Hkdf;
use rusqlite::{Connection, OptionalExtension};
use secretfs::codec;
use secretfs::crypto::schedule::{Context, Role, VaultId};
use secretfs::crypto::{SecretBytes, SecretKey, aead};
use secretfs::keyring::{Header, WRAPPED_LEN};
use secretfs::kms::local::LocalKms;
use secretfs::kms::{EncryptionContext, KeyService, KmsSettings, connect};
use sha2::Sha256;

use super::evil::{self, Record};
use super::memory::Needle;
use super::process::Place;

/// The local KMS of a place, as its administrator has it.
pub fn local_kms(place: &Place) -> LocalKms {
    let settings = KmsSettings {
        local_dir: Some(place.path().join("kms")),
        ..KmsSettings::default()
    };
    LocalKms::new(&settings).expect("a local KMS")
}

/// A subkey, derived as the key schedule says.
fn subkey(key: &[u8; 32], label: &[u8]) -> Vec<u8> {
    let mut out = vec![0; 32];
    let hkdf = Hkdf::<Sha256>::from_prk(key).expect("32 bytes");
    hkdf.expand(label, &mut out).expect("32 bytes");
    out
}

/// Opens what is stored with a key as it is looked for: so that is the key that is in use.
fn opened(vault: VaultId, key: &[u8], context: Context<'_>, sealed: &[u8]) -> SecretBytes {
    let key = SecretKey::from_slice(key).expect("32 bytes");
    aead::open(&key, &context.bytes(vault), sealed).expect("the key that sealed it")
}

/// The master key, what is derived from it, and the data keys of all contents.
pub fn of(place: &Place) -> Vec<Needle> {
    let header = Header::decode(&evil::blob(place, "SELECT value FROM header")).expect("a header");
    let vault: VaultId = header.vault();
    let body = Record::of(place).body;
    let body: secretfs::keyring::KeyringBody = codec::decode(&body, "body").expect("a body");
    let active = body.active().expect("an active key");
    let kms = connect(&KmsSettings {
        local_dir: Some(place.path().join("kms")),
        ..KmsSettings::default()
    });
    let context = EncryptionContext::master_key(&vault.to_string(), active.number);
    let wrap = &active.wraps[0];
    let uri = wrap.uri.parse().expect("a key URI");
    let master = kms.unwrap(&uri, &wrap.blob, &context).expect("unwrapped");
    let wraps = subkey(master.expose(), b"secretfs/1 master wrap");
    let mut keys = vec![
        ("the master key".to_owned(), master.expose().to_vec()),
        ("the key that wraps".to_owned(), wraps.clone()),
    ];
    let database: Connection = evil::database(place);
    let query = "SELECT node, version, generation, value FROM version";
    let mut rows = database.prepare(query).expect("a table");
    let mut rows = rows.query([]).expect("rows");
    while let Some(row) = rows.next().expect("a row") {
        let [node, version, generation] =
            [0, 1, 2].map(|at| row.get::<_, i64>(at).expect("a number") as u64);
        let value: Vec<u8> = row.get(3).expect("bytes");
        let context = Context::Key {
            node,
            role: Role::Content { version },
            generation,
        };
        let key = opened(vault, &wraps, context, &value[..WRAPPED_LEN]);
        let key: [u8; 32] = key[..].try_into().expect("32 bytes");
        let of_chunks = subkey(&key, b"secretfs/1 content chunk");
        let query = "SELECT sealed, idx = (SELECT max(idx) FROM chunk WHERE node = ?1 AND \
                     version = ?2) FROM chunk WHERE node = ?1 AND version = ?2 AND idx = 0";
        let chunk = database.query_row(query, [node as i64, version as i64], |row| {
            Ok((row.get::<_, Vec<u8>>(0)?, row.get(1)?))
        });
        // An empty content has none.
        if let Some((sealed, last)) = chunk.optional().expect("a chunk") {
            let context = Context::Chunk {
                node,
                version,
                index: 0,
                last,
            };
            opened(vault, &of_chunks, context, &sealed);
        }
        keys.push((format!("the data key of node {node}"), key.to_vec()));
        keys.push((format!("the chunk key of node {node}"), of_chunks));
    }
    keys
}
