//! Records in wrong contexts, and the bytes of the format.
//!
//! `tests/vectors/format1.py` computes the records in `format1.txt` beside it, with none of the code
//! here. A change of them makes every existing vault unreadable.

mod crash;
pub(super) mod stored;

use std::collections::HashMap;

use crate::codec;
use crate::crypto::SecretKey;
use crate::crypto::schedule::VaultId;
use crate::keyring::{
    Event, EventKind, Header, History, HistoryHead, Keyring, KeyringBody, PastEvent, Rotation,
    RotationKind, RotationPhase, UnverifiedKeyring,
};
use crate::kms::{
    EncryptionContext, KeyDescription, KeyService, KeyUri, KmsError, KmsErrorKind, Wrapped,
};
use crate::store::Record;

use super::content::{self, Version};
use super::entry::{DirectoryKeys, Entry};
use super::keys::KeyedId;
use super::node::{Attributes, DirectoryBody, Kind, Node, NodeBody as Body, ROOT, SYSTEM};
use super::state::{Element, State, SystemKeys};
use stored::whole;

const FILE: u64 = 2;
const TEXT: &[u8] = b"correct horse";

fn vectors() -> HashMap<&'static str, Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    include_str!("../../tests/vectors/format1.txt")
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, hex)| (name, hex.as_bytes().chunks(2).map(byte).collect()))
        .collect()
}

/// A KMS that always returns the same key.
struct Gives([u8; 32]);

impl KeyService for Gives {
    fn wrap(
        &self,
        uri: &KeyUri,
        _: &SecretKey,
        _: &EncryptionContext,
    ) -> Result<Wrapped, KmsError> {
        Err(KmsError {
            kind: KmsErrorKind::Denied,
            message: format!("{uri} does not wrap here"),
        })
    }

    fn unwrap(&self, _: &KeyUri, _: &[u8], _: &EncryptionContext) -> Result<SecretKey, KmsError> {
        Ok(SecretKey::from_slice(&self.0).unwrap())
    }

    fn describe(&self, uri: &KeyUri) -> Result<KeyDescription, KmsError> {
        Err(KmsError {
            kind: KmsErrorKind::NotFound,
            message: format!("{uri} is not described here"),
        })
    }
}

fn unlocked(header: &[u8], keyring: &[u8], master: [u8; 32]) -> Result<Keyring, String> {
    UnverifiedKeyring::parse(header, keyring)
        .and_then(|unverified| unverified.unlock(&[KeyUri::default_local()], &Gives(master)))
        .map_err(|error| error.to_string())
}

fn keyring() -> Keyring {
    let v = vectors();
    unlocked(&v["header"], &v["keyring"], [7; 32]).unwrap()
}

fn record(value: &[u8]) -> Record {
    Record {
        generation: 1,
        value: value.to_vec(),
    }
}

fn attributes(mode: u32, body: Body) -> Attributes {
    let at = |n: u32| super::Timestamp {
        seconds: 1000 + i64::from(n),
        nanoseconds: n,
    };
    Attributes {
        mode,
        uid: 1,
        gid: 2,
        links: 1,
        accessed: at(0),
        modified: at(1),
        changed: at(2),
        created: at(3),
        xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
        body,
    }
}

fn open(id: u64, value: &[u8]) -> Node {
    Node::open(&keyring(), id, &record(value)).unwrap()
}

fn password(tag: [u8; 32]) -> Entry {
    Entry {
        tag,
        node: FILE,
        kind: Kind::File,
        name: b"password".to_vec(),
    }
}

// ---------------------------------------------------------------------------------------------
// The bytes of the format

#[test]
fn the_header_and_the_keyring_are_pinned() {
    let v = vectors();
    let vault = VaultId(*b"0123456789abcdef");
    assert_eq!(codec::encode(&Header::new(vault)), v["header"]);
    let keyring = keyring();
    assert_eq!(keyring.vault(), vault);
    // Another implementation computes the same check value, MAC and checksum.
    assert_eq!(keyring.encode(), v["keyring"]);
    let body = keyring.body();
    assert_eq!((body.sequence, body.history.length), (1, 1));
    assert_eq!(body.generations[0].wraps[0].key_id, "default@1");
    let mut history = History::default();
    let event = history.next(1, &v["event"]).unwrap();
    let event = event.known().unwrap().clone();
    history.must_end_at(&body.history).unwrap();
    let kms_keys = vec!["local-kms://default".to_owned()];
    assert_eq!(event.kind, EventKind::Created { kms_keys });
    let mut head = HistoryHead::default();
    assert_eq!(head.append(&event), (1, v["event"].clone()));
    assert_eq!(head, body.history);
}

#[test]
fn what_a_rotation_and_a_rollback_store_is_pinned() {
    let change = Rotation {
        kind: RotationKind::Reencrypt,
        phase: RotationPhase::Scrubbing,
        from: 1,
        to: 2,
        started: -1,
    };
    let numbers = |list: &[&[u8]]| list.concat();
    assert_eq!(
        codec::encode(&Some(change)),
        numbers(&[
            &[1],
            &[2, 0, 0, 0],
            &[5, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[2, 0, 0, 0, 0, 0, 0, 0],
            &[0xff; 8]
        ])
    );
    let event = Event {
        at: 2,
        late: true,
        kind: EventKind::RollbackAccepted {
            seen_keyring: 3,
            accepted_keyring: 4,
            seen_commit: 5,
            accepted_commit: 6,
        },
    };
    let bytes = codec::encode(&event);
    assert_eq!(bytes[8..13], [1, 1, 0, 0, 0]);
    let words: Vec<u8> = bytes[13..].iter().copied().filter(|b| *b != 0).collect();
    assert_eq!((bytes.len(), words), (45, vec![3, 4, 5, 6]));
    let event = Event {
        at: 2,
        late: false,
        kind: EventKind::TamperingFound {
            count: 3,
            what: vec!["node 7".to_owned()],
        },
    };
    assert_eq!(
        codec::encode(&event),
        numbers(&[
            &[2, 0, 0, 0, 0, 0, 0, 0, 0],
            &[10, 0, 0, 0],
            &[3, 0, 0, 0, 0, 0, 0, 0],
            &[1, 0, 0, 0, 0, 0, 0, 0],
            &[6, 0, 0, 0, 0, 0, 0, 0],
            b"node 7"
        ])
    );
}

#[test]
fn of_an_event_of_an_unknown_kind_is_told_what_can_be() {
    let told = |bytes: &[u8]| {
        let event = PastEvent::read(bytes);
        assert!(event.known().is_none());
        serde_json::to_value(event).unwrap()
    };
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    let future = [2, 0, 0, 0, 0, 0, 0, 0, 1, 57, 0, 0, 0, 9, 9];
    let whole = json(r#"{"event": "unknown", "at": 2, "late": true, "kind": 57}"#);
    assert_eq!(told(&future), whole);
    assert_eq!(told(&future[..13]), whole);
    let cut = json(r#"{"event": "unknown", "at": 2, "late": true}"#);
    assert_eq!(told(&future[..12]), cut);
    assert_eq!(told(&future[..8]), json(r#"{"event": "unknown", "at": 2}"#));
    assert_eq!(told(&future[..7]), json(r#"{"event": "unknown"}"#));
    // A late flag that is neither true nor false; and extra fields in a known kind.
    let other = [2, 0, 0, 0, 0, 0, 0, 0, 7, 57, 0, 0, 0];
    assert_eq!(told(&other), json(r#"{"event": "unknown", "at": 2}"#));
    let event = Event {
        at: 2,
        late: false,
        kind: EventKind::Activated { generation: 3 },
    };
    let mut more = codec::encode(&event);
    assert_eq!(PastEvent::read(&more), PastEvent::Known(event));
    more.push(0);
    let known = json(r#"{"event": "unknown", "at": 2, "late": false, "kind": 3}"#);
    assert_eq!(told(&more), known);
}

#[test]
fn nodes_are_pinned() {
    let v = vectors();
    let system = open(SYSTEM, &v["system"]);
    assert_eq!((system.kind, system.revision), (Kind::System, 1));
    assert_eq!(system.attributes, attributes(0, Body::Special(0)));
    let file = open(FILE, &v["file"]);
    assert_eq!((file.kind, file.revision), (Kind::File, 5));
    let body = super::FileBody {
        version: 4,
        replaced: 2,
        size: TEXT.len() as u64,
    };
    assert_eq!(file.attributes, attributes(0o640, Body::File(body)));
    // Kind, revision, wrapped key, and sealed attributes padded to 256.
    assert_eq!(v["file"].len(), 1 + 8 + 72 + 8 + (24 + 256 + 16));
    let mut again = file.clone();
    let sealed = again.seal(keyring().vault()).unwrap();
    assert_eq!(sealed.value.len(), v["file"].len());
    assert_eq!(sealed.value[..9], [1, 6, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(sealed.value[9..81], v["file"][9..81]);
}

#[test]
fn names_and_the_sums_over_them_are_pinned() {
    let v = vectors();
    let root = open(ROOT, &v["root"]);
    let keys = DirectoryKeys::of(keyring().vault(), &root).unwrap();
    let tag = keys.tag(b"password").unwrap();
    assert_eq!(tag[..], v["tag"]);
    assert_eq!(keys.open(&tag, &v["entry"]).unwrap(), password(tag));
    // Epoch, length, and one size for all names.
    assert_eq!(v["entry"].len(), 4 + 8 + (24 + 265 + 16));
    assert_eq!(keys.seal(&password(tag)).unwrap().len(), v["entry"].len());
    let mut body = DirectoryBody::new(ROOT, [0; 32]);
    keys.count(&mut body, &tag, &v["entry"], false);
    assert_eq!(root.attributes, attributes(0o755, Body::Directory(body)));
}

#[test]
fn a_directory_whose_names_are_being_moved_is_pinned() {
    let v = vectors();
    let directory = open(3, &v["moving"]);
    assert_eq!((directory.kind, directory.revision), (Kind::Directory, 7));
    let keys = DirectoryKeys::of(keyring().vault(), &directory).unwrap();
    // Kind, revision, two wrapped keys, the generation of the new one, and sealed attributes.
    assert_eq!(v["moving"].len(), 1 + 8 + 72 + 8 + (24 + 256 + 16) + 8 + 72);
    let tag = |name: &str| <[u8; 32]>::try_from(&v[name][..]).unwrap();
    let mut counted = directory.directory().unwrap().uncounted();
    for (name, tag, node) in [
        ("stays", tag("stays_tag"), 4),
        ("moved", tag("moved_tag"), 5),
    ] {
        let entry = Entry {
            tag,
            node,
            kind: Kind::File,
            name: name.into(),
        };
        assert_eq!(keys.open(&tag, &v[name]).unwrap(), entry);
        assert_eq!(keys.is_previous(&v[name]), name == "stays");
        keys.count(&mut counted, &tag, &v[name], false);
    }
    assert_eq!(keys.tag(b"moved").unwrap(), tag("moved_tag"));
    assert_ne!(keys.tag(b"stays").unwrap(), tag("stays_tag"));
    (counted.parent, counted.tag) = (ROOT, [9; 32]);
    let remainder = counted.remainder.as_ref().unwrap();
    assert_eq!((counted.epoch, remainder.epoch), (2, 1));
    assert_eq!((counted.entries, remainder.entries), (2, 1));
    assert_eq!(
        directory.attributes,
        attributes(0o700, Body::Directory(counted.clone()))
    );
    let mut again = directory.clone();
    let sealed = again.seal(keyring().vault()).unwrap();
    assert_eq!(
        (sealed.generation, sealed.value.len()),
        (1, v["moving"].len())
    );
    assert_eq!(sealed.value[9..81], v["moving"][9..81]);
    assert_eq!(sealed.value[81 + 8 + 296..], v["moving"][81 + 8 + 296..]);
    // After the last entry has moved, it is an ordinary directory.
    again.end_epoch().unwrap();
    let sealed = again.seal(keyring().vault()).unwrap();
    let ended = open(3, &sealed.value);
    assert_eq!(sealed.value.len(), v["root"].len());
    assert_eq!(sealed.value[9..81], v["moving"][81 + 8 + 296 + 8..]);
    let keys = DirectoryKeys::of(keyring().vault(), &ended).unwrap();
    assert!(keys.open(&tag("moved_tag"), &v["moved"]).is_ok());
    assert!(keys.open(&tag("stays_tag"), &v["stays"]).is_err());
}

#[test]
fn a_directory_with_two_keys_opens_with_both_of_them_and_no_others() {
    let v = vectors();
    let moving = &v["moving"];
    let fails = |value: &[u8]| Node::open(&keyring(), 3, &record(value)).is_err();
    assert!(!fails(moving));
    let end = moving.len() - 80;
    let [old, new] = [&moving[9..81], &moving[end + 8..]];
    let put = |at: usize, bytes: &[u8]| {
        let mut other = moving.clone();
        other[at..at + bytes.len()].copy_from_slice(bytes);
        other
    };
    // The keys exchanged; one of them twice; another node's; without the new one, or longer.
    let exchanged = [&moving[..9], new, &moving[81..end + 8], old].concat();
    assert!(fails(&exchanged));
    assert!(fails(&put(end + 8, old)));
    assert!(fails(&put(9, &v["root"][9..81])));
    assert!(fails(&put(end + 8, &v["root"][9..81])));
    assert!(fails(&put(end, &2u64.to_le_bytes())));
    assert!(fails(&moving[..end]) && fails(&[&moving[..], &[0]].concat()));
    // A node that has no use for a second key.
    let root = [&v["root"][..], &moving[end..]].concat();
    assert!(Node::open(&keyring(), ROOT, &record(&root)).is_err());
    // Entries of one epoch under the key of the other.
    let keys = DirectoryKeys::of(keyring().vault(), &open(3, moving)).unwrap();
    for (name, epoch) in [("stays", 2u32), ("moved", 1)] {
        let tag = v[&format!("{name}_tag")[..]][..].try_into().unwrap();
        let mut other = v[name].clone();
        other[..4].copy_from_slice(&epoch.to_le_bytes());
        assert!(keys.open(&tag, &v[name]).is_ok());
        assert!(keys.open(&tag, &other).is_err());
    }
}

#[test]
fn contents_are_pinned() {
    let v = vectors();
    let record = record(&v["version"]);
    let version = Version::open(&keyring(), FILE, 4, &record).unwrap();
    assert_eq!((version.length(), version.chunks()), (TEXT.len() as u64, 1));
    assert_eq!(v["version"].len(), 72 + 8 + (24 + 12 + 16));
    assert_eq!(v["chunk"].len(), 24 + 256 + 16);
    let content = whole(&version, &record, &[v["chunk"].clone()]).unwrap();
    assert_eq!(content, TEXT);
}

#[test]
fn the_state_and_the_sums_in_it_are_pinned() {
    let v = vectors();
    let vault = keyring().vault();
    let keys = SystemKeys::of(&open(SYSTEM, &v["system"]));
    let state = keys.open(vault, &v["state"]).unwrap();
    assert_eq!(v["state"].len(), 24 + 256 + 16);
    let mut recount = State::empty(3);
    for (id, name) in [(SYSTEM, "system"), (ROOT, "root"), (FILE, "file")] {
        recount.count(&keys.node(id, &record(&v[name])), true);
    }
    recount.count(&keys.version(FILE, 4, &record(&v["version"])), true);
    assert!(state.agrees_with(&recount));
    (recount.commit, recount.keyring) = (9, 1);
    assert_eq!(state, recount);
    assert_eq!(keys.seal(vault, &state).unwrap().len(), v["state"].len());
}

#[test]
fn a_state_whose_sums_are_being_made_anew_is_pinned() {
    let v = vectors();
    let vault = keyring().vault();
    let system = open(SYSTEM, &v["summing_system"]);
    assert_eq!((system.revision, system.is_under(1)), (2, false));
    let keys = SystemKeys::of(&system);
    let state = keys.open(vault, &v["summing_state"]).unwrap();
    assert_eq!(v["summing_state"].len(), v["state"].len());
    let mut recount = state.uncounted();
    let elements = || {
        let node = |(id, name): (u64, &str)| keys.node(id, &record(&v[name]));
        let nodes = [(SYSTEM, "summing_system"), (ROOT, "root"), (FILE, "file")].map(node);
        let version = keys.version(FILE, 4, &record(&v["version"]));
        nodes.into_iter().chain([version])
    };
    elements().for_each(|element| recount.count(&element, true));
    assert_eq!(state, recount);
    assert_eq!(state.renewed_upto(), Some(KeyedId::Node(ROOT)));
    // Everything is counted under both keys, beside a write meanwhile: here the version.
    let counted = |elements: &mut dyn Iterator<Item = Element>| {
        let mut counted = state.uncounted();
        counted.begin_counting();
        elements.for_each(|element| counted.count(&element, true));
        counted
    };
    let mut now = state.uncounted();
    for (at, element) in elements().enumerate() {
        if at == 3 {
            assert!(!now.is_counting());
            now.begin_counting();
        }
        now.count(&element, true);
    }
    let nodes = counted(&mut elements().take(3));
    assert!(state.clone().end_renewal(&nodes, false).is_err());
    let mut ended = now.clone();
    ended.end_renewal(&nodes, false).unwrap();
    let mut node = system.clone();
    node.previous = None;
    let new = SystemKeys::of(&node);
    let mut expected = State::empty(3);
    (expected.commit, expected.keyring) = (10, 1);
    for (id, name) in [(SYSTEM, "summing_system"), (ROOT, "root"), (FILE, "file")] {
        expected.count(&new.node(id, &record(&v[name])), true);
    }
    expected.count(&new.version(FILE, 4, &record(&v["version"])), true);
    assert_eq!(ended, expected);
    // A record that was not counted before is not approved, except by order.
    let mut inserted = now.clone();
    let fewer = counted(&mut elements().skip(1).take(2));
    assert!(inserted.clone().end_renewal(&fewer, false).is_err());
    inserted.end_renewal(&fewer, true).unwrap();
    assert!(!inserted.agrees_with(&expected));
    // A state and a system node that do not belong together.
    let of_one = SystemKeys::of(&open(SYSTEM, &v["system"]));
    assert!(of_one.open(vault, &v["summing_state"]).is_err());
    assert!(keys.open(vault, &v["state"]).is_err());
    let sealed = new.seal(vault, &state).unwrap();
    assert!(keys.open(vault, &sealed).is_ok() && new.open(vault, &sealed).is_err());
    let sealed = new.seal(vault, &ended).unwrap();
    assert!(new.open(vault, &sealed).is_ok() && keys.open(vault, &sealed).is_err());
}

// ---------------------------------------------------------------------------------------------
// Wrong contexts

/// The same keys in another vault, whose keyring matches its header.
fn foreign_vault() -> Keyring {
    let v = vectors();
    let mut header = v["header"].clone();
    header[14] ^= 1;
    let mut keyring: Vec<u8> = v["keyring"].clone();
    let length = usize::try_from(u64::from_le_bytes(keyring[..8].try_into().unwrap())).unwrap();
    let mut body: KeyringBody = codec::decode(&keyring[8..8 + length], "body").unwrap();
    let master = crate::crypto::schedule::MasterKey(SecretKey::from_slice(&[7; 32]).unwrap());
    let vault = Header::decode(&header).unwrap().vault();
    body.generations[0].check = master.check_value(&header, vault, 1);
    let body = codec::encode(&body);
    let mac = crate::crypto::schedule::KeyringMacKey::derive(&master).mac(&header, &body);
    let digest = |parts: &[&[u8]]| crate::crypto::schedule::digest(parts);
    let checksum = digest(&[
        b"secretfs keyring checksum       ",
        &digest(&[&header]),
        &digest(&[&body]),
        &digest(&[&1u64.to_le_bytes(), &mac]),
    ]);
    keyring = codec::encode(&(body, vec![(1u64, mac)], checksum));
    unlocked(&header, &keyring, [7; 32]).unwrap()
}

#[test]
fn another_master_key_is_told_apart_and_opens_nothing() {
    let v = vectors();
    let error = unlocked(&v["header"], &v["keyring"], [8; 32]).unwrap_err();
    assert!(error.contains("wrong key"), "{error}");
}

#[test]
fn every_bit_of_header_and_keyring_counts() {
    let v = vectors();
    for (name, other) in [("header", "keyring"), ("keyring", "header")] {
        for bit in 0..v[name].len() * 8 {
            let mut forged = v[name].clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            let (header, keyring) = match name {
                "header" => (&forged, &v[other]),
                _ => (&v[other], &forged),
            };
            assert!(unlocked(header, keyring, [7; 32]).is_err(), "{name} {bit}");
        }
    }
}

#[test]
fn a_node_opens_in_its_own_place_only() {
    let v = vectors();
    let file = &v["file"];
    let fails = |id, record: &Record| Node::open(&keyring(), id, record).is_err();
    assert!(!fails(FILE, &record(file)));
    for id in [SYSTEM, ROOT, 3, FILE | 1 << 40] {
        assert!(fails(id, &record(file)), "node {id}");
    }
    for generation in [0, 2] {
        let value = file.clone();
        assert!(fails(FILE, &Record { generation, value }));
    }
    for kind in (0..=255).filter(|kind| *kind != 1) {
        let mut other = file.clone();
        other[0] = kind;
        assert!(fails(FILE, &record(&other)), "kind {kind}");
    }
    for revision in [0u64, 4, 6] {
        let mut other = file.clone();
        other[1..9].copy_from_slice(&revision.to_le_bytes());
        assert!(fails(FILE, &record(&other)), "revision {revision}");
    }
    // The wrapped key of another node with these attributes, and the reverse.
    let mixed = [&file[..9], &v["root"][9..81], &file[81..]].concat();
    assert!(fails(FILE, &record(&mixed)));
    // The key of a content, of the same length, in the place of the metadata key.
    let mixed = [&file[..9], &v["version"][..72], &file[81..]].concat();
    assert!(fails(FILE, &record(&mixed)));
    for other in [&file[..file.len() - 1], &[&file[..], b"\0"].concat(), b""] {
        assert!(fails(FILE, &record(other)));
    }
    assert!(Node::open(&foreign_vault(), FILE, &record(file)).is_err());
}

#[test]
fn an_entry_opens_in_its_own_place_only() {
    let v = vectors();
    let vault = keyring().vault();
    let root = open(ROOT, &v["root"]);
    let keys = DirectoryKeys::of(vault, &root).unwrap();
    let tag = keys.tag(b"password").unwrap();
    assert!(
        keys.open(&keys.tag(b"passwore").unwrap(), &v["entry"])
            .is_err()
    );
    for epoch in [0u32, 2] {
        let mut other = v["entry"].clone();
        other[..4].copy_from_slice(&epoch.to_le_bytes());
        assert!(keys.open(&tag, &other).is_err(), "epoch {epoch}");
        // Even if the directory has reached that epoch.
        let mut directory = root.clone();
        directory.directory_mut().unwrap().epoch = epoch;
        let keys = DirectoryKeys::of(vault, &directory).unwrap();
        assert!(keys.open(&tag, &other).is_err(), "epoch {epoch}");
    }
    // Under another directory's key, and under the same key in another directory or vault.
    let mut directory = root.clone();
    directory.id = 3;
    let elsewhere = DirectoryKeys::of(vault, &directory).unwrap();
    assert!(elsewhere.open(&tag, &v["entry"]).is_err());
    let elsewhere = DirectoryKeys::of(foreign_vault().vault(), &root).unwrap();
    assert!(elsewhere.open(&tag, &v["entry"]).is_err());
    let other = Node::create(&keyring(), 3, Kind::Directory, root.attributes.clone()).unwrap();
    let elsewhere = DirectoryKeys::of(vault, &other).unwrap();
    assert!(elsewhere.open(&tag, &v["entry"]).is_err());
    assert_ne!(elsewhere.tag(b"password").unwrap(), tag);
}

#[test]
fn a_version_opens_in_its_own_place_only() {
    let v = vectors();
    let version = &v["version"];
    let fails =
        |node, number, record: &Record| Version::open(&keyring(), node, number, record).is_err();
    assert!(!fails(FILE, 4, &record(version)));
    assert!(fails(3, 4, &record(version)));
    assert!(fails(FILE, 3, &record(version)));
    assert!(fails(FILE, 5, &record(version)));
    let value = version.clone();
    assert!(fails(
        FILE,
        4,
        &Record {
            generation: 2,
            value
        }
    ));
    let mixed = [&v["file"][9..81], &version[72..]].concat();
    assert!(fails(FILE, 4, &record(&mixed)));
    assert!(Version::open(&foreign_vault(), FILE, 4, &record(version)).is_err());
}

#[test]
fn a_chunk_opens_in_its_own_place_only() {
    let keyring = keyring();
    let text: Vec<u8> = (0..3 * content::CHUNK).map(|at| at as u8).collect();
    let (record, chunks) = content::seal(&keyring, FILE, 1, &[&text]).unwrap();
    assert_eq!(chunks.len(), 3);
    let (_, others) = content::seal(&keyring, FILE, 2, &[&text]).unwrap();
    let reads = |chunks: &[Vec<u8>]| {
        let version = Version::open(&keyring, FILE, 1, &record).unwrap();
        whole(&version, &record, chunks)
    };
    assert_eq!(reads(&chunks).unwrap(), text);
    let with = |at: usize, chunk: &Vec<u8>| {
        let mut changed = chunks.clone();
        changed[at].clone_from(chunk);
        changed
    };
    // Another index, last in the place of another, another version's, fewer.
    assert!(reads(&with(0, &chunks[1])).is_err());
    assert!(reads(&with(1, &chunks[2])).is_err());
    assert!(reads(&with(2, &chunks[1])).is_err());
    assert!(reads(&with(1, &others[1])).is_err());
    assert!(reads(&chunks[..2]).is_err());
    // A length that was cut off: the extent is another version's.
    let (short, _) = content::seal(&keyring, FILE, 1, &[&text[..100]]).unwrap();
    let cut = Record {
        generation: 1,
        value: [&record.value[..72], &short.value[72..]].concat(),
    };
    assert!(Version::open(&keyring, FILE, 1, &cut).is_err());
    // The same under another generation's wrap: contents do not depend on it.
    assert!(Version::open(&foreign_vault(), FILE, 1, &record).is_err());
}

#[test]
fn a_content_that_lies_in_several_places_is_sealed_as_one() {
    let keyring = keyring();
    let text: Vec<u8> = (0..3 * content::CHUNK + 1000).map(|at| at as u8).collect();
    for ends in [
        &[
            0,
            0,
            1,
            content::CHUNK - 1,
            content::CHUNK + 1,
            2 * content::CHUNK,
        ][..],
        &[content::CHUNK, 3 * content::CHUNK],
        &[3 * content::CHUNK + 999],
        &[],
    ] {
        let mut parts = Vec::new();
        let mut start = 0;
        for end in ends.iter().copied().chain([text.len()]) {
            parts.push(&text[start..end]);
            start = end;
        }
        let (record, chunks) = content::seal(&keyring, FILE, 1, &parts).unwrap();
        let version = Version::open(&keyring, FILE, 1, &record).unwrap();
        let whole = whole(&version, &record, &chunks).unwrap();
        assert!(whole == text, "{ends:?}");
    }
}

#[test]
fn the_state_opens_in_its_own_vault_only() {
    let v = vectors();
    let vault = keyring().vault();
    let keys = SystemKeys::of(&open(SYSTEM, &v["system"]));
    assert!(keys.open(foreign_vault().vault(), &v["state"]).is_err());
    let of_root = SystemKeys::of(&open(ROOT, &v["root"]));
    assert!(of_root.open(vault, &v["state"]).is_err());
    for bit in 0..v["state"].len() * 8 {
        let mut forged = v["state"].clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        assert!(keys.open(vault, &forged).is_err(), "bit {bit}");
    }
    // A record at another place, of another kind, generation or number is another element.
    let state = keys.open(vault, &v["state"]).unwrap();
    for (id, generation) in [(3, 1), (FILE, 2)] {
        let mut moved = state.clone();
        moved.count(&keys.node(FILE, &record(&v["file"])), false);
        let value = v["file"].clone();
        moved.count(&keys.node(id, &Record { generation, value }), true);
        assert!(!moved.agrees_with(&state));
    }
}
