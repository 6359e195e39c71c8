use super::*;

const VAULT: VaultId = VaultId(*b"0123456789abcdef");

fn master() -> MasterKey {
    MasterKey(SecretKey::from_slice(&[7; 32]).unwrap())
}

#[test]
fn no_two_purposes_share_a_key() {
    let metadata = MetadataKey(master().0);
    let content = ContentKey(master().0);
    let keys = [
        WrapKey::derive(&master()).0,
        KeyringMacKey::derive(&master()).0,
        AttributesKey::derive(&metadata).0,
        EntryKey::derive(&metadata).0,
        NameTagKey::derive(&metadata).0,
        SetKey::derive(&metadata).0,
        StateKey::derive(&metadata).0,
        VersionKey::derive(&content).0,
        ChunkKey::derive(&content).0,
        SecretKey::from_slice(&master().check_value(b"h", VAULT, 1)).unwrap(),
    ];
    for (i, a) in keys.iter().enumerate() {
        assert!(keys[i + 1..].iter().all(|b| a != b), "key {i}");
    }
}

#[test]
fn no_two_contexts_share_their_bytes() {
    let tag = [1; 32];
    let contexts = [
        Context::Key {
            node: 1,
            role: Role::Metadata,
            generation: 1,
        },
        Context::Key {
            node: 1,
            role: Role::Content { version: 0 },
            generation: 1,
        },
        Context::Key {
            node: 1,
            role: Role::Content { version: 1 },
            generation: 1,
        },
        Context::Key {
            node: 1,
            role: Role::Content { version: 1 },
            generation: 2,
        },
        Context::Attributes {
            node: 1,
            kind: 1,
            revision: 1,
        },
        Context::Attributes {
            node: 1,
            kind: 2,
            revision: 1,
        },
        Context::Attributes {
            node: 1,
            kind: 1,
            revision: 2,
        },
        Context::Entry {
            directory: 1,
            tag: &tag,
            epoch: 1,
        },
        Context::Entry {
            directory: 1,
            tag: &[2; 32],
            epoch: 1,
        },
        Context::Entry {
            directory: 1,
            tag: &tag,
            epoch: 2,
        },
        Context::Version {
            node: 1,
            version: 1,
        },
        Context::Version {
            node: 1,
            version: 2,
        },
        Context::Chunk {
            node: 1,
            version: 1,
            index: 0,
            last: false,
        },
        Context::Chunk {
            node: 1,
            version: 1,
            index: 0,
            last: true,
        },
        Context::Chunk {
            node: 1,
            version: 1,
            index: 1,
            last: true,
        },
        Context::State,
    ];
    for (i, a) in contexts.iter().enumerate() {
        assert_ne!(a.bytes(VAULT), a.bytes(VaultId([0; 16])));
        for b in &contexts[i + 1..] {
            assert_ne!(a.bytes(VAULT), b.bytes(VAULT));
        }
    }
}

#[test]
fn derivations_and_bindings_are_pinned() {
    // Computed with Python's hmac and hashlib from the definitions above.
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let metadata = MetadataKey(master().0);
    assert_eq!(
        hex(&NameTagKey::derive(&metadata).tag(b"password")),
        "d875ecec3562ea65fe40bd3137cb528af3ef247cf2131c1e649aaa4f12126837"
    );
    assert_eq!(
        hex(&master().check_value(b"header", VAULT, 3)),
        "0bd496059809abcde9f17d74a24c681904b56b2d74ec33639007cd8af6f41988"
    );
    assert_eq!(
        hex(&Context::Chunk {
            node: 2,
            version: 3,
            index: 4,
            last: true
        }
        .bytes(VAULT)),
        "0105303132333435363738396162636465660200000000000000030000000000000004000000\
         01"
    );
}
