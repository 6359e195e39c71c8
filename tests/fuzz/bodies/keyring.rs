//! The header and the keyring record.

use secretfs::codec;
use secretfs::crypto::schedule::{KeyringMacKey, VaultId, digest};
use secretfs::keyring::{GenerationState, Header, KeyringBody, UnverifiedKeyring};

use super::split;
use super::world::{master, unlock, world};

pub(super) fn run(input: &[u8]) {
    match split(input, 5) {
        Some((0, bytes)) => header(bytes),
        Some((1, record)) => outside(record),
        Some((2, body)) => with_checksum(body),
        Some((3, body)) => with_all(body),
        Some((4, record)) => beside_any_header(record),
        _ => {}
    }
}

fn header(bytes: &[u8]) {
    let genuine = &world().vectors["header"];
    if let Ok(header) = Header::decode(bytes) {
        assert_eq!(codec::encode(&header), bytes);
        let _ = header.must_be_readable();
    }
    let parsed = UnverifiedKeyring::parse(bytes, &world().vectors["keyring"]);
    assert_eq!(parsed.is_ok(), bytes == genuine);
}

/// Nothing but the genuine record opens.
fn outside(record: &[u8]) {
    let vectors = &world().vectors;
    let opened = UnverifiedKeyring::parse(&vectors["header"], record).and_then(unlock);
    assert_eq!(opened.is_ok(), record == vectors["keyring"]);
}

fn checksum(header: &[u8], body: &[u8], macs: &[(u64, [u8; 32])]) -> [u8; 32] {
    let mut parts = vec![
        *b"secretfs keyring checksum       ",
        digest(&[header]),
        digest(&[body]),
    ];
    for (generation, mac) in macs {
        parts.push(digest(&[&generation.to_le_bytes(), mac]));
    }
    digest(&parts.iter().map(|part| &part[..]).collect::<Vec<_>>())
}

fn record(header: &[u8], body: &[u8], macs: Vec<(u64, [u8; 32])>) -> Vec<u8> {
    let sum = checksum(header, body, &macs);
    codec::encode(&(body.to_vec(), macs, sum))
}

/// A body that somebody without a key has written.
fn with_checksum(body: &[u8]) {
    let vectors = &world().vectors;
    let header = &vectors["header"];
    let macs = vec![(1, digest(&[body])), (2, digest(&[header]))];
    let unverified = UnverifiedKeyring::parse(header, &record(header, body, macs));
    if let Ok(unverified) = unverified {
        unverified.claimed_uris();
        unverified.sequence();
        let error = unlock(unverified).expect_err("no MAC was right");
        let told = error.to_string();
        assert!(
            !told.contains(char::is_control) && told.len() < 4096,
            "{told:?}"
        );
    }
}

/// A body that somebody with the master key has written.
fn with_all(body: &[u8]) {
    let header = &world().vectors["header"];
    let Ok(mut decoded) = codec::decode::<KeyringBody>(body, "body") else {
        return;
    };
    assert_eq!(codec::encode(&decoded), body);
    let vault: VaultId = world().keyring.vault();
    for generation in &mut decoded.generations {
        generation.check = master().check_value(header, vault, generation.number);
    }
    let body = codec::encode(&decoded);
    let mac = KeyringMacKey::derive(&master()).mac(header, &body);
    let active = decoded
        .generations
        .iter()
        .find(|generation| generation.state == GenerationState::Active);
    let macs = vec![(active.map_or(0, |generation| generation.number), mac)];
    let Ok(unverified) = UnverifiedKeyring::parse(header, &record(header, &body, macs)) else {
        return;
    };
    if let Ok(keyring) = unlock(unverified) {
        // What was accepted is stored again and accepted again.
        let again = UnverifiedKeyring::parse(header, &keyring.encode()).and_then(unlock);
        assert_eq!(again.expect("accepted").body(), keyring.body());
    }
}

/// A keyring behind 30 bytes of a header.
fn beside_any_header(bytes: &[u8]) {
    let (header, record) = bytes.split_at(bytes.len().min(30));
    let opened = UnverifiedKeyring::parse(header, record).and_then(unlock);
    let vectors = &world().vectors;
    let genuine = header == vectors["header"] && record == vectors["keyring"];
    assert_eq!(opened.is_ok(), genuine);
}
