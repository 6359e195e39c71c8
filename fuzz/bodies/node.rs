//! Node records.

use secretfs::codec;
use secretfs::crypto::schedule::{AttributesKey, Context};
use secretfs::vault::decode;

use super::split;
use super::world::{FILE, keyed, world};

pub(super) fn run(input: &[u8]) {
    match split(input, 4) {
        Some((0, record)) => outside(1, record),
        Some((1, [generation, record @ ..])) => outside(u64::from(*generation), record),
        Some((2, [kind, plain @ ..])) => inside(*kind, plain, false),
        Some((3, [kind, plain @ ..])) => inside(*kind, plain, true),
        _ => {}
    }
}

/// Nothing but the genuine record opens.
fn outside(generation: u64, record: &[u8]) {
    let world = world();
    let opened = decode::node(&world.keyring, FILE, &keyed(generation, record));
    let genuine = generation == 1 && record == world.vectors["file"];
    assert_eq!(opened.is_ok(), genuine);
}

/// Attributes that somebody with the key has sealed.
fn inside(kind: u8, plain: &[u8], padded: bool) {
    let world = world();
    let mut plain = plain.to_vec();
    if padded {
        plain.resize(plain.len().next_multiple_of(256).max(256), 0);
    }
    let revision = 5u64;
    let context = Context::Attributes {
        node: FILE,
        kind,
        revision,
    };
    let sealed = AttributesKey::derive(&world.metadata_key(FILE, "file"))
        .seal(world.keyring.vault(), context, &plain)
        .expect("sealed");
    let mut record = vec![kind];
    record.extend(revision.to_le_bytes());
    record.extend(world.wrapped("file"));
    record.extend((sealed.len() as u64).to_le_bytes());
    record.extend(sealed);
    if let Ok(node) = decode::node(&world.keyring, FILE, &keyed(1, &record)) {
        // There is one encoding of everything.
        let encoded = codec::encode(&node.attributes);
        assert!(plain.starts_with(&encoded));
        assert!(plain[encoded.len()..].iter().all(|byte| *byte == 0));
        assert_eq!(node.kind as u8, kind);
        node.visible_links();
    }
}
