//! Records of somebody who has the keys: authentic, and wrong in what they say. And keyrings of somebody
//! who has none, and computes the checksum anew. Written from the format alone, and the same each time.

use chacha20poly1305::aead::AeadInOut;
use chacha20poly1305::{Tag, XChaCha20Poly1305, XNonce};
use hmac::{Hmac, KeyInit, Mac};
use rusqlite::Connection;
use secretfs::codec;
use secretfs::crypto::schedule::Role;
use secretfs::keyring::KeyringBody;
use sha2::{Digest, Sha256};

use crate::support::forge::Hand;
use crate::support::process::Place;
use crate::tamper::hex;

pub type Key = [u8; 32];

fn hmac(key: &Key, parts: &[&[u8]]) -> Key {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("any length");
    parts.iter().for_each(|part| mac.update(part));
    mac.finalize().into_bytes().into()
}

fn sha(parts: &[&[u8]]) -> Key {
    let mut hash = Sha256::new();
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

fn expand(key: &Key, label: &str) -> Key {
    hmac(key, &[b"secretfs/1 ", label.as_bytes(), &[1]])
}

/// With a nonce that is not random, so that the same is made each time.
fn seal(key: &Key, aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce = XNonce::try_from(&sha(&[key, aad, plain])[..24]).expect("24 bytes");
    let mut text = plain.to_vec();
    let tag = XChaCha20Poly1305::new(key.into())
        .encrypt_inout_detached(&nonce, aad, text.as_mut_slice().into())
        .expect("sealed");
    [&nonce[..], &text, &tag].concat()
}

fn open(key: &Key, aad: &[u8], sealed: &[u8]) -> Vec<u8> {
    let (nonce, rest) = sealed.split_at(24);
    let (text, tag) = rest.split_at(rest.len() - 16);
    let (nonce, tag) = (XNonce::try_from(nonce), Tag::try_from(tag));
    let mut text = text.to_vec();
    XChaCha20Poly1305::new(key.into())
        .decrypt_inout_detached(
            &nonce.expect("24 bytes"),
            aad,
            text.as_mut_slice().into(),
            &tag.expect("16 bytes"),
        )
        .expect("it opens");
    text
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn add(sum: &mut [u8], element: &Key) {
    let mut carry = 0;
    for (digit, other) in sum.iter_mut().zip(element) {
        let total = u16::from(*digit) + u16::from(*other) + carry;
        (*digit, carry) = (total as u8, total >> 8);
    }
}

/// Where the body begins in attributes.
pub fn body_at(plain: &[u8]) -> usize {
    let mut at = 72;
    for _ in 0..number(plain, 64) * 2 {
        at += 8 + number(plain, at) as usize;
    }
    at
}

/// A copy of a vault, in the hands of somebody with its keys, and what she has done to it.
pub struct Forger {
    _place: Place,
    hand: Hand,
    pub database: Connection,
    pub sql: Vec<String>,
}

impl Forger {
    pub fn of(vault: &str) -> Self {
        let place = crate::store::copied(vault);
        Self {
            hand: Hand::of(&place.vault(), &place.path().join("kms")),
            database: Connection::open(place.vault().join("vault.db")).expect("a database"),
            _place: place,
            sql: Vec::new(),
        }
    }

    pub fn put(&mut self, sql: String) {
        assert_eq!(self.database.execute(&sql, []).expect(&sql), 1, "{sql}");
        self.sql.push(sql);
    }

    pub fn blob(&self, sql: &str) -> Vec<u8> {
        self.database
            .query_row(sql, [], |row| row.get(0))
            .expect(sql)
    }

    pub fn id(&self, sql: &str) -> u64 {
        self.database
            .query_row(sql, [], |row| row.get(0))
            .map(|id: i64| id as u64)
            .expect(sql)
    }

    fn aad(&self, kind: u8, fields: &[&[u8]]) -> Vec<u8> {
        [&[1, kind][..], &self.hand.vault.0, &fields.concat()].concat()
    }

    pub fn value(&self, id: u64) -> Vec<u8> {
        self.blob(&format!("SELECT value FROM node WHERE id = {id}"))
    }

    pub fn metadata_key(&self, id: u64) -> Key {
        let key = self.hand.unwrap(id, Role::Metadata, &self.value(id)[9..81]);
        *key.expect("it is under this key").expose()
    }

    pub fn wrapped(&self, node: u64, role: Role, key: &Key) -> Vec<u8> {
        let (number, version) = match role {
            Role::Metadata => (0, 0),
            Role::Content { version } => (1, version),
        };
        let generation = self.hand.generation.to_le_bytes();
        let (node, version) = (node.to_le_bytes(), version.to_le_bytes());
        let aad = self.aad(1, &[&node, &[number], &version, &generation]);
        seal(&expand(&self.hand.master_key(), "master wrap"), &aad, key)
    }

    pub fn attributes(&self, id: u64) -> Vec<u8> {
        let value = self.value(id);
        let (key, aad) = (
            expand(&self.metadata_key(id), "metadata attributes"),
            self.attributes_aad(id, &value),
        );
        open(&key, &aad, &value[89..])
    }

    fn attributes_aad(&self, id: u64, value: &[u8]) -> Vec<u8> {
        self.aad(2, &[&id.to_le_bytes(), &value[..1], &value[1..9]])
    }

    /// A node's record with other attributes, under a key.
    pub fn node(&self, id: u64, kind: Option<u8>, plain: &[u8], key: &Key) -> Vec<u8> {
        let mut value = self.value(id);
        value[0] = kind.unwrap_or(value[0]);
        let key = expand(key, "metadata attributes");
        let sealed = seal(&key, &self.attributes_aad(id, &value), plain);
        value.truncate(81);
        value.extend((sealed.len() as u64).to_le_bytes());
        value.extend(sealed);
        value
    }

    pub fn put_node(&mut self, id: u64, value: &[u8]) {
        self.put(format!(
            "UPDATE node SET value = {} WHERE id = {id}",
            hex(value)
        ));
    }

    /// Has a node say something else, which is authentic, and counted.
    pub fn say(&mut self, id: u64, change: impl FnOnce(&mut Vec<u8>)) {
        let mut plain = self.attributes(id);
        change(&mut plain);
        let value = self.node(id, None, &plain, &self.metadata_key(id));
        self.put_node(id, &value);
        self.count();
    }

    /// The sum over a directory's entries is right again.
    pub fn sum_names(&mut self, directory: u64) {
        let key = expand(&self.metadata_key(directory), "metadata set");
        let mut sum = [0; 32];
        let mut rows = 0u64;
        {
            let sql = format!("SELECT tag, value FROM entry WHERE directory = {directory}");
            let mut statement = self.database.prepare(&sql).expect(&sql);
            let mut found = statement.query([]).expect("rows");
            while let Some(row) = found.next().expect("a row") {
                let (tag, value): (Vec<u8>, Vec<u8>) =
                    (row.get(0).expect("bytes"), row.get(1).expect("bytes"));
                add(&mut sum, &hmac(&key, &[b"e", &tag, &sha(&[&value])]));
                rows += 1;
            }
        }
        self.say(directory, |plain| {
            let at = body_at(plain);
            plain[at + 44..at + 52].copy_from_slice(&rows.to_le_bytes());
            plain[at + 56..at + 88].copy_from_slice(&sum);
        });
    }

    /// The entry of a directory that its first name has: its tag, and what is sealed in it.
    pub fn entry(&self, directory: u64, kind: u8) -> (Vec<u8>, Vec<u8>) {
        let sql = format!("SELECT tag FROM entry WHERE directory = {directory} ORDER BY tag");
        let mut statement = self.database.prepare(&sql).expect(&sql);
        let tags = statement
            .query_map([], |row| row.get::<_, Vec<u8>>(0))
            .expect("rows");
        for tag in tags {
            let tag = tag.expect("bytes");
            let sql = format!("SELECT value FROM entry WHERE tag = {}", hex(&tag));
            let plain = self.open_entry(directory, &tag, &self.blob(&sql));
            if plain[8] == kind {
                return (tag, plain);
            }
        }
        panic!("no entry of kind {kind}");
    }

    fn open_entry(&self, directory: u64, tag: &[u8], value: &[u8]) -> Vec<u8> {
        let key = expand(&self.metadata_key(directory), "metadata entry");
        let aad = self.aad(3, &[&directory.to_le_bytes(), tag, &value[..4]]);
        open(&key, &aad, &value[12..])
    }

    /// Has an entry say something else, under a tag and in an epoch.
    pub fn put_entry(
        &mut self,
        directory: u64,
        (was, tag): (&[u8], &[u8]),
        epoch: u32,
        plain: &[u8],
    ) {
        let key = expand(&self.metadata_key(directory), "metadata entry");
        let aad = self.aad(3, &[&directory.to_le_bytes(), tag, &epoch.to_le_bytes()]);
        let sealed = seal(&key, &aad, plain);
        let length = (sealed.len() as u64).to_le_bytes();
        let value = [&epoch.to_le_bytes()[..], &length, &sealed].concat();
        self.put(format!(
            "UPDATE entry SET tag = {}, value = {} WHERE directory = {directory} AND tag = {}",
            hex(tag),
            hex(&value),
            hex(was)
        ));
        self.sum_names(directory);
    }

    /// Adds a name to a directory.
    pub fn add_entry(&mut self, directory: u64, node: u64, kind: u8, name: &[u8]) {
        let mut plain = [&node.to_le_bytes()[..], &[kind, name.len() as u8], name].concat();
        plain.resize(265, 0);
        let tag = self.tag(directory, name);
        let insert = format!(
            "INSERT INTO entry VALUES ({directory}, {}, x'00')",
            hex(&tag)
        );
        self.put(insert);
        self.put_entry(directory, (&tag, &tag), 1, &plain);
        self.say(directory, |plain| {
            let at = body_at(plain);
            plain[at + 52] += u8::from(kind == 2);
        });
    }

    /// Adds a version of one chunk to a node.
    pub fn put_content(&mut self, (node, version): (u64, u64), length: u8) {
        let extent = [length, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0];
        let value = hex(&self.version(node, version, &[9; 32], &extent));
        self.put(format!(
            "INSERT INTO version VALUES ({node}, {version}, 1, 5000, {value})"
        ));
        let sealed = hex(&self.chunk((node, version), 0, true, &[0; 256]));
        self.put(format!(
            "INSERT INTO chunk VALUES (5000, {node}, {version}, 0, {sealed})"
        ));
        self.count();
    }

    pub fn tag(&self, directory: u64, name: &[u8]) -> Key {
        hmac(
            &expand(&self.metadata_key(directory), "metadata name-tag"),
            &[name],
        )
    }

    pub fn content_key(&self, node: u64, version: u64) -> Key {
        let sql = format!("SELECT value FROM version WHERE node = {node} AND version = {version}");
        let role = Role::Content { version };
        let key = self.hand.unwrap(node, role, &self.blob(&sql)[..72]);
        *key.expect("it is under this key").expose()
    }

    /// A version's record with another extent.
    pub fn version(&self, node: u64, version: u64, key: &Key, extent: &[u8]) -> Vec<u8> {
        let wrapped = self.wrapped(node, Role::Content { version }, key);
        let aad = self.aad(4, &[&node.to_le_bytes(), &version.to_le_bytes()]);
        let sealed = seal(&expand(key, "content version"), &aad, extent);
        [&wrapped[..], &(sealed.len() as u64).to_le_bytes(), &sealed].concat()
    }

    pub fn chunk(
        &self,
        (node, version): (u64, u64),
        index: u32,
        last: bool,
        plain: &[u8],
    ) -> Vec<u8> {
        let key = expand(&self.content_key(node, version), "content chunk");
        let of = (
            node.to_le_bytes(),
            version.to_le_bytes(),
            index.to_le_bytes(),
        );
        let aad = self.aad(5, &[&of.0, &of.1, &of.2, &[last.into()]]);
        seal(&key, &aad, plain)
    }

    pub fn state(&self) -> Vec<u8> {
        let key = expand(&self.metadata_key(0), "metadata state");
        open(
            &key,
            &self.aad(6, &[]),
            &self.blob("SELECT value FROM state"),
        )
    }

    pub fn put_state(&mut self, plain: &[u8]) {
        let key = expand(&self.metadata_key(0), "metadata state");
        let sealed = seal(&key, &self.aad(6, &[]), plain);
        self.put(format!("UPDATE state SET value = {}", hex(&sealed)));
    }

    /// The sum over all nodes and versions is right again.
    pub fn count(&mut self) {
        let key = expand(&self.metadata_key(0), "metadata set");
        let mut plain = self.state();
        plain[24..72].fill(0);
        for (at, letter, sql) in [
            (24, b"n", "SELECT id, 0, generation, value FROM node"),
            (
                32,
                b"v",
                "SELECT node, version, generation, value FROM version",
            ),
        ] {
            let mut statement = self.database.prepare(sql).expect(sql);
            let mut rows = statement.query([]).expect("rows");
            while let Some(row) = rows.next().expect("a row") {
                let column = |at| row.get::<_, i64>(at).expect("a number").to_le_bytes();
                let value: Vec<u8> = row.get(3).expect("bytes");
                let digest = sha(&[&column(2), &value]);
                let version = column(1);
                let of_version = if at == 32 { &version[..] } else { &[] };
                add(
                    &mut plain[40..72],
                    &hmac(&key, &[letter, &column(0), of_version, &digest]),
                );
                let rows = number(&plain, at) + 1;
                plain[at..at + 8].copy_from_slice(&rows.to_le_bytes());
            }
        }
        self.put_state(&plain);
    }

    /// A keyring record with another body; its MAC is right, or as it was.
    pub fn put_keyring(&mut self, authentic: bool, change: impl FnOnce(&mut KeyringBody)) {
        let record = self.blob("SELECT value FROM keyring");
        let length = number(&record, 0) as usize;
        let mut body: KeyringBody = codec::decode(&record[8..8 + length], "body").expect("a body");
        change(&mut body);
        let body = codec::encode(&body);
        let mut macs = record[8 + length..record.len() - 32].to_vec();
        let header = sha(&[&self.blob("SELECT value FROM header")]);
        if authentic {
            let key = expand(&self.hand.master_key(), "master keyring-mac");
            let mac = hmac(&key, &[b"keyring", &header, &sha(&[&body])]);
            macs = [
                &1u64.to_le_bytes()[..],
                &self.hand.generation.to_le_bytes(),
                &mac,
            ]
            .concat();
        }
        self.store_keyring(&body, &macs);
    }

    /// Stores a keyring record with the checksum that belongs to it and to the header.
    pub fn store_keyring(&mut self, body: &[u8], macs: &[u8]) {
        let header = sha(&[&self.blob("SELECT value FROM header")]);
        let digests: Vec<u8> = macs[8..].chunks(40).flat_map(|mac| sha(&[mac])).collect();
        let text = b"secretfs keyring checksum       ";
        let checksum = sha(&[text, &header, &sha(&[body]), &digests]);
        let record = [
            &(body.len() as u64).to_le_bytes()[..],
            body,
            macs,
            &checksum,
        ]
        .concat();
        self.put(format!("UPDATE keyring SET value = {}", hex(&record)));
    }
}
