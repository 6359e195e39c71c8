//! What `backup` and `restore` refuse: one line, a documented code, and nothing changed.

use std::ffi::OsStr;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rusqlite::Connection;
use secretfs::error::Class;
use secretfs::vault;

use crate::kit::{backup, elsewhere, nothing_is_left, run, unmount, with_secrets};
use crate::support::aws::World;
use crate::support::evil::footprint;
use crate::support::keys::local_kms;
use crate::support::kms_proxy::Answer;
use crate::support::process::{Place, detach, system};

/// The program, not followed: everything below the place, but for what the host keeps.
fn all(place: &Place) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(place.path()).expect("listed");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let kept: Vec<_> = paths.filter(|path| !path.ends_with("anchors")).collect();
    footprint(&kept).into_iter().collect()
}

#[test]
fn nothing_that_is_there_is_replaced_and_nothing_else_is_touched() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    let dir = place.path();
    fs::write(dir.join("file"), "mine").expect("written");
    fs::create_dir(dir.join("empty")).expect("made");
    fs::create_dir(dir.join("closed")).expect("made");
    symlink(dir.join("nowhere"), dir.join("dangling")).expect("linked");
    let before = all(&place);
    for (command, from) in [("backup", place.vault()), ("restore", made.clone())] {
        let refused = |to: &Path, code, part: &str| {
            run(&place, command, &from, to).failed(code, part);
        };
        for there in ["file", "empty", "dangling", "v", "backup"] {
            refused(&dir.join(there), 8, "already");
        }
        refused(&from.join("inside"), 2, "inside of");
        refused(dir, 8, "already");
        refused(&dir.join("no/parent"), 1, "make it first");
        refused(&dir.join("file/under"), 1, "file");
        refused(&dir.join(".."), 2, "does not exist yet");
        refused(Path::new("/"), 2, "does not exist yet");
        refused(Path::new(""), 2, "");
        refused(&dir.join("n".repeat(300)), 1, "too long");
        refused(Path::new("/proc/copy"), 1, "/proc");
        let nothing = dir.join("nothing");
        run(&place, command, &nothing, &dir.join("new")).failed(3, "nothing");
        run(&place, command, &dir.join("empty"), &dir.join("new")).failed(3, "empty");
        run(&place, command, &dir.join("file"), &dir.join("new")).failed(3, "file");
        run(&place, command, Path::new(""), &dir.join("new")).failed(2, "");
    }
    assert_eq!(all(&place), before);
}

#[test]
fn a_mount_is_no_vault_and_no_place_for_one() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    let dir = place.path();
    place.mount(&[]).succeeded();
    let point = place.point();
    for (command, from) in [("backup", place.vault()), ("restore", made.clone())] {
        run(&place, command, &from, &point.join("new")).failed(2, "the mount of a vault");
        run(&place, command, &from, &point.join("db/new")).failed(2, "the mount of a vault");
        run(&place, command, &point, &dir.join("new")).failed(3, "where a vault is mounted");
    }
    // A vault that somebody writes is no backup.
    run(&place, "restore", &place.vault(), &dir.join("new")).failed(7, "a vault in use");
    // This host could refuse the vault in use once it has gone back with another.
    run(&place, "restore", &made, &dir.join("new")).failed(7, "unmount it first");
    // Nor is the path of one free that was only moved away.
    fs::rename(place.vault(), dir.join("moved")).expect("moved");
    run(&place, "restore", &made, &place.vault()).failed(7, "still mounted");
    fs::rename(dir.join("moved"), place.vault()).expect("moved back");
    unmount(&place);
    assert!(!dir.join("new").exists());
    nothing_is_left(&place);
    let vault = place.vault();
    place.run(["check".as_ref(), vault.as_os_str()]).succeeded();
}

#[test]
fn what_is_not_in_the_database_yet_makes_a_copy_no_backup() {
    let place = with_secrets();
    let copied = place.path().join("copied");
    let server = place.serve(&[]);
    fs::write(place.point().join("later"), "later").expect("written");
    crate::support::evil::copy(&place.vault(), &copied);
    let _ = fs::remove_file(copied.join("control.sock"));
    detach(&place.point());
    drop(server);
    run(&place, "restore", &copied, &place.path().join("new")).failed(3, "vault.db-wal");
}

/// A small file system of its own.
struct Small(PathBuf);

impl Small {
    fn new(place: &Place, name: &str, options: &str) -> Self {
        let at = place.path().join(name);
        fs::create_dir(&at).expect("made");
        let args = ["-t", "tmpfs", "-o", options, "small"].map(AsRef::<OsStr>::as_ref);
        system("mount", &[&args[..], &[at.as_os_str()]].concat());
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

#[test]
fn a_disk_that_is_full_read_only_or_unsafe_is_told_and_nothing_is_left_there() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    let below = place.path().join("below");
    fs::create_dir(&below).expect("made");
    let full = Small::new(&place, "full", "size=400k");
    let read_only = Small::new(&place, "read only", "size=8m,ro");
    let bound = place.path().join("bound");
    fs::create_dir(&bound).expect("made");
    system("bindfs", &[below.as_os_str(), bound.as_os_str()]);
    let _bound = Small(bound.clone());
    for (command, from) in [("backup", place.vault()), ("restore", made)] {
        let said = run(&place, command, &from, &full.0.join("new")).failed(1, "free some space");
        println!("{}", said.stderr());
        assert_eq!(fs::read_dir(&full.0).expect("listed").count(), 0);
        run(&place, command, &from, &read_only.0.join("new")).failed(1, "Read-only");
        run(&place, command, &from, &bound.join("new")).failed(1, "-o unsafe-filesystem");
        assert_eq!(fs::read_dir(&below).expect("listed").count(), 0);
        let new = bound.join("new");
        let args = [command.as_ref(), from.as_os_str(), new.as_os_str()];
        let accepted = ["-o".as_ref(), "unsafe-filesystem".as_ref()];
        place.run(args.into_iter().chain(accepted)).succeeded();
        fs::remove_dir_all(&new).expect("removed");
        assert_eq!(fs::read_dir(&below).expect("listed").count(), 0);
    }
    nothing_is_left(&place);
}

/// Whoever can exchange a directory on the way to a copy could have another vault be written, or named.
#[test]
fn a_place_where_others_could_exchange_a_directory_is_none_for_a_copy() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    let (outer, inner) = (place.path().join("outer"), place.path().join("outer/inner"));
    fs::create_dir_all(&inner).expect("made");
    let to = inner.join("new");
    for (command, from) in [("backup", place.vault()), ("restore", made)] {
        for directory in [&outer, &inner] {
            let set = |owner, mode| {
                std::os::unix::fs::chown(directory, Some(owner), None).expect("given");
                let mode = fs::Permissions::from_mode(mode);
                fs::set_permissions(directory, mode).expect("set");
            };
            for (owner, mode, why) in [
                (0, 0o777, "all users can write there"),
                (65534, 0o755, "user 65534 owns it"),
                (65534, 0o1777, "user 65534 owns it"),
            ] {
                set(owner, mode);
                let said = run(&place, command, &from, &to).failed(1, why);
                let named = format!("{} is in reach", directory.display());
                assert!(said.stderr().contains(&named), "{}", said.stderr());
                assert_eq!(fs::read_dir(&inner).expect("listed").count(), 0);
            }
            // As it is in /tmp.
            set(0, 0o1777);
            run(&place, command, &from, &to).succeeded();
            fs::remove_dir_all(&to).expect("removed");
            set(0, 0o755);
        }
    }
}

#[test]
fn a_key_that_is_disabled_or_a_kms_that_is_away_is_told_by_its_code() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    let kms = local_kms(&place);
    kms.set_enabled("default", false).expect("disabled");
    let new = place.path().join("new");
    run(&place, "backup", &place.vault(), &new).failed(4, "disabled");
    run(&place, "restore", &made, &new).failed(4, "disabled");
    assert!(!new.exists());
    nothing_is_left(&place);

    let world = World::with_vault(1);
    let dir = world.place.path();
    let to = |name: &str| dir.join(name).display().to_string();
    let said = world
        .run("backup", &[&to("backup")], "")
        .succeeded()
        .stdout();
    assert!(said.contains(&world.keys[0]), "{said}");
    world.proxy.set(Answer::Reset);
    let patience = ["--kms-timeout", "1"];
    let new = to("new");
    world
        .run("backup", &[&[new.as_str()][..], &patience].concat(), "")
        .failed(5, &world.keys[0]);
    fs::rename(world.place.vault(), dir.join("lost")).expect("lost");
    fs::rename(dir.join("backup"), world.place.vault()).expect("in its place");
    world
        .run("restore", &[&[new.as_str()][..], &patience].concat(), "")
        .failed(5, &world.keys[0]);
    assert!(!Path::new(&new).exists());
    nothing_is_left(&world.place);
}

#[test]
fn a_backup_of_a_later_format_is_refused_as_a_vault_of_one_is() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    let new = place.path().join("new");
    let database = Connection::open(made.join("vault.db")).expect("a database");
    database
        .execute_batch("PRAGMA user_version = 2; PRAGMA wal_checkpoint(TRUNCATE)")
        .expect("set");
    drop(database);
    let _ = fs::remove_file(made.join("vault.db-wal"));
    run(&place, "restore", &made, &new).failed(6, "newer secretfs");
    assert!(!new.exists());
}

/// Flips a bit of a column in each row of a table, and runs `each` on every one.
fn flipped(directory: &Path, table: &str, column: &str, mut each: impl FnMut(&str)) -> usize {
    let file = directory.join("vault.db");
    let whole = fs::read(&file).expect("read");
    let open = || Connection::open(&file).expect("a database");
    let rows: i64 = open()
        .query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
            row.get(0)
        })
        .expect("counted");
    for row in 0..rows {
        // Its beginning, its middle, and its end.
        for place in 0..3 {
            let database = open();
            let select = format!("SELECT {column} FROM {table} ORDER BY 1 LIMIT 1 OFFSET {row}");
            let before: Vec<u8> = database
                .query_row(&select, [], |row| row.get(0))
                .expect("a row");
            let mut after = before.clone();
            let at = place * (before.len() - 1) / 2;
            after[at] ^= 1 << (at % 8);
            let update = format!("UPDATE {table} SET {column} = ?1 WHERE {column} = ?2");
            assert_eq!(
                database
                    .execute(&update, (&after, &before))
                    .expect("changed"),
                1
            );
            database
                .execute_batch("PRAGMA wal_checkpoint(TRUNCATE)")
                .expect("moved");
            drop(database);
            each(&format!("{table} {row}, {column} flipped at {at}"));
            fs::write(&file, &whole).expect("put back");
        }
    }
    rows as usize
}

#[test]
fn a_flipped_bit_in_any_record_of_a_backup_is_found_before_anything_is_written() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    let to = place.path().join("new place");
    fs::create_dir(&to).expect("made");
    let host = elsewhere(&place, "host");
    let go_on = || ControlFlow::Continue(());
    let touched = || {
        fs::metadata(&to)
            .expect("there")
            .modified()
            .expect("a time")
    };
    let untouched = touched();
    let mut refused = |what: &str| {
        let error = vault::restore(&made, &to.join("new"), &host, &go_on);
        let error = error.expect_err(what);
        // A wrap that is damaged looks to KMS like that of another key.
        let found = matches!(
            error.class,
            Class::Integrity | Class::KeyDenied | Class::NotAVault
        );
        assert!(found, "{what}: {:?} {error}", error.class);
        assert_eq!(touched(), untouched, "{what}");
        // Nor is anything written where this host keeps what it has seen.
        assert!(!place.path().join("host").exists(), "{what}");
    };
    for (table, column, least) in [
        ("header", "value", 1),
        ("keyring", "value", 1),
        ("state", "value", 1),
        ("node", "value", 5),
        ("entry", "value", 4),
        ("entry", "tag", 4),
        ("version", "value", 2),
        ("chunk", "sealed", 6),
        ("event", "value", 1),
    ] {
        let rows = flipped(&made, table, column, &mut refused);
        assert!(rows >= least, "{table} has {rows} rows");
    }
    // As it was, it is one again.
    vault::restore(&made, &to.join("new"), &host, &go_on).expect("restored");
}

#[test]
fn a_damaged_vault_gives_no_backup() {
    let place = with_secrets();
    let new = place.path().join("new");
    let vault = place.vault();
    flipped(&vault, "chunk", "sealed", |what| {
        let said = run(&place, "backup", &vault, &new).failed(6, "no backup was made");
        assert!(
            said.stderr().contains("1 problem "),
            "{what}: {}",
            said.stderr()
        );
        assert!(!new.exists());
        nothing_is_left(&place);
    });
    run(&place, "backup", &vault, &new).succeeded();
}

#[test]
fn an_older_vault_than_was_seen_gives_no_backup() {
    let place = with_secrets();
    let kept = place.path().join("kept");
    crate::support::evil::copy(&place.vault(), &kept);
    crate::kit::go_on(&place, 3);
    run(&place, "backup", &kept, &place.path().join("new")).failed(6, "older");
    nothing_is_left(&place);
}

#[test]
fn what_an_earlier_run_left_is_cleared_and_what_none_has_made_is_named() {
    let place = with_secrets();
    let (vault, new) = (place.vault(), place.path().join("new"));
    let left = place.path().join(".new.secretfs-partial");
    fs::create_dir_all(left.join("copy")).expect("made");
    fs::write(left.join("copy/vault.db"), "half").expect("written");
    fs::write(left.join("copy/mine"), "mine").expect("written");
    run(&place, "backup", &vault, &new).failed(1, ".new.secretfs-partial");
    assert_eq!(fs::read(left.join("copy/mine")).expect("there"), b"mine");
    fs::remove_file(left.join("copy/mine")).expect("removed");
    fs::write(left.join("copy/vault.db"), "half").expect("written");
    // Nor is another user's directory used, where anybody can make one.
    std::os::unix::fs::chown(&left, Some(65534), None).expect("given away");
    run(&place, "backup", &vault, &new).failed(1, "another user");
    std::os::unix::fs::chown(&left, Some(0), None).expect("taken back");
    run(&place, "backup", &vault, &new).succeeded();
    nothing_is_left(&place);
    let mode = fs::metadata(&new).expect("there").permissions().mode();
    assert_eq!(mode & 0o7777, 0o700);
}
