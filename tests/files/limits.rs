//! What is not promised, shown: each test is one limit as it is, so that nobody hopes for more, and
//! so that secretfs-security(7) changes when a limit does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::evil::{Record, blob, copy, database};
use crate::support::forge::{Copied, Hand, Legible};
use crate::support::memory::count_of;
use crate::support::process::{Place, Ran, Server, wait_for};
use rusqlite::Connection;
use secretfs::kms::KmsSettings;
use secretfs::kms::local::LocalKms;

const SOON: Duration = Duration::from_secs(20);

fn unmount(place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
}

fn number(place: &Place, query: &str) -> i64 {
    database(place)
        .query_row(query, [], |row| row.get(0))
        .expect("a number")
}

/// A place where these secrets were written, and unmounted.
fn with_secrets(secrets: &[(&str, &[u8])]) -> Place {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    for (name, text) in secrets {
        fs::write(place.point().join(name), text).expect("written");
    }
    unmount(&place);
    place
}

/// Mounts `vault` in the same place, with other anchors.
fn on_another_host(place: &Place, vault: &Path, more: &[&str]) -> Ran {
    let mut command = place.command();
    command
        .env("SECRETFS_ANCHOR_DIR", place.path().join("other anchors"))
        .arg("mount")
        .arg(vault)
        .arg(place.point())
        .args(more);
    Ran(command.output().expect("it runs"))
}

#[test]
fn what_a_program_makes_of_a_secret_is_its_own_affair() {
    let place = with_secrets(&[("password", b"s3cret-Tr0ub4dor")]);
    place.mount(&[]).succeeded();
    let copied = place.path().join("copy");
    fs::copy(place.point().join("password"), &copied).expect("copied");
    unmount(&place);
    assert_eq!(fs::read(copied).expect("read"), b"s3cret-Tr0ub4dor");
}

#[test]
fn numbers_sizes_kinds_and_keys_can_be_read_without_a_key() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let point = place.point();
    fs::create_dir(point.join("d")).expect("made");
    for (name, size) in [("d/a", 10), ("d/b", 300), ("d/c", 5000), ("e", 100_000)] {
        fs::write(point.join(name), vec![b'x'; size]).expect("written");
    }
    unmount(&place);
    // How many there are, and which share a directory: the root, the system's node and ours.
    assert_eq!(number(&place, "SELECT count(*) FROM node"), 7);
    let shared = "SELECT max(n) FROM (SELECT count(*) AS n FROM entry GROUP BY directory)";
    assert_eq!(number(&place, shared), 3);
    // Sizes as padded, with 40 bytes for each seal: not 10, 300, 5000 and 100,000.
    let mut sizes = database(&place);
    let transaction = sizes.transaction().expect("begun");
    let sealed: Vec<i64> = transaction
        .prepare("SELECT sum(length(sealed)) - 40 * count(*) FROM chunk GROUP BY node ORDER BY 1")
        .and_then(|mut rows| rows.query_map([], |row| row.get(0))?.collect())
        .expect("sizes");
    assert_eq!(sealed, [256, 304, 5120, 100_352]);
    // The order in which they were made, and which are directories.
    let kind = |id: i64| blob(&place, &format!("SELECT value FROM node WHERE id = {id}"))[0];
    let made = number(&place, "SELECT max(directory) FROM entry");
    assert_eq!(kind(1), kind(made));
    assert_ne!(kind(1), kind(made + 1));
    // The keys that wrap, and the history.
    let keyring = Record::of(&place).body;
    assert!(count_of(&keyring, b"local-kms://default") > 0);
    assert!(number(&place, "SELECT count(*) FROM event") > 0);
}

#[test]
fn a_whole_older_vault_is_mounted_by_a_host_that_has_not_seen_a_newer_one() {
    let place = with_secrets(&[("password", b"old")]);
    let older = place.path().join("older");
    copy(&place.vault(), &older);
    place.mount(&[]).succeeded();
    fs::write(place.point().join("password"), "new").expect("written");
    unmount(&place);
    on_another_host(&place, &older, &["-o", "require-anchor"]).failed(6, "require-anchor");
    on_another_host(&place, &older, &[]).succeeded();
    assert_eq!(
        fs::read(place.point().join("password")).expect("read"),
        b"old"
    );
    unmount(&place);
    // This one has.
    fs::rename(place.vault(), place.path().join("newer")).expect("moved");
    fs::rename(older, place.vault()).expect("moved");
    place.mount(&[]).failed(6, "");
}

#[test]
fn an_anchor_that_is_put_back_with_its_vault_knows_no_better() {
    let place = with_secrets(&[("secret", b"OLD")]);
    let (anchors, kept) = (place.path().join("anchors"), place.path().join("kept"));
    fs::create_dir(&kept).expect("made");
    copy(&place.vault(), &kept.join("v"));
    copy(&anchors, &kept.join("anchors"));
    place.mount(&[]).succeeded();
    fs::write(place.point().join("secret"), "NEW").expect("written");
    unmount(&place);
    fs::remove_dir_all(place.vault()).expect("removed");
    fs::remove_dir_all(&anchors).expect("removed");
    copy(&kept.join("v"), &place.vault());
    copy(&kept.join("anchors"), &anchors);
    place.mount(&[]).succeeded();
    assert_eq!(
        fs::read(place.point().join("secret")).expect("read"),
        b"OLD"
    );
    unmount(&place);
}

#[test]
fn a_read_only_mount_is_kept_from_what_it_has_not_seen_until_it_counts() {
    // In a directory that nobody looks into there: what its kernel knows is looked at at once.
    let place = with_secrets(&[]);
    place.mount(&[]).succeeded();
    fs::create_dir(place.point().join("d")).expect("made");
    fs::write(place.point().join("d/secret"), "OLD").expect("written");
    unmount(&place);
    let kept = place.path().join("kept");
    copy(&place.vault(), &kept);
    let reading = place.path().join("r");
    fs::create_dir(&reading).expect("made");
    place
        .run([
            "mount".as_ref(),
            place.vault().as_os_str(),
            reading.as_os_str(),
            "-oro,verify-every=10s".as_ref(),
        ])
        .succeeded();
    place.mount(&[]).succeeded();
    fs::write(place.point().join("d/secret"), "NEW").expect("written");
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    let old = kept.join("vault.db");
    let rows = |table: &str, key: &str| {
        format!(
            "DELETE FROM main.{table} WHERE {key} = 3; \
             INSERT INTO main.{table} SELECT * FROM old.{table} WHERE {key} = 3;"
        )
    };
    let rows = [
        rows("node", "id"),
        rows("version", "node"),
        rows("chunk", "node"),
    ]
    .concat();
    let attach = format!("ATTACH '{}' AS old; BEGIN; {rows} COMMIT;", old.display());
    database(&place).execute_batch(&attach).expect("put back");
    assert_eq!(fs::read(reading.join("d/secret")).expect("read"), b"OLD");
    let told = || crate::support::process::status(&reading)["state"].clone();
    wait_for("its next count", Duration::from_secs(60), || {
        told() == "condemned"
    });
    fs::read(reading.join("d/secret")).expect_err("nothing is served any more");
    place.run(["umount".as_ref(), reading.as_os_str()]);
}

#[test]
fn the_first_mount_of_a_host_trusts_the_vault_that_it_finds() {
    let place = with_secrets(&[("password", b"right")]);
    // Of somebody who could have the same KMS key wrap for it.
    let other = place.path().join("other");
    place.run(["init".as_ref(), other.as_os_str()]).succeeded();
    let (right, wrong) = (id_of(&place, &place.vault()), id_of(&place, &other));
    let pin = format!("vault-id={right}");
    on_another_host(&place, &other, &["-o", &pin]).failed(6, &wrong);
    on_another_host(&place, &other, &[]).succeeded();
    assert!(!place.point().join("password").exists());
    unmount(&place);
}

fn id_of(place: &Place, vault: &Path) -> String {
    let args = ["status".as_ref(), vault.as_os_str(), "--json".as_ref()];
    let status = place.run(args).succeeded().stdout();
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    status["vault"].as_str().expect("an id").to_owned()
}

#[test]
fn an_old_copy_with_its_key_opens_whatever_was_done_to_the_vault_since() {
    let place = with_secrets(&[("password", b"s3cret")]);
    let (copied, keys) = (
        place.path().join("copied"),
        place.path().join("copied keys"),
    );
    copy(&place.vault(), &copied);
    copy(&place.path().join("kms"), &keys);
    place.mount(&[]).succeeded();
    fs::remove_file(place.point().join("password")).expect("removed");
    unmount(&place);
    fs::remove_dir_all(place.vault()).expect("removed");
    fs::remove_dir_all(place.path().join("kms")).expect("removed");
    fs::rename(keys, place.path().join("kms")).expect("moved");
    on_another_host(&place, &copied, &[]).succeeded();
    assert_eq!(
        fs::read(place.point().join("password")).expect("read"),
        b"s3cret"
    );
    unmount(&place);
}

#[test]
fn after_rotate_who_has_a_copy_and_its_master_key_reads_on_in_what_was_there_until_reencrypt() {
    let place = with_secrets(&[("kept", b"as it was"), ("changed", b"old")]);
    let copied = place.path().join("copied");
    copy(&place.vault(), &copied);
    let hand = Hand::of(&copied, &place.path().join("kms"));
    let copied = Connection::open(copied.join("vault.db")).expect("a database");
    let keys = Copied::of(&hand, &copied);
    let replace_keys = |what: &str| {
        let ran = place.run([what.as_ref(), place.vault().as_os_str()]);
        assert!(ran.0.status.success(), "{}", ran.stderr());
    };
    replace_keys("rotate");
    place.mount(&[]).succeeded();
    let point = place.point();
    fs::write(point.join("changed"), "new").expect("written");
    let mode = fs::Permissions::from_mode(0o751);
    fs::set_permissions(point.join("changed"), mode).expect("changed");
    fs::create_dir(point.join("new directory")).expect("made");
    fs::write(point.join("new"), "made since").expect("written");
    fs::write(point.join("new directory/below"), "made since").expect("written");
    unmount(&place);
    let now = database(&place);
    // The names in a directory that was there, also those of what was made since; the attributes of
    // what was there, also as they are now; and the contents that are still as they were.
    let legible = keys.read(&now);
    assert_eq!(legible.names, ["changed", "kept", "new", "new directory"]);
    assert_eq!(legible.contents, ["as it was"]);
    let modes: Vec<_> = legible.modes.iter().map(|(_, mode)| *mode).collect();
    assert!(modes.contains(&0o751), "{modes:?}");
    // The vault's own node is not among them, nor is what was made since.
    assert_eq!(legible.modes.len(), 3, "{legible:?}");
    let made = number(&place, "SELECT max(id) FROM node");
    assert!(
        legible
            .modes
            .iter()
            .all(|(id, _)| *id != 0 && *id as i64 <= made - 3)
    );
    replace_keys("reencrypt");
    assert_eq!(keys.read(&now), Legible::default());
    // All is there, for who has the keys of now.
    place.mount(&[]).succeeded();
    assert_eq!(fs::read(point.join("changed")).expect("read"), b"new");
    unmount(&place);
}

#[test]
fn after_rotate_she_can_replace_a_content_that_has_not_changed_until_reencrypt() {
    for (what, forged) in [("rotate", true), ("reencrypt", false)] {
        let place = with_secrets(&[("kept", b"as it was")]);
        let copied = place.path().join("copied");
        copy(&place.vault(), &copied);
        let hand = Hand::of(&copied, &place.path().join("kms"));
        let copied = Connection::open(copied.join("vault.db")).expect("a database");
        let keys = Copied::of(&hand, &copied);
        let ran = place.run([what.as_ref(), place.vault().as_os_str()]);
        assert!(ran.0.status.success(), "{}", ran.stderr());
        keys.replace_contents(&database(&place), b"of a lie!");
        place.mount(&[]).succeeded();
        let read = fs::read(place.point().join("kept"));
        match forged {
            true => assert_eq!(read.expect("read"), b"of a lie!"),
            false => assert_eq!(read.expect_err("refused").raw_os_error(), Some(libc::EIO)),
        }
        unmount(&place);
    }
}

#[test]
fn a_running_mount_goes_on_when_its_key_is_disabled_and_the_next_one_fails() {
    let place = with_secrets(&[("password", b"s3cret")]);
    place.mount(&[]).succeeded();
    let kms = LocalKms::new(&KmsSettings {
        local_dir: Some(place.path().join("kms")),
        ..KmsSettings::default()
    });
    let kms = kms.expect("a local KMS");
    kms.set_enabled("default", false).expect("disabled");
    let password = place.point().join("password");
    assert_eq!(fs::read(&password).expect("read"), b"s3cret");
    fs::write(&password, "another").expect("written");
    unmount(&place);
    place.mount(&[]).failed(4, "disabled");
}

#[test]
fn who_can_write_the_vault_can_destroy_it_and_that_is_noticed() {
    let place = with_secrets(&[("password", b"s3cret")]);
    fs::remove_file(place.vault().join("vault.db")).expect("removed");
    place.mount(&[]).failed(3, "");
    fs::write(place.vault().join("vault.db"), vec![0x5a; 100_000]).expect("written");
    let ran = place.mount(&[]);
    let code = ran.0.status.code().expect("a code");
    assert!(code == 3 || code == 6, "{code}");
    ran.failed(code, "");
}

fn length(place: &Place) -> u64 {
    let files = fs::read_dir(place.vault()).expect("listed").flatten();
    files
        .filter(|file| file.file_name() != "vault.db-shm")
        .map(|file| file.metadata().expect("there").len())
        .sum()
}

#[test]
fn who_watches_the_disk_sees_that_something_is_written_and_how_much() {
    let place = Place::with_vault();
    let server: Server = place.serve(&[]);
    let write = |name: &str, size: u64| {
        let before = length(&place);
        fs::write(place.point().join(name), vec![b'x'; size as usize]).expect("written");
        length(&place) - before
    };
    // What is of this size shows as this, and not much more.
    write("first", 10);
    for size in [250_000, 500_000, 1_000_000] {
        let grown = write(&format!("secret of {size}"), size);
        assert!((size..size * 5 / 4).contains(&grown), "{size}: {grown}");
    }
    drop(server);
}

#[test]
fn the_ciphertext_of_a_large_secret_stays_in_the_file_without_its_key() {
    let place = with_secrets(&[("large", &[b'x'; 4 << 20]), ("small", b"y")]);
    let sealed = blob(&place, "SELECT sealed FROM chunk WHERE idx = 30");
    let wrapped = blob(
        &place,
        "SELECT value FROM version WHERE node = (SELECT node FROM chunk WHERE idx = 30)",
    );
    let raw = |place: &Place, part: &[u8]| {
        let bytes = fs::read(place.vault().join("vault.db")).expect("read");
        count_of(&bytes, part)
    };
    let (part, key) = (&sealed[30_000..30_200], &wrapped[..72]);
    assert_eq!((raw(&place, part), raw(&place, key)), (1, 1));
    place.mount(&[]).succeeded();
    fs::remove_file(place.point().join("large")).expect("removed");
    unmount(&place);
    assert_eq!((raw(&place, part), raw(&place, key)), (1, 0));
}

/// Where names of the vault's files would be, if any were.
#[test]
fn who_may_look_into_a_program_sees_the_names_that_it_has_open() {
    let place = with_secrets(&[("password", b"s3cret")]);
    place.mount(&[]).succeeded();
    let open = fs::File::open(place.point().join("password")).expect("opened");
    let fds = fs::read_dir("/proc/self/fd").expect("listed").flatten();
    let shown: Vec<PathBuf> = fds.filter_map(|fd| fs::read_link(fd.path()).ok()).collect();
    assert!(shown.contains(&place.point().join("password")), "{shown:?}");
    drop(open);
    unmount(&place);
}

#[test]
fn the_file_of_a_local_key_and_the_vault_together_open_everything() {
    let place = with_secrets(&[("password", b"s3cret")]);
    // An image of the one disk on which both lie, on the machine of somebody else.
    let image = Place::new();
    for name in ["v", "kms"] {
        copy(&place.path().join(name), &image.path().join(name));
    }
    image.mount(&[]).succeeded();
    let password = image.point().join("password");
    assert_eq!(fs::read(password).expect("read"), b"s3cret");
    unmount(&image);
}
