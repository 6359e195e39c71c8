//! Node records.

use secretfs::codec;
use secretfs::crypto::schedule::{AttributesKey, Context};
use secretfs::vault::{SYSTEM, decode};

use super::split;
use super::world::{FILE, MOVING, keyed, world};

pub(super) fn run(input: &[u8]) {
    match split(input, 7) {
        Some((0, record)) => outside((FILE, "file"), 1, record),
        Some((1, [generation, record @ ..])) => {
            outside((FILE, "file"), u64::from(*generation), record);
        }
        Some((2, [kind, plain @ ..])) => inside(*kind, plain, (false, false)),
        Some((3, [kind, plain @ ..])) => inside(*kind, plain, (true, false)),
        Some((4, record)) => outside((MOVING, "moving"), 1, record),
        Some((5, [kind, plain @ ..])) => inside(*kind, plain, (true, true)),
        Some((6, record)) => outside((SYSTEM, "summing_system"), 1, record),
        _ => {}
    }
}

/// Nothing but the genuine record opens.
fn outside((id, name): (u64, &str), generation: u64, record: &[u8]) {
    let world = world();
    let opened = decode::node(&world.keyring, id, &keyed(generation, record));
    let genuine = generation == 1 && record == world.vectors[name];
    assert_eq!(opened.is_ok(), genuine);
}

/// Attributes that somebody with the key has sealed, in a record with one key or with two.
fn inside(kind: u8, plain: &[u8], (padded, two_keys): (bool, bool)) {
    let world = world();
    let mut plain = plain.to_vec();
    if padded {
        plain.resize(plain.len().next_multiple_of(256).max(256), 0);
    }
    let revision = 5u64;
    let (node, name, key) = match two_keys {
        false => (FILE, "file", world.metadata_key(FILE, "file")),
        true => (MOVING, "moving", world.new_key(MOVING, "moving")),
    };
    let context = Context::Attributes {
        node,
        kind,
        revision,
    };
    let sealed = AttributesKey::derive(&key)
        .seal(world.keyring.vault(), context, &plain)
        .expect("sealed");
    let mut record = vec![kind];
    record.extend(revision.to_le_bytes());
    record.extend(world.wrapped(name));
    record.extend((sealed.len() as u64).to_le_bytes());
    record.extend(sealed);
    if two_keys {
        record.extend(1u64.to_le_bytes());
        record.extend(world.wrapped_new(name));
    }
    if let Ok(opened) = decode::node(&world.keyring, node, &keyed(1, &record)) {
        // There is one encoding of everything.
        let encoded = codec::encode(&opened.attributes);
        assert!(plain.starts_with(&encoded));
        assert!(plain[encoded.len()..].iter().all(|byte| *byte == 0));
        assert_eq!(opened.kind as u8, kind);
        let directory = opened.directory().ok();
        let moving = directory.is_some_and(|body| body.remainder.is_some());
        assert_eq!(moving, two_keys);
        opened.visible_links();
    }
}
