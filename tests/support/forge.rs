//! What somebody does who has a master key: opens what stands under it, and makes records, sums and
//! histories that are authentic under it. Written from the format alone, beside the key schedule.

use std::path::Path;

use rusqlite::Connection;
use secretfs::codec;
use secretfs::crypto::schedule::{
    AttributesKey, ChunkKey, ContentKey, Context, EntryKey, KeyringMacKey, MasterKey, MetadataKey,
    RecordDigest, Role, SetKey, StateKey, VaultId, VersionKey, WrapKey, digest,
};
use secretfs::crypto::{SecretBytes, SecretKey, SetSum};
use secretfs::keyring::{Header, KeyringBody, WRAPPED_LEN};
use secretfs::kms::{EncryptionContext, KeyService, KmsSettings, connect};

use super::evil::{Record, execute, set_blob};
use super::process::Place;

/// A record's value begins with its kind and its revision, if it is a node's.
const WRAPPED: std::ops::Range<usize> = 9..9 + WRAPPED_LEN;
/// What is sealed follows behind its length.
const SEALED: usize = 9 + WRAPPED_LEN + 8;

/// Somebody with the master key that was active in a vault.
pub struct Hand {
    pub vault: VaultId,
    pub generation: u64,
    header: Vec<u8>,
    master: MasterKey,
}

/// A node's record.
pub struct Stored {
    pub id: u64,
    pub generation: u64,
    pub value: Vec<u8>,
}

impl Stored {
    pub fn of(database: &Connection, id: u64) -> Self {
        let sql = "SELECT generation, value FROM node WHERE id = ?1";
        let row = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(0)?, row.get(1)?));
        let (generation, value) = database.query_row(sql, [id as i64], row).expect("a node");
        Self {
            id,
            generation: generation as u64,
            value,
        }
    }

    pub fn put(&self, database: &Connection) {
        let sql = "UPDATE node SET generation = ?2, value = ?3 WHERE id = ?1";
        let row = (self.id as i64, self.generation as i64, &self.value);
        assert_eq!(database.execute(sql, row).expect("changed"), 1);
    }

    pub fn kind(&self) -> u8 {
        self.value[0]
    }

    pub fn revision(&self) -> u64 {
        u64::from_le_bytes(self.value[1..9].try_into().expect("8 bytes"))
    }

    /// Another one, of which the attributes are sealed under `key`, and that is wrapped like this.
    pub fn set_key(
        &mut self,
        vault: VaultId,
        key: &MetadataKey,
        (generation, wrapped): (u64, Vec<u8>),
    ) {
        let attributes = self.attributes(vault, key).expect("they open");
        self.generation = generation;
        let revision = self.revision() + 1;
        self.value[1..9].copy_from_slice(&revision.to_le_bytes());
        self.value[WRAPPED].copy_from_slice(&wrapped);
        self.set_attributes(vault, key, &attributes);
    }

    fn context(&self) -> Context<'static> {
        Context::Attributes {
            node: self.id,
            kind: self.kind(),
            revision: self.revision(),
        }
    }

    /// Its attributes, if they are sealed under `key`.
    pub fn attributes(&self, vault: VaultId, key: &MetadataKey) -> Option<SecretBytes> {
        let length = u64::from_le_bytes(self.value[SEALED - 8..SEALED].try_into().expect("8"));
        let sealed = &self.value[SEALED..SEALED + length as usize];
        let key = AttributesKey::derive(key);
        key.open(vault, self.context(), sealed).ok()
    }

    /// Other attributes, under the same key.
    pub fn set_attributes(&mut self, vault: VaultId, key: &MetadataKey, plain: &[u8]) {
        let key = AttributesKey::derive(key);
        let sealed = key.seal(vault, self.context(), plain).expect("sealed");
        self.value.truncate(SEALED);
        self.value.extend(sealed);
    }
}

impl Hand {
    /// Takes the key that is active in the vault in `vault` from the local KMS in `kms`.
    pub fn of(vault: &Path, kms: &Path) -> Self {
        let database = Connection::open(vault.join("vault.db")).expect("a database");
        let one = |sql| -> Vec<u8> { database.query_row(sql, [], |row| row.get(0)).expect(sql) };
        let header = one("SELECT value FROM header");
        let record = one("SELECT value FROM keyring");
        let length = u64::from_le_bytes(record[..8].try_into().expect("8 bytes")) as usize;
        let body: KeyringBody = codec::decode(&record[8..8 + length], "body").expect("a body");
        let active = body.active().expect("an active key");
        let vault = Header::decode(&header).expect("a header").vault();
        let kms = connect(&KmsSettings {
            local_dir: Some(kms.to_owned()),
            ..KmsSettings::default()
        });
        let context = EncryptionContext::master_key(&vault.to_string(), active.number);
        let wrap = &active.wraps[0];
        let uri = wrap.uri.parse().expect("a key URI");
        let master = kms.unwrap(&uri, &wrap.blob, &context).expect("unwrapped");
        Self {
            vault,
            generation: active.number,
            header,
            master: MasterKey(master),
        }
    }

    /// A data key, if it is wrapped by this master key.
    pub fn unwrap(&self, node: u64, role: Role, wrapped: &[u8]) -> Option<SecretKey> {
        let context = Context::Key {
            node,
            role,
            generation: self.generation,
        };
        let key = WrapKey::derive(&self.master);
        let key = key.open(self.vault, context, wrapped).ok()?;
        Some(SecretKey::from_slice(&key).expect("32 bytes"))
    }

    /// The master key itself.
    pub fn master_key(&self) -> [u8; 32] {
        *self.master.0.expose()
    }

    /// The key of a node's metadata, if it is wrapped by this master key.
    pub fn metadata_key(&self, database: &Connection, node: u64) -> Option<MetadataKey> {
        let stored = Stored::of(database, node);
        let key = self.unwrap(node, Role::Metadata, &stored.value[WRAPPED]);
        key.map(MetadataKey)
    }

    /// Adds an event to the history, whatever it holds, as a program does that knows what it means.
    pub fn append_event(&self, place: &Place, event: &[u8]) {
        let mut record = Record::of(place);
        let (mut length, mut sequence) = (0, 0);
        record.edit(|body| {
            body.sequence += 1;
            let history = &mut body.history;
            history.length += 1;
            (length, sequence) = (history.length, body.sequence);
            let number = length.to_le_bytes();
            history.hash = digest(&[b"secretfs event", &history.hash, &number, event]);
        });
        let mac = KeyringMacKey::derive(&self.master).mac(&self.header, &record.body);
        record.macs = 1u64.to_le_bytes().to_vec();
        record.macs.extend(self.generation.to_le_bytes());
        record.macs.extend(mac);
        record.store(place);
        execute(
            place,
            &format!("INSERT INTO event VALUES ({length}, x'00')"),
        );
        let put = format!("UPDATE event SET value = ?1 WHERE sequence = {length}");
        set_blob(place, &put, event);
        let database = super::evil::database(place);
        let system = self
            .metadata_key(&database, 0)
            .expect("it is under this key");
        let mut state = state(&database, self.vault, &system).expect("it opens");
        state[8..16].copy_from_slice(&sequence.to_le_bytes());
        put_state(&database, self.vault, &system, &state);
    }
}

/// The state record as it is sealed: the commit's number, the keyring's, the next node, numbers of
/// nodes and versions, their sum. `None` if it is not sealed under this key.
pub fn state(database: &Connection, vault: VaultId, system: &MetadataKey) -> Option<SecretBytes> {
    let sql = "SELECT value FROM state";
    let sealed: Vec<u8> = database
        .query_row(sql, [], |row| row.get(0))
        .expect("a state");
    let key = StateKey::derive(system);
    key.open(vault, Context::State, &sealed).ok()
}

/// Seals a state record under this key, and puts it there.
pub fn put_state(database: &Connection, vault: VaultId, system: &MetadataKey, state: &[u8]) {
    let key = StateKey::derive(system);
    let sealed = key.seal(vault, Context::State, state).expect("sealed");
    let put = "UPDATE state SET value = ?1";
    assert_eq!(database.execute(put, [sealed]).expect("changed"), 1);
}

/// Has a state say that all records that are there are those that should be there.
pub fn count_into(state: &mut [u8], database: &Connection, system: &MetadataKey) {
    let hash = SetKey::derive(system).ready();
    let (mut sum, mut nodes, mut versions) = (SetSum([0; 32]), 0u64, 0u64);
    let mut rows = database
        .prepare("SELECT id, generation, value FROM node")
        .expect("a table");
    let mut rows = rows.query([]).expect("rows");
    while let Some(row) = rows.next().expect("a row") {
        let [id, generation] = [0, 1].map(|at| row.get::<_, i64>(at).expect("a number") as u64);
        let value: Vec<u8> = row.get(2).expect("bytes");
        sum.add(&hash.node(id, &RecordDigest::of(generation, &value)));
        nodes += 1;
    }
    let mut rows = database
        .prepare("SELECT node, version, generation, value FROM version")
        .expect("a table");
    let mut rows = rows.query([]).expect("rows");
    while let Some(row) = rows.next().expect("a row") {
        let [node, version, generation] =
            [0, 1, 2].map(|at| row.get::<_, i64>(at).expect("a number") as u64);
        let value: Vec<u8> = row.get(3).expect("bytes");
        sum.add(&hash.version(node, version, &RecordDigest::of(generation, &value)));
        versions += 1;
    }
    state[24..32].copy_from_slice(&nodes.to_le_bytes());
    state[32..40].copy_from_slice(&versions.to_le_bytes());
    state[40..72].copy_from_slice(&sum.0);
}

/// The data keys of a copy: what somebody has who has the copy and the master key of its time.
pub struct Copied {
    vault: VaultId,
    nodes: Vec<(u64, MetadataKey)>,
    contents: Vec<(u64, ContentKey)>,
}

/// What she reads with them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Legible {
    pub names: Vec<String>,
    /// Nodes, with the first of their attributes, the mode.
    pub modes: Vec<(u64, u32)>,
    pub contents: Vec<String>,
}

impl Copied {
    pub fn of(hand: &Hand, copy: &Connection) -> Self {
        let ids = ids(copy, "SELECT id FROM node ORDER BY id").into_iter();
        let node = |id| {
            (
                id,
                hand.metadata_key(copy, id).expect("it is under this key"),
            )
        };
        let content = |(node, version, value): (u64, u64, Vec<u8>)| {
            let key = hand.unwrap(node, Role::Content { version }, &value[..WRAPPED_LEN]);
            (node, ContentKey(key.expect("it is under this key")))
        };
        Self {
            vault: hand.vault,
            nodes: ids.map(node).collect(),
            contents: versions(copy).into_iter().map(content).collect(),
        }
    }

    /// Tries every key on everything of its node.
    pub fn read(&self, database: &Connection) -> Legible {
        let mut legible = Legible::default();
        let there = ids(database, "SELECT id FROM node ORDER BY id");
        for (id, key) in &self.nodes {
            if !there.contains(id) {
                continue;
            }
            if let Some(plain) = Stored::of(database, *id).attributes(self.vault, key) {
                let mode = plain[..4].try_into().expect("4 bytes");
                legible.modes.push((*id, u32::from_le_bytes(mode)));
            }
            legible.names.extend(self.names(database, *id, key));
        }
        for (id, key) in &self.contents {
            legible
                .contents
                .extend(self.contents_of(database, *id, key));
        }
        legible.names.sort();
        legible.contents.sort();
        legible
    }

    /// Puts others in the place of all contents, of which each is of the same length, and of one piece.
    pub fn replace_contents(&self, database: &Connection, content: &[u8]) {
        for (node, key) in &self.contents {
            let version = versions(database).into_iter().find(|(id, ..)| id == node);
            let context = Context::Chunk {
                node: *node,
                version: version.expect("a version").1,
                index: 0,
                last: true,
            };
            let sealed: Vec<u8> = database
                .query_row(
                    "SELECT sealed FROM chunk WHERE node = ?1",
                    [*node as i64],
                    |row| row.get(0),
                )
                .expect("one chunk");
            let mut plain = content.to_vec();
            plain.resize(sealed.len() - 40, 0);
            let sealed = ChunkKey::derive(key).seal(self.vault, context, &plain);
            let row = (*node as i64, sealed.expect("sealed"));
            let put = "UPDATE chunk SET sealed = ?2 WHERE node = ?1";
            assert_eq!(database.execute(put, row).expect("changed"), 1);
        }
    }

    fn names(&self, database: &Connection, directory: u64, key: &MetadataKey) -> Vec<String> {
        let sql = "SELECT tag, value FROM entry WHERE directory = ?1";
        let mut rows = database.prepare(sql).expect("a table");
        let rows = rows.query_map([directory as i64], |row| Ok((row.get(0)?, row.get(1)?)));
        let mut names = Vec::new();
        for row in rows.expect("rows") {
            let (tag, value): (Vec<u8>, Vec<u8>) = row.expect("a row");
            let context = Context::Entry {
                directory,
                tag: tag[..].try_into().expect("32 bytes"),
                epoch: u32::from_le_bytes(value[..4].try_into().expect("4 bytes")),
            };
            // Node, kind, length, name.
            if let Ok(plain) = EntryKey::derive(key).open(self.vault, context, &value[12..]) {
                let name = &plain[10..10 + usize::from(plain[9])];
                names.push(String::from_utf8_lossy(name).into_owned());
            }
        }
        names
    }

    fn contents_of(&self, database: &Connection, node: u64, key: &ContentKey) -> Vec<String> {
        let mut contents = Vec::new();
        for (id, version, value) in versions(database) {
            let context = Context::Version { node, version };
            let sealed = &value[WRAPPED_LEN + 8..];
            let opened = VersionKey::derive(key).open(self.vault, context, sealed);
            let (true, Ok(extent)) = (id == node, opened) else {
                continue;
            };
            let length = u64::from_le_bytes(extent[..8].try_into().expect("8 bytes")) as usize;
            let sql = "SELECT sealed FROM chunk WHERE node = ?1 AND version = ?2 AND idx = 0";
            let row = [node as i64, version as i64];
            let sealed: Vec<u8> = database
                .query_row(sql, row, |row| row.get(0))
                .expect("a chunk");
            let context = Context::Chunk {
                node,
                version,
                index: 0,
                last: true,
            };
            let plain = ChunkKey::derive(key).open(self.vault, context, &sealed);
            let plain = plain.expect("the same key");
            contents.push(String::from_utf8_lossy(&plain[..length]).into_owned());
        }
        contents
    }
}

fn ids(database: &Connection, sql: &str) -> Vec<u64> {
    let mut rows = database.prepare(sql).expect("a table");
    let rows = rows
        .query_map([], |row| row.get::<_, i64>(0))
        .expect("rows");
    rows.map(|id| id.expect("a number") as u64).collect()
}

fn versions(database: &Connection) -> Vec<(u64, u64, Vec<u8>)> {
    let sql = "SELECT node, version, value FROM version ORDER BY node, version";
    let mut rows = database.prepare(sql).expect("a table");
    let rows = rows.query_map([], |row| {
        let [node, version] = [row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64];
        Ok((node, version, row.get(2)?))
    });
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}
