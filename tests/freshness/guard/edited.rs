//! Edited records and files of a vault.

use std::fs;
use std::path::Path;

use super::{all_of, command, filled, refused, unmount, write_secret};
use crate::support::evil::{
    Record, blob, copy, edit_page, execute, footprint, root_page, set_blob,
};
use crate::support::process::Place;

/// Only `check` and whoever uses the record find it.
#[track_caller]
fn found_by_mount_and_check(place: &Place) {
    let before = footprint(&all_of(place));
    command(place, "mount", &[], &[]).failed(6, "");
    command(place, "check", &[], &[]).failed(6, "");
    assert!(!place.is_mounted());
    assert_eq!(footprint(&all_of(place)), before, "something was changed");
}

#[test]
fn an_edited_header_is_code_6_with_and_without_a_new_checksum() {
    let place = filled();
    let header = blob(&place, "SELECT value FROM header");
    assert_eq!(header.len(), 30);
    for at in [0, 8, 14, 29] {
        let mut edited = header.clone();
        edited[at] ^= 1;
        set_blob(&place, "UPDATE header SET value = ?1", &edited);
        refused(&place, 6, "");
        if at == 14 || at == 29 {
            let record = Record::of(&place);
            record.store(&place);
            refused(&place, 6, "");
            set_blob(&place, "UPDATE header SET value = ?1", &header);
            Record::of(&place).store(&place);
        }
    }
    set_blob(&place, "UPDATE header SET value = ?1", &header);
    place.mount(&[]).succeeded();
}

#[test]
fn a_header_with_a_new_checksum_is_code_6_even_on_a_host_that_has_no_anchor() {
    let place = filled();
    fs::remove_dir_all(place.path().join("anchors")).expect("removed");
    let mut header = blob(&place, "SELECT value FROM header");
    // The format, which readers of this version may read on from.
    header[8] ^= 2;
    set_blob(&place, "UPDATE header SET value = ?1", &header);
    Record::of(&place).store(&place);
    refused(&place, 6, "");
}

#[test]
fn an_edited_keyring_is_code_6_with_and_without_a_new_checksum() {
    let place = filled();
    let stored = blob(&place, "SELECT value FROM keyring");
    for at in (0..stored.len()).step_by(stored.len() / 12) {
        let mut edited = stored.clone();
        edited[at] ^= 0x10;
        set_blob(&place, "UPDATE keyring SET value = ?1", &edited);
        refused(&place, 6, "");
    }
    set_blob(
        &place,
        "UPDATE keyring SET value = ?1",
        &stored[..stored.len() - 1],
    );
    refused(&place, 6, "");
    set_blob(&place, "UPDATE keyring SET value = ?1", &stored);

    type Edit = fn(&mut secretfs::keyring::KeyringBody);
    let edits: [(&str, Edit); 7] = [
        ("sequence", |body| body.sequence += 1),
        ("no generation", |body| body.generations.clear()),
        ("generation's number", |body| body.generations[0].number = 2),
        ("check value", |body| body.generations[0].check[0] ^= 1),
        ("date", |body| body.generations[0].created += 1),
        ("history", |body| body.history.length = 0),
        ("wrap's name", |body| {
            body.generations[0].wraps[0].key_id.push('x');
        }),
    ];
    for anchored in [true, false] {
        if !anchored {
            fs::remove_dir_all(place.path().join("anchors")).expect("removed");
        }
        for (what, edit) in &edits {
            let mut record = Record::of(&place);
            record.edit(edit);
            record.store(&place);
            println!("{what}, anchored: {anchored}");
            if *what == "generation's number" && !anchored {
                // The generation is part of what the KMS was told: it refuses first.
                refused(&place, 4, "");
            } else {
                refused(&place, 6, "");
            }
            set_blob(&place, "UPDATE keyring SET value = ?1", &stored);
        }
        // A MAC less, a MAC altered.
        let mut record = Record::of(&place);
        *record.macs.last_mut().expect("a MAC") ^= 1;
        record.store(&place);
        refused(&place, 6, "");
        record.macs = vec![0; 8];
        record.store(&place);
        refused(&place, 6, "");
        set_blob(&place, "UPDATE keyring SET value = ?1", &stored);
    }
    place.mount(&[]).succeeded();
}

#[test]
fn an_edited_wrap_on_an_anchored_host_is_code_6_and_asks_no_key() {
    let place = filled();
    let mut record = Record::of(&place);
    record.edit(|body| {
        *body.generations[0].wraps[0]
            .blob
            .last_mut()
            .expect("a blob") ^= 1
    });
    record.store(&place);
    refused(&place, 6, "is not the one that this host has seen");
}

#[test]
fn an_edited_missing_or_foreign_state_record_is_code_6() {
    let (place, other) = (filled(), filled());
    let state = blob(&place, "SELECT value FROM state");
    for at in [0, state.len() / 2, state.len() - 1] {
        let mut edited = state.clone();
        edited[at] ^= 1;
        set_blob(&place, "UPDATE state SET value = ?1", &edited);
        refused(&place, 6, "the state record");
    }
    let foreign = blob(&other, "SELECT value FROM state");
    set_blob(&place, "UPDATE state SET value = ?1", &foreign);
    refused(&place, 6, "the state record");
    execute(&place, "DELETE FROM state");
    refused(&place, 6, "the state record is missing");
    for table in ["keyring", "header"] {
        execute(&place, &format!("DELETE FROM {table}"));
        refused(&place, 6, "is missing");
    }
}

#[test]
fn the_keyring_of_another_vault_is_code_6() {
    let (place, other) = (filled(), filled());
    let keyring = blob(&other, "SELECT value FROM keyring");
    set_blob(&place, "UPDATE keyring SET value = ?1", &keyring);
    refused(&place, 6, "");
    // With the checksum for this header.
    Record::of(&place).store(&place);
    refused(&place, 6, "");
    // With its own header, on a host where both keys are at hand and neither vault is known.
    let header = blob(&other, "SELECT value FROM header");
    set_blob(&place, "UPDATE header SET value = ?1", &header);
    set_blob(&place, "UPDATE keyring SET value = ?1", &keyring);
    refused(&place, 6, "this host last saw vault");
    fs::remove_dir_all(place.path().join("anchors")).expect("removed");
    fs::remove_dir_all(place.path().join("kms")).expect("removed");
    copy(&other.path().join("kms"), &place.path().join("kms"));
    refused(&place, 6, "");
}

#[test]
fn removed_replayed_and_inserted_records_are_code_6() {
    type Attack = fn(&Place, &Path);
    let attacks: [(&str, Attack); 7] = [
        ("node removed", |p, _| {
            execute(p, "DELETE FROM node WHERE id = (SELECT max(id) FROM node)")
        }),
        ("version removed", |p, _| {
            execute(
                p,
                "DELETE FROM version WHERE node = (SELECT max(node) FROM version)",
            )
        }),
        ("entry removed", |p, _| {
            execute(
                p,
                "DELETE FROM entry WHERE tag = (SELECT min(tag) FROM entry)",
            )
        }),
        ("entry moved", |p, _| {
            execute(
                p,
                "UPDATE entry SET directory = 1 WHERE tag = (SELECT max(tag) FROM entry WHERE directory != 1)",
            )
        }),
        ("node inserted", |p, _| {
            execute(
                p,
                "INSERT INTO node SELECT max(id) + 1, generation, value FROM node",
            )
        }),
        ("event removed", |p, _| execute(p, "DELETE FROM event")),
        ("nodes replayed", |p, old| {
            execute(
                p,
                &format!(
                    "ATTACH '{}' AS old; UPDATE node SET value = (SELECT value FROM old.node o WHERE o.id = node.id) WHERE id = 1",
                    old.display()
                ),
            );
        }),
    ];
    for (what, attack) in attacks {
        println!("{what}");
        let place = filled();
        let old = place.path().join("old.db");
        fs::copy(place.vault().join("vault.db"), &old).expect("copied");
        write_secret(&place, &[], "newer");
        attack(&place, &old);
        found_by_mount_and_check(&place);
    }
}

#[test]
fn a_planted_table_trigger_view_or_index_is_code_6() {
    for plant in [
        "CREATE TABLE planted (x)",
        "CREATE TRIGGER planted AFTER UPDATE ON node BEGIN DELETE FROM event; END",
        "CREATE VIEW planted AS SELECT * FROM node",
        "CREATE INDEX planted ON node (generation)",
        "ALTER TABLE orphan RENAME TO planted",
        "ALTER TABLE orphan ADD COLUMN planted INTEGER",
        "DROP TABLE event",
        "PRAGMA user_version = 2",
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'node') WHERE name = 'event'",
    ] {
        println!("{plant}");
        let place = filled();
        execute(&place, plant);
        refused(&place, 6, "");
    }
}

#[test]
fn a_falsified_tree_is_code_6() {
    for (table, falsify) in [
        // One cell fewer hides a record; cells in another order hide it from look-ups.
        ("node", fewer_cells as fn(&mut [u8])),
        ("node", swapped_cells),
        ("version", fewer_cells),
        ("version", swapped_cells),
        ("entry", fewer_cells),
        ("entry", swapped_cells),
        ("event", fewer_cells),
        ("node", |page| page[0] = 0xff),
        ("version", |page| page.fill(0)),
    ] {
        let place = filled();
        edit_page(&place, leaf_of(&place, table), falsify);
        println!("{table}");
        found_by_mount_and_check(&place);
    }
}

/// A leaf of the table's tree: its root, or a child of that.
fn leaf_of(place: &Place, table: &str) -> u64 {
    let mut page = root_page(place, table);
    loop {
        let mut child = None;
        edit_page(place, page, |bytes| {
            if matches!(bytes[0], 2 | 5) {
                child = Some(u32::from_be_bytes(
                    bytes[8..12].try_into().expect("four bytes"),
                ));
            }
        });
        match child {
            Some(next) => page = next.into(),
            None => return page,
        }
    }
}

fn fewer_cells(page: &mut [u8]) {
    let cells = u16::from_be_bytes([page[3], page[4]]);
    page[3..5].copy_from_slice(&(cells - 1).to_be_bytes());
}

fn swapped_cells(page: &mut [u8]) {
    assert!(u16::from_be_bytes([page[3], page[4]]) >= 2);
    let first = [page[8], page[9]];
    page.copy_within(10..12, 8);
    page[10..12].copy_from_slice(&first);
}

#[test]
fn an_odd_database_file_is_refused_in_one_line() {
    let place = filled();
    let db = place.vault().join("vault.db");
    let keep = place.path().join("keep.db");
    fs::rename(&db, &keep).expect("moved");
    let system = crate::support::process::system;
    refused(&place, 3, "there is no vault here");
    fs::write(&db, "").expect("written");
    refused(&place, 3, "empty");
    fs::write(&db, vec![0x55; 10_000]).expect("written");
    refused(&place, 3, "no vault's database");
    fs::remove_file(&db).expect("removed");
    execute(&place, "CREATE TABLE foreign_program (x)");
    refused(&place, 3, "no vault of secretfs");
    fs::remove_file(&db).expect("removed");
    fs::File::create(&db)
        .expect("made")
        .set_len(1 << 40)
        .expect("sparse");
    command(&place, "mount", &[], &[]).failed(3, "");
    command(&place, "check", &[], &[]).failed(3, "");
    fs::remove_file(&db).expect("removed");
    std::os::unix::fs::symlink(&keep, &db).expect("linked");
    refused(&place, 3, "symlink");
    fs::remove_file(&db).expect("removed");
    fs::create_dir(&db).expect("made");
    refused(&place, 3, "special file");
    fs::remove_dir(&db).expect("removed");
    system("mkfifo", &[db.as_os_str()]);
    command(&place, "mount", &[], &[]).failed(3, "special file");
    command(&place, "init", &[], &[]).failed(8, "");
    fs::remove_file(&db).expect("removed");
    // Cut in half, as by a copy that was broken off.
    let bytes = fs::read(&keep).expect("read");
    fs::write(&db, &bytes[..bytes.len() / 2]).expect("written");
    refused(&place, 6, "");
    fs::rename(&keep, &db).expect("moved back");
    fs::write(place.vault().join("vault.db-journal"), "x").expect("written");
    refused(&place, 6, "vault.db-journal");
    fs::remove_file(place.vault().join("vault.db-journal")).expect("removed");
    place.mount(&[]).succeeded();
}

#[test]
fn an_odd_lock_file_stops_writers_in_one_line_or_not_at_all() {
    let place = filled();
    let lock = place.vault().join("lock");
    fs::remove_file(&lock).expect("removed");
    place.mount(&[]).succeeded();
    unmount(&place);
    fs::write(&lock, "\u{1b}[2J {\"pid\": -1}").expect("written");
    place.mount(&[]).succeeded();
    unmount(&place);
    fs::remove_file(&lock).expect("removed");
    fs::create_dir(&lock).expect("made");
    command(&place, "mount", &[], &[]).failed(1, "lock");
    fs::remove_dir(&lock).expect("removed");
    std::os::unix::fs::symlink("/dev/null", &lock).expect("linked");
    command(&place, "mount", &[], &[]).failed(1, "lock");
    fs::remove_file(&lock).expect("removed");
    crate::support::process::system("mkfifo", &[lock.as_os_str()]);
    command(&place, "mount", &[], &[]).failed(1, "no regular file");
    command(&place, "mount", &[], &["-oro"]).succeeded();
    command(&place, "status", &[], &[]).succeeded();
    unmount(&place);
    fs::remove_file(&lock).expect("removed");
    place.mount(&[]).succeeded();
    // While it is held, too, nobody waits for the other end of a pipe.
    fs::remove_file(&lock).expect("removed");
    crate::support::process::system("mkfifo", &[lock.as_os_str()]);
    unmount(&place);
}
