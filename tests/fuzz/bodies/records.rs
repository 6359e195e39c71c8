//! Entries, versions, chunks, the state, and events.

use secretfs::codec;
use secretfs::crypto::padding::padded_content;
use secretfs::crypto::schedule::{
    Context, EntryKey, MetadataKey, NameTagKey, StateKey, VersionKey,
};
use secretfs::keyring::History;
use secretfs::vault::{CHUNK, Node, ROOT, SYSTEM, Version, decode};

use super::split;
use super::world::{FILE, VERSION, WRAPPED, keyed, world};

pub(super) fn run(input: &[u8]) {
    match split(input, 12) {
        Some((0, record)) => entry(&world().root, ("tag", "entry"), record),
        Some((1, plain)) => entry_inside(plain),
        Some((2, record)) => version(record),
        Some((3, plain)) => version_inside(plain),
        Some((4, sealed)) => chunk(sealed),
        Some((5, sealed)) => state((&world().system, "state"), sealed),
        Some((6, plain)) => {
            let key = world().metadata_key(SYSTEM, "system");
            state_inside(&world().system, &key, plain);
        }
        Some((7, bytes)) => event(bytes),
        Some((8, record)) => entry(&world().moving, ("moved_tag", "moved"), record),
        Some((9, record)) => entry(&world().moving, ("stays_tag", "stays"), record),
        Some((10, sealed)) => state((&world().summing, "summing_state"), sealed),
        Some((11, plain)) => {
            let key = world().new_key(SYSTEM, "summing_system");
            state_inside(&world().summing, &key, plain);
        }
        _ => {}
    }
}

/// Nothing but the genuine record opens where it is filed.
fn entry(directory: &Node, (tag, name): (&str, &str), record: &[u8]) {
    let world = world();
    let tag = world.vectors[tag][..].try_into().expect("a tag");
    let opened = decode::entry(&world.keyring, directory, &tag, record);
    assert_eq!(opened.is_ok(), record == world.vectors[name]);
}

fn entry_inside(plain: &[u8]) {
    let world = world();
    let key = world.metadata_key(ROOT, "root");
    // Node, kind, length, name: filed where the name belongs, if there is one.
    let length = plain.get(9).map_or(0, |length| usize::from(*length));
    let name = plain.get(10..10 + length).unwrap_or_default();
    let tag = NameTagKey::derive(&key).tag(name);
    let epoch = 1u32;
    let context = Context::Entry {
        directory: ROOT,
        tag: &tag,
        epoch,
    };
    let sealed = EntryKey::derive(&key)
        .seal(world.keyring.vault(), context, plain)
        .expect("sealed");
    let mut record = epoch.to_le_bytes().to_vec();
    record.extend((sealed.len() as u64).to_le_bytes());
    record.extend(sealed);
    if let Ok(entry) = decode::entry(&world.keyring, &world.root, &tag, &record) {
        assert_eq!((&entry.name[..], entry.tag), (name, tag));
        assert!(!entry.name.contains(&b'/') && !entry.name.contains(&0));
    }
}

fn genuine_version() -> Version {
    let world = world();
    let record = keyed(1, &world.vectors["version"]);
    decode::version(&world.keyring, FILE, VERSION, &record).expect("the version of the vectors")
}

fn version(record: &[u8]) {
    let world = world();
    let opened = decode::version(&world.keyring, FILE, VERSION, &keyed(1, record));
    assert_eq!(opened.is_ok(), record == world.vectors["version"]);
}

fn version_inside(plain: &[u8]) {
    let world = world();
    let context = Context::Version {
        node: FILE,
        version: VERSION,
    };
    let sealed = VersionKey::derive(&world.content_key())
        .seal(world.keyring.vault(), context, plain)
        .expect("sealed");
    let mut record = world.vectors["version"][..WRAPPED].to_vec();
    record.extend((sealed.len() as u64).to_le_bytes());
    record.extend(sealed);
    if let Ok(version) = decode::version(&world.keyring, FILE, VERSION, &keyed(1, &record)) {
        let chunks = padded_content(version.length()).div_ceil(CHUNK as u64);
        assert_eq!(u64::from(version.chunks()), chunks);
        for index in [0, version.chunks().saturating_sub(1), u32::MAX] {
            assert!(decode::chunk(&version, index, &plain[..plain.len().min(8)]).is_err());
        }
    }
}

fn chunk(sealed: &[u8]) {
    let opened = decode::chunk(&genuine_version(), 0, sealed);
    assert_eq!(opened.is_ok(), sealed == world().vectors["chunk"]);
}

fn state((system, name): (&Node, &str), sealed: &[u8]) {
    let world = world();
    let opened = decode::state(&world.keyring, system, sealed);
    assert_eq!(opened.is_ok(), sealed == world.vectors[name]);
}

fn state_inside(system: &Node, key: &MetadataKey, plain: &[u8]) {
    let world = world();
    let sealed = StateKey::derive(key)
        .seal(world.keyring.vault(), Context::State, plain)
        .expect("sealed");
    if let Ok(state) = decode::state(&world.keyring, system, &sealed) {
        assert!(plain.starts_with(&codec::encode(&state)));
    }
}

fn event(bytes: &[u8]) {
    let mut history = History::default();
    if let Ok(event) = history.next(1, bytes) {
        if let Some(event) = event.known() {
            assert_eq!(codec::encode(event), bytes);
        }
        let _ = format!("{event:?}");
        let head = &world().keyring.body().history;
        let genuine = bytes == world().vectors["event"];
        assert_eq!(history.must_end_at(head).is_ok(), genuine);
    }
}
