//! An attacker writes the database.

use std::os::unix::fs::symlink;

use proptest::prelude::*;

use super::*;

/// Opens the vault in both modes; both must fail with this message, and change nothing.
fn refused(vault: &Vault, expected: StoreErrorKind) {
    let before = vault.snapshot();
    assert_eq!(kind(vault.open_once_free(Holder::current(None))), expected);
    assert_eq!(kind(vault.open(Mode::ReadOnly)), expected);
    assert_eq!(vault.snapshot(), before);
}

#[test]
fn a_planted_trigger_is_refused() {
    let vault = Vault::filled();
    vault.tamper("CREATE TRIGGER t AFTER INSERT ON node BEGIN DELETE FROM keyring; END");
    refused(&vault, StoreErrorKind::Corrupt);
}

#[test]
fn a_planted_view_is_refused() {
    let vault = Vault::filled();
    vault.tamper("ALTER TABLE node RENAME TO n; CREATE VIEW node AS SELECT * FROM n");
    refused(&vault, StoreErrorKind::Corrupt);
}

#[test]
fn a_planted_table_is_refused() {
    let vault = Vault::filled();
    vault.tamper("CREATE TABLE more (x)");
    refused(&vault, StoreErrorKind::Corrupt);
}

#[test]
fn a_planted_index_is_refused() {
    let vault = Vault::filled();
    vault.tamper("CREATE INDEX i ON version (generation)");
    refused(&vault, StoreErrorKind::Corrupt);
}

#[test]
fn a_changed_table_is_refused() {
    let vault = Vault::filled();
    vault.tamper("ALTER TABLE node ADD COLUMN more INTEGER");
    refused(&vault, StoreErrorKind::Corrupt);
    let vault = Vault::filled();
    vault.tamper("DROP TABLE event");
    refused(&vault, StoreErrorKind::Corrupt);
}

#[test]
fn two_tables_on_the_same_pages_are_refused() {
    let vault = Vault::filled();
    vault.tamper(
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = \
         (SELECT rootpage FROM sqlite_schema WHERE name = 'header') WHERE name = 'keyring'",
    );
    refused(&vault, StoreErrorKind::Corrupt);
}

#[test]
fn another_layout_or_another_program_is_refused() {
    let vault = Vault::filled();
    vault.tamper("PRAGMA user_version = 2");
    refused(&vault, StoreErrorKind::Corrupt);
    let vault = Vault::filled();
    vault.tamper("PRAGMA application_id = 7");
    refused(&vault, StoreErrorKind::NotAVault);
    let vault = Vault::filled();
    vault.tamper("PRAGMA journal_mode = DELETE");
    refused(&vault, StoreErrorKind::Corrupt);
}

#[test]
fn what_is_no_database_is_no_vault() {
    let vault = Vault::new();
    for content in [&b""[..], b"hello", &[0; 8192], b"SQLite format 3\0"] {
        fs::write(vault.file("vault.db"), content).unwrap();
        refused(&vault, StoreErrorKind::NotAVault);
    }
    fs::remove_file(vault.file("vault.db")).unwrap();
    refused(&vault, StoreErrorKind::NotAVault);
    let nothing = SqliteStore::open(
        &vault.file("nothing"),
        Mode::ReadOnly,
        OpenOptions::default(),
    );
    assert_eq!(kind(nothing), StoreErrorKind::NotAVault);
}

#[test]
fn a_symlink_in_place_of_a_file_is_refused() {
    for name in ["vault.db", "vault.db-wal", "vault.db-shm"] {
        let vault = Vault::filled();
        let other = Vault::filled();
        let _ = fs::remove_file(vault.file(name));
        symlink(other.file("vault.db"), vault.file(name)).unwrap();
        let before = other.snapshot();
        refused(&vault, StoreErrorKind::NotAVault);
        assert_eq!(other.snapshot(), before);
    }
    let vault = Vault::filled();
    fs::remove_file(vault.file("lock")).unwrap();
    let victim = vault.directory.with_extension("victim");
    symlink(&victim, vault.file("lock")).unwrap();
    assert!(vault.open(Mode::Write(Holder::current(None))).is_err());
    assert!(!victim.exists());
}

#[test]
fn a_planted_rollback_journal_is_not_played_back() {
    let vault = Vault::filled();
    fs::write(
        vault.file("vault.db-journal"),
        [0xd9, 0xd5, 0x05, 0xf9, 0x20, 0xa1, 0x63, 0xd7],
    )
    .unwrap();
    refused(&vault, StoreErrorKind::Corrupt);
}

#[test]
fn a_forged_first_chunk_shows_and_deletes_nothing_of_others() {
    let vault = Vault::filled();
    // Version 1 has row 1, version 2 has rows 2 to 4.
    vault.tamper("UPDATE version SET first_chunk = 2 WHERE version = 1");
    let store = vault.writer();
    assert_eq!(
        kind(get(&store, |tx| tx.version_and_first_chunk(2, 1))),
        StoreErrorKind::Corrupt
    );
    assert_eq!(
        kind(get(&store, |tx| tx.chunk((2, 1, 0)))),
        StoreErrorKind::Corrupt
    );
    put(&store, |tx| tx.delete_version(2, 1)).unwrap();
    get(&store, |tx| {
        assert_eq!(tx.chunk((2, 2, 2))?.unwrap(), vec![2; 10]);
        // The version's own chunk is left over, for a check to find.
        assert_eq!(
            tx.salvage().unwrap().scan_chunk_keys(None, 10)?.0,
            [(2, 1, 0), (2, 2, 0), (2, 2, 1), (2, 2, 2)]
        );
        Ok(())
    })
    .unwrap();
}

#[test]
fn forged_first_chunks_out_of_range_are_harmless() {
    for forged in ["-1", "9223372036854775807", "4611686018427387903", "77"] {
        let vault = Vault::filled();
        vault.tamper(&format!(
            "UPDATE version SET first_chunk = {forged} WHERE version = 2"
        ));
        let store = vault.writer();
        assert!(get(&store, |tx| tx.version_and_first_chunk(2, 2)).is_err());
        assert_ne!(
            get(&store, |tx| tx.chunk((2, 2, 1))).ok().flatten(),
            Some(vec![1; 65_576])
        );
        put(&store, |tx| tx.delete_version(2, 2)).unwrap();
        assert_eq!(
            get(&store, |tx| tx.salvage().unwrap().scan_chunk_keys(None, 10))
                .unwrap()
                .0
                .len(),
            4
        );
    }
}

#[test]
fn chunks_that_changed_places_are_noticed() {
    let vault = Vault::filled();
    vault.tamper(
        "UPDATE chunk SET id = 100 WHERE id = 2; UPDATE chunk SET id = 2 WHERE id = 3; \
         UPDATE chunk SET id = 3 WHERE id = 100",
    );
    let store = vault.writer();
    assert_eq!(
        kind(get(&store, |tx| tx.chunk((2, 2, 0)))),
        StoreErrorKind::Corrupt
    );
    assert_eq!(
        kind(get(&store, |tx| tx.chunk((2, 2, 1)))),
        StoreErrorKind::Corrupt
    );
}

#[test]
fn ids_out_of_range_are_corrupt_wherever_they_stand() {
    for (sql, scan) in [
        ("UPDATE node SET id = -5 WHERE id = 1", 0),
        ("UPDATE node SET id = 4611686018427387904 WHERE id = 2", 0),
        ("UPDATE node SET generation = -1 WHERE id = 2", 0),
        ("UPDATE version SET node = -1 WHERE version = 1", 1),
        ("UPDATE version SET version = -1 WHERE version = 1", 1),
        ("UPDATE entry SET directory = -1", 2),
        ("UPDATE entry SET tag = x'00'", 2),
        ("UPDATE entry SET tag = x''", 2),
        ("UPDATE chunk SET id = -1 WHERE id = 1", 3),
        ("UPDATE chunk SET idx = 4294967296 WHERE id = 1", 3),
        ("UPDATE orphan SET id = -1", 4),
    ] {
        let vault = Vault::filled();
        vault.tamper(sql);
        let store = vault.writer();
        let scanned = get(&store, |tx| match scan {
            0 => tx.scan_nodes(None, 100).map(drop),
            1 => tx.scan_versions(None, 100).map(drop),
            2 => tx.scan_entries(None, 100).map(drop),
            3 => tx.salvage().unwrap().scan_chunk_keys(None, 100).map(drop),
            _ => tx.orphans(None, 100).map(drop),
        });
        assert_eq!(kind(scanned), StoreErrorKind::Corrupt, "{sql}");
    }
}

#[test]
fn used_up_chunk_numbers_are_noticed() {
    for id in ["4611686018427387903", "9223372036854775807"] {
        let vault = Vault::filled();
        vault.tamper(&format!("UPDATE chunk SET id = {id} WHERE id = 4"));
        let inserted = put(&vault.writer(), |tx| {
            tx.insert_version(3, 1, &record(1, b""), &mut chunks(&[1]))
        });
        assert_eq!(kind(inserted), StoreErrorKind::Corrupt);
    }
}

#[test]
fn oversize_values_are_not_handed_out() {
    let vault = Vault::filled();
    vault.tamper(
        "UPDATE chunk SET sealed = zeroblob(70000) WHERE id = 1; \
         UPDATE node SET value = zeroblob(3000000) WHERE id = 2; \
         UPDATE header SET value = zeroblob(5000)",
    );
    let store = vault.writer();
    assert_eq!(
        kind(get(&store, |tx| tx.version_and_first_chunk(2, 1))),
        StoreErrorKind::Corrupt
    );
    assert_eq!(kind(get(&store, |tx| tx.node(2))), StoreErrorKind::Corrupt);
    assert_eq!(kind(get(&store, |tx| tx.header())), StoreErrorKind::Corrupt);
    // The same connection serves records that are not damaged.
    assert_eq!(
        get(&store, |tx| tx.node(1)).unwrap().unwrap(),
        record(1, b"root")
    );
}

#[test]
fn a_schema_changed_under_an_open_vault_stops_the_writer() {
    let vault = Vault::filled();
    let store = vault.writer();
    get(&store, |tx| tx.keyring()).unwrap();
    vault.tamper("CREATE TRIGGER t AFTER INSERT ON node BEGIN DELETE FROM keyring; END");
    assert_eq!(
        kind(put(&store, |tx| tx.put_node(9, &record(1, b"")))),
        StoreErrorKind::Corrupt
    );
    assert_eq!(get(&store, |tx| tx.keyring()).unwrap().unwrap(), b"keyring");
}

/// Uses a vault in every way; only errors are fine.
fn use_everything(directory: &Path) {
    let mode = Mode::Write(Holder::current(None));
    let Ok(store) = SqliteStore::open(directory, mode, OpenOptions::default()) else {
        return;
    };
    let _ = get(&store, |tx| {
        let _ = (
            tx.header(),
            tx.keyring(),
            tx.state(),
            tx.node(1),
            tx.node(2),
        );
        let _ = (
            tx.entry(1, &tag(7)),
            tx.entries(1, None, 100),
            tx.versions_of(2),
        );
        let _ = (
            tx.version_and_first_chunk(2, 1),
            tx.version_and_first_chunk(2, 2),
        );
        let _ = (
            tx.chunk((2, 2, 0)),
            tx.chunk((2, 2, 1)),
            tx.chunk((2, 2, 2)),
        );
        let _ = (
            tx.orphans(None, 100),
            tx.events(0, 100),
            tx.scan_nodes(None, 100),
        );
        let _ = (tx.scan_versions(None, 100), tx.scan_entries(None, 100));
        tx.salvage().unwrap().scan_chunk_keys(None, 100)
    });
    let _ = put(&store, |tx| {
        tx.insert_version(2, 9, &record(1, b"x"), &mut chunks(&[5000, 5000]))?;
        tx.put_node(2, &record(2, b"y"))
    });
    let _ = put(&store, |tx| tx.delete_version(2, 2));
    let _ = put(&store, |tx| tx.put_keyring(&[3; 9000]));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn random_damage_is_an_error_and_never_a_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24),
        // The beginnings of pages hold the structure.
        heads in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..64, any::<u8>()), 0..8),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let vault = Vault::filled();
        let mut bytes = fs::read(vault.file("vault.db")).unwrap();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        for (page, offset, byte) in heads {
            let place = page.index(bytes.len() / 4096) * 4096 + offset;
            bytes[place] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(vault.file("vault.db"), bytes).unwrap();
        use_everything(&vault.directory);
    }

    #[test]
    fn random_bytes_as_wal_are_never_a_panic(wal in prop::collection::vec(any::<u8>(), 0..20_000)) {
        let vault = Vault::filled();
        fs::write(vault.file("vault.db-wal"), wal).unwrap();
        use_everything(&vault.directory);
    }
}
