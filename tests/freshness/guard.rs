//! Wrong keys, edited vaults, older vaults and other vaults: each is refused with its own exit
//! code, and nothing on disk is changed by the attempt.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::evil::{
    Record, blob, copy, edit_page, execute, footprint, root_page, set_blob,
};
use crate::support::keys::local_kms;
use crate::support::kms_proxy::{Answer, Proxy};
use crate::support::moto::Moto;
use crate::support::process::{Place, Ran};
use secretfs::keyring::Wrap;

/// A vault with a few secrets in it, unmounted.
fn filled() -> Place {
    let place = Place::with_vault();
    fill(&place);
    place
}

fn fill(place: &Place) {
    place.mount(&[]).succeeded();
    let point = place.point();
    fs::create_dir(point.join("db")).expect("made");
    for at in 0..20 {
        fs::write(point.join(format!("db/{at}")), format!("secret {at}")).expect("written");
    }
    fs::write(point.join("large"), vec![7; 200_000]).expect("written");
    unmount(place);
}

fn unmount(place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
}

fn write_secret(place: &Place, more: &[&str], text: &str) {
    place.mount(more).succeeded();
    fs::write(place.point().join("written"), text).expect("written");
    unmount(place);
}

fn all_of(place: &Place) -> Vec<PathBuf> {
    ["v", "anchors", "kms"]
        .map(|d| place.path().join(d))
        .to_vec()
}

fn command(place: &Place, name: &str, env: &[(String, String)], more: &[&str]) -> Ran {
    let mut command = place.command();
    command.envs(env.iter().map(|(k, v)| (k, v)));
    command.arg(name).arg(place.vault());
    if name == "mount" {
        command.arg(place.point());
    }
    Ran(command.args(more).output().expect("it runs"))
}

/// Every command that opens the vault ends with `code` in one line that holds `part`, mounts
/// nothing and changes nothing.
#[track_caller]
fn refused_with(place: &Place, env: &[(String, String)], more: &[&str], code: i32, part: &str) {
    let before = footprint(&all_of(place));
    command(place, "mount", env, more).failed(code, part);
    let mut read_only = more.to_vec();
    read_only.push("-oro");
    command(place, "mount", env, &read_only).failed(code, part);
    command(place, "status", env, more).failed(code, part);
    // Told in the report or in the line, depending on how far it got.
    let checked = command(place, "check", env, more);
    let said = checked.stdout() + &checked.stderr();
    assert!(said.contains(part), "{said:?} does not say {part:?}");
    checked.failed(code, "");
    assert!(!place.is_mounted());
    assert_eq!(footprint(&all_of(place)), before, "something was changed");
}

#[track_caller]
fn refused(place: &Place, code: i32, part: &str) {
    refused_with(place, &[], &[], code, part);
}

/// Only `check` and whoever uses the record find it.
#[track_caller]
fn found_by_mount_and_check(place: &Place) {
    let before = footprint(&all_of(place));
    command(place, "mount", &[], &[]).failed(6, "");
    command(place, "check", &[], &[]).failed(6, "");
    assert!(!place.is_mounted());
    assert_eq!(footprint(&all_of(place)), before, "something was changed");
}

// ---------------------------------------------------------------------------------------------
// Wrong keys

#[test]
fn another_local_key_of_the_same_name_is_code_4() {
    let place = filled();
    fs::rename(place.path().join("kms"), place.path().join("kms.right")).expect("moved");
    local_kms(&place).create("default").expect("another key");
    refused(&place, 4, "local-kms://default");
    // The right one still opens it.
    fs::remove_dir_all(place.path().join("kms")).expect("removed");
    fs::rename(place.path().join("kms.right"), place.path().join("kms")).expect("moved");
    place.mount(&[]).succeeded();
}

#[test]
fn the_key_of_another_vault_is_code_4() {
    let (place, other) = (filled(), Place::with_vault());
    fs::remove_dir_all(place.path().join("kms")).expect("removed");
    copy(&other.path().join("kms"), &place.path().join("kms"));
    refused(&place, 4, "local-kms://default");
}

#[test]
fn a_local_key_that_does_not_serve_is_code_4_and_told_by_its_state() {
    let place = filled();
    let kms = local_kms(&place);
    kms.set_enabled("default", false).expect("disabled");
    refused(&place, 4, "disabled");
    kms.set_enabled("default", true).expect("enabled");
    place.mount(&[]).succeeded();
    unmount(&place);
    let week = Duration::from_secs(7 * 86400);
    kms.schedule_deletion("default", week).expect("scheduled");
    refused(&place, 4, "deletion");
    kms.cancel_deletion("default").expect("cancelled");
    refused(&place, 4, "disabled");
    fs::remove_dir_all(place.path().join("kms")).expect("removed");
    refused(&place, 4, "there is no key local-kms://default");
}

#[test]
fn loose_modes_of_the_key_directory_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = filled();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    };
    let kms = place.path().join("kms");
    mode(&kms, 0o755);
    refused(&place, 1, "kms");
    mode(&kms, 0o700);
    let key = fs::read_dir(&kms)
        .expect("listed")
        .map(|e| e.expect("an entry").path())
        .find(|p| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("default"))
        })
        .expect("a key");
    mode(&key, 0o640);
    refused(&place, 1, "default");
    mode(&key, 0o600);
    place.mount(&[]).succeeded();
}

#[test]
fn a_wrong_aws_key_is_code_4() {
    let moto = Moto::start();
    let place = Place::new();
    let right = moto.create_key();
    moto.create_alias("app", &right);
    let env = moto.env();
    command(&place, "init", &env, &["--kms-key", "aws-kms://alias/app"]).succeeded();
    command(&place, "mount", &env, &[]).succeeded();
    unmount(&place);
    // The alias is moved to another key.
    let body = serde_json::json!({"AliasName": "alias/app", "TargetKeyId": moto.create_key()});
    moto.kms(crate::support::moto::REGION, "UpdateAlias", &body);
    refused_with(&place, &env, &[], 4, "alias/app");
}

// ---------------------------------------------------------------------------------------------
// Edited records

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

// ---------------------------------------------------------------------------------------------
// The database as a program and as a file

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

// ---------------------------------------------------------------------------------------------
// The anchor

#[test]
fn an_older_whole_vault_is_code_6_until_it_is_accepted_which_is_recorded() {
    let place = filled();
    let backup = place.path().join("backup");
    copy(&place.vault(), &backup);
    write_secret(&place, &[], "newer");
    fs::remove_dir_all(place.vault()).expect("removed");
    copy(&backup, &place.vault());
    refused(&place, 6, "--accept-rollback");

    // Reading alone cannot record it.
    let before = footprint(&all_of(&place));
    place
        .mount(&["--accept-rollback", "-o", "ro"])
        .failed(2, "without `ro`");
    let mut command = place.command();
    command
        .env("SECRETFS_ACCEPT_ROLLBACK", "true")
        .arg("mount")
        .arg(place.vault())
        .arg(place.point());
    Ran(command.output().expect("it runs")).failed(2, "SECRETFS_ACCEPT_ROLLBACK");
    assert_eq!(footprint(&all_of(&place)), before);

    place.mount(&["--accept-rollback"]).succeeded();
    assert!(!place.point().join("written").exists());
    assert_eq!(
        fs::read(place.point().join("db/3")).expect("read"),
        b"secret 3"
    );
    let recorded = |path: PathBuf| {
        let ran = place
            .run(["status".as_ref(), path.as_os_str(), "--json".as_ref()])
            .succeeded();
        let status: serde_json::Value = serde_json::from_str(&ran.stdout()).expect("JSON");
        assert_eq!(status["events"], 2, "{status}");
        let event = &status["last_event"];
        assert_eq!(event["event"], "rollback-accepted", "{status}");
        assert!(event["seen_commit"].as_u64() > event["accepted_commit"].as_u64());
        assert!(event["at"].as_i64() > Some(1_500_000_000));
        let ran = place.run(["status".as_ref(), path.as_os_str()]).succeeded();
        assert!(
            ran.stdout().contains("rollback-accepted"),
            "{}",
            ran.stdout()
        );
        assert!(ran.stdout().contains("at: 20"), "{}", ran.stdout());
    };
    recorded(place.point());
    unmount(&place);
    recorded(place.vault());
    let ran = self::command(&place, "check", &[], &["--json"]).succeeded();
    let report: serde_json::Value = serde_json::from_str(&ran.stdout()).expect("JSON");
    assert_eq!(
        (&report["events"], &report["problem_count"]),
        (&2.into(), &0.into())
    );

    // Afterwards all is as usual, and the backup is older once more.
    write_secret(&place, &[], "again");
    fs::remove_dir_all(place.vault()).expect("removed");
    copy(&backup, &place.vault());
    refused(&place, 6, "--accept-rollback");
}

#[test]
fn an_older_state_with_the_same_keyring_is_code_6() {
    let place = filled();
    let backup = place.path().join("backup");
    copy(&place.vault(), &backup);
    write_secret(&place, &[], "one");
    place.mount(&["-o", "ro"]).succeeded();
    unmount(&place);
    fs::remove_dir_all(place.vault()).expect("removed");
    copy(&backup, &place.vault());
    refused(&place, 6, "older than what this host has seen");
}

#[test]
fn another_vault_in_its_place_is_code_6_until_it_is_accepted() {
    let place = filled();
    let mine = place.path().join("mine");
    fs::rename(place.vault(), &mine).expect("moved");
    // Made on another host, so that this one knows nothing of it, but under a key it has.
    let mut command = place.command();
    command
        .env("SECRETFS_ANCHOR_DIR", place.path().join("elsewhere"))
        .arg("init")
        .arg(place.vault());
    Ran(command.output().expect("it runs")).succeeded();
    refused(&place, 6, "this host last saw vault");
    place.mount(&["--accept-rollback"]).succeeded();
    unmount(&place);
    place.mount(&[]).succeeded();
    unmount(&place);
    // The one that was there is known wherever it is.
    fs::rename(place.vault(), place.path().join("other")).expect("moved");
    fs::rename(&mine, place.vault()).expect("moved");
    refused(&place, 6, "this host last saw vault");
    place.mount(&["--accept-rollback"]).succeeded();
    assert!(place.point().join("db/3").exists());
}

#[test]
fn a_moved_vault_is_the_same_vault() {
    let place = filled();
    let moved = place.path().join("moved");
    fs::rename(place.vault(), &moved).expect("moved");
    place
        .run([
            "mount".as_ref(),
            moved.as_os_str(),
            place.point().as_os_str(),
        ])
        .succeeded();
}

#[test]
fn a_damaged_anchor_is_code_6_and_named() {
    let place = filled();
    let anchors = place.path().join("anchors");
    let anchor = fs::read_dir(&anchors)
        .expect("listed")
        .map(|e| e.expect("an entry").path())
        .find(|p| p.extension().is_some_and(|e| e == "json"))
        .expect("an anchor");
    let good = fs::read(&anchor).expect("read");
    for damage in [
        &b""[..],
        b"{}",
        &good[..good.len() - 1],
        &[good.clone(), vec![0; 1 << 20]].concat(),
    ] {
        fs::write(&anchor, damage).expect("written");
        refused(&place, 6, anchor.to_str().expect("UTF-8"));
    }
    fs::remove_file(&anchor).expect("removed");
    fs::create_dir(&anchor).expect("made");
    refused(&place, 1, anchor.to_str().expect("UTF-8"));
    fs::remove_dir(&anchor).expect("removed");
    fs::write(&anchor, good).expect("written");
    place.mount(&[]).succeeded();
}

#[test]
fn without_a_place_for_anchors_init_says_so_and_makes_nothing_and_a_mount_goes_on() {
    let place = Place::new();
    fs::write(place.path().join("anchors"), "a file").expect("written");
    command(&place, "init", &[], &[]).failed(1, "anchors");
    assert!(!place.vault().exists());
    fs::remove_file(place.path().join("anchors")).expect("removed");
    command(&place, "init", &[], &[]).succeeded();
    // Read-only, as in many containers.
    fs::create_dir_all(place.path().join("anchors")).expect("made");
    let script = r#"mount --bind "$PLACE/anchors" "$PLACE/anchors" && mount -o remount,bind,ro "$PLACE/anchors" && exec "$PROGRAM" mount "$PLACE/v" "$PLACE/m" -f --log-level warn"#;
    let mut unshare = crate::support::process::in_own_namespace(&place);
    unshare
        .args(["timeout", "-s", "TERM", "2", "sh", "-c", script])
        .env("PROGRAM", crate::support::process::PROGRAM);
    let ran = Ran(unshare.output().expect("it runs"));
    assert!(ran.stdout().contains("is mounted on"), "{}", ran.stderr());
}

#[test]
fn pins_given_as_options_hold() {
    let place = filled();
    let status = place
        .run([
            "status".as_ref(),
            place.vault().as_os_str(),
            "--json".as_ref(),
        ])
        .succeeded();
    let status: serde_json::Value = serde_json::from_str(&status.stdout()).expect("JSON");
    let id = status["vault"].as_str().expect("an id");
    let other = id.chars().rev().collect::<String>();
    refused_with(
        &place,
        &[],
        &["-o", &format!("vault-id={other}")],
        6,
        "was asked for",
    );
    refused_with(
        &place,
        &[],
        &["-o", "kms-key=local-kms://other"],
        6,
        "not pinned",
    );
    let pins = format!("vault-id={id},kms-key=local-kms://default,require-anchor");
    place.mount(&["-o", &pins]).succeeded();
    unmount(&place);
    fs::remove_dir_all(place.path().join("anchors")).expect("removed");
    refused_with(&place, &[], &["-o", "require-anchor"], 6, "require-anchor");
    place.mount(&[]).succeeded();
    unmount(&place);
    place.mount(&["-o", "require-anchor"]).succeeded();
}

#[test]
fn a_key_pinned_for_one_mount_does_not_make_the_host_forget_the_others() {
    let place = Place::new();
    let keys = ["--kms-key", "local-kms://a", "--kms-key", "local-kms://b"];
    let kms = local_kms(&place);
    command(&place, "init", &[], &keys).succeeded();
    command(&place, "mount", &[], &["-o", "kms-key=local-kms://b"]).succeeded();
    unmount(&place);
    kms.set_enabled("b", false).expect("disabled");
    command(&place, "mount", &[], &["-o", "kms-key=local-kms://b"]).failed(4, "local-kms://b");
    command(&place, "mount", &[], &[]).succeeded();
}

// ---------------------------------------------------------------------------------------------
// Keys that nobody pinned

fn attackers_wrap(uri: &str) -> Wrap {
    Wrap {
        uri: uri.to_owned(),
        key_id: uri.to_owned(),
        blob: vec![0xaa; 200],
        created: 1_700_000_000,
    }
}

const HERS: &str =
    "aws-kms://arn:aws:kms:eu-central-1:666666666666:key/1234abcd-12ab-34cd-56ef-1234567890ab";

#[test]
fn an_unpinned_key_in_the_keyring_is_never_asked() {
    let place = filled();
    let proxy = Proxy::always(Answer::Error(400, "AccessDeniedException", "asked"));
    let env = crate::support::moto::environment(place.path(), &proxy.url());
    let stored = blob(&place, "SELECT value FROM keyring");
    type Edit = fn(&mut secretfs::keyring::KeyringBody);
    let edits: [Edit; 4] = [
        |body| body.generations[0].wraps.insert(0, attackers_wrap(HERS)),
        |body| body.generations[0].wraps.push(attackers_wrap(HERS)),
        |body| body.generations[0].wraps = vec![attackers_wrap(HERS)],
        |body| body.generations[0].wraps[0].uri = HERS.to_owned(),
    ];
    for edit in edits {
        for sequence in [0, 1] {
            let mut record = Record::of(&place);
            record.edit(edit);
            record.edit(|body| body.sequence += sequence);
            record.store(&place);
            refused_with(&place, &env, &[], 6, "");
            // Nor on a host that never saw the vault, but was told which key it has.
            let anchors = place.path().join("anchors");
            fs::rename(&anchors, place.path().join("away")).expect("moved");
            refused_with(&place, &env, &["-o", "kms-key=local-kms://default"], 6, "");
            fs::rename(place.path().join("away"), &anchors).expect("moved");
            set_blob(&place, "UPDATE keyring SET value = ?1", &stored);
        }
    }
    assert_eq!(proxy.seen(), []);
    command(&place, "mount", &env, &[]).succeeded();
    fs::write(place.point().join("after"), "x").expect("written");
    assert_eq!(proxy.count(), 0);
}

#[test]
fn an_unpinned_local_key_is_not_read_either() {
    let place = filled();
    let kms = local_kms(&place);
    kms.create("hers").expect("a key");
    let mut record = Record::of(&place);
    record.edit(|body| {
        body.sequence += 1;
        body.generations[0].wraps[0].uri = "local-kms://hers".to_owned();
    });
    record.store(&place);
    refused(&place, 6, "not pinned on this host (local-kms://hers)");
}
