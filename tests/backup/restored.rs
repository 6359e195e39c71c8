//! What a backup is good for: it is checked and mounted where it lies, and made a vault again, on this
//! host and on others.

use std::fs;
use std::path::{Path, PathBuf};

use secretfs::vault::{self, Vault};
use serde_json::Value;

use crate::kit::{
    backup, elsewhere, go_on, json, nothing_is_left, on_host, run, secrets_are_at, unmount,
    with_secrets,
};
use crate::support::evil::footprint;
use crate::support::process::{Place, detach, status, system};
use crate::support::rotating::{check_is_clean, reencrypt, wait_for_the_end};

/// A read-only bind, taken away at the end.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn of(directory: &Path, at: PathBuf) -> Self {
        fs::create_dir(&at).expect("made");
        system(
            "mount",
            &["--bind".as_ref(), directory.as_os_str(), at.as_os_str()],
        );
        let bound = Self(at);
        let options = ["-o".as_ref(), "remount,bind,ro".as_ref()];
        system("mount", &[options[0], options[1], bound.0.as_os_str()]);
        bound
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        detach(&self.0);
    }
}

#[track_caller]
fn mount(place: &Place, vault: &Path, more: &[String]) {
    let point = place.point();
    let args = ["mount".as_ref(), vault.as_os_str(), point.as_os_str()];
    place
        .run(args.into_iter().chain(more.iter().map(AsRef::as_ref)))
        .succeeded();
}

fn events(place: &Place, vault: &Path) -> Vec<Value> {
    let ran = place.run(["audit".as_ref(), vault.as_os_str(), "--json".as_ref()]);
    let told = ran.succeeded().stdout();
    let parse = |line: &str| serde_json::from_str(line).expect("JSON");
    told.lines().map(parse).collect()
}

#[test]
fn a_backup_is_checked_mounted_and_restored_from_where_nobody_can_write_and_is_left_as_it_is() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    let files: Vec<_> = fs::read_dir(&made).expect("listed").flatten().collect();
    assert_eq!(
        files.len(),
        1,
        "only the database is in a backup: {files:?}"
    );
    let before = footprint(std::slice::from_ref(&made));
    let lies = ReadOnly::of(&made, place.path().join("read only"));
    for at in [&lies.0, &made] {
        place.run(["check".as_ref(), at.as_os_str()]).succeeded();
        mount(&place, at, &["-oro".to_owned()]);
        secrets_are_at(&place.point());
        assert_eq!(status(&place.point())["integrity"], "verified");
        unmount(&place);
    }
    for (at, name) in [(&lies.0, "r1"), (&made, "r2")] {
        let changed = fs::metadata(&made)
            .expect("there")
            .modified()
            .expect("a time");
        let restored = place.path().join(name);
        run(&place, "restore", at, &restored).succeeded();
        // Not even for a moment is anything made beside it.
        let after = fs::metadata(&made)
            .expect("there")
            .modified()
            .expect("a time");
        assert_eq!(changed, after);
        mount(&place, &restored, &[]);
        secrets_are_at(&place.point());
        unmount(&place);
    }
    assert_eq!(footprint(&[made]), before);
    nothing_is_left(&place);
}

/// Of more than its WAL may have at a time, so that the copy is moved into the database meanwhile.
#[test]
fn a_large_vault_is_backed_up_and_restored() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let content = |n: usize| vec![n as u8 + 1; 15_000_000];
    for n in 0..6 {
        fs::write(place.point().join(n.to_string()), content(n)).expect("written");
    }
    let made = backup(&place, "backup");
    unmount(&place);
    let restored = place.path().join("restored");
    run(&place, "restore", &made, &restored).succeeded();
    mount(&place, &restored, &[]);
    for n in 0..6 {
        let found = fs::read(place.point().join(n.to_string())).expect("read");
        assert!(found == content(n), "{n}");
    }
    unmount(&place);
    nothing_is_left(&place);
}

#[test]
fn a_vault_where_nobody_can_write_is_backed_up() {
    let place = with_secrets();
    let lies = ReadOnly::of(&place.vault(), place.path().join("read only"));
    let made = place.path().join("backup");
    run(&place, "backup", &lies.0, &made).succeeded();
    let restored = place.path().join("restored");
    run(&place, "restore", &made, &restored).succeeded();
    mount(&place, &restored, &[]);
    secrets_are_at(&place.point());
    unmount(&place);
}

#[test]
fn a_restored_vault_is_let_in_on_the_host_that_has_seen_a_later_state_and_its_history_says_so() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    let vault = place.vault();
    go_on(&place, 20);
    let lost = json(&place, &["status".as_ref(), vault.as_os_str()]);
    let then = place.path().join("lost");
    fs::rename(&vault, &then).expect("lost");
    // As any older state, it is refused where it lies.
    place
        .run(["check".as_ref(), made.as_os_str()])
        .failed(6, "older than what this host has seen");
    let told = json(
        &place,
        &["restore".as_ref(), made.as_os_str(), vault.as_os_str()],
    );
    assert_eq!(told["secrets"], 2);
    assert_eq!(told["vault"], lost["vault"]);
    mount(&place, &vault, &[]);
    secrets_are_at(&place.point());
    unmount(&place);
    check_is_clean(&place);
    let last = events(&place, &vault).pop().expect("an event");
    assert_eq!(last["event"], "rollback-accepted");
    assert_eq!(last["seen_commit"], lost["commit_sequence"]);
    let accepted = last["accepted_commit"].as_u64().expect("a number");
    assert_eq!(told["commit"].as_u64(), Some(accepted + 1));
    // Another vault at the path is accepted by that, too; the lost one is not older than what is known
    // now, and is another: its keyring has not seen the event.
    place
        .run(["check".as_ref(), then.as_os_str()])
        .failed(6, "keyring record");
}

#[test]
fn another_host_that_has_seen_a_later_state_refuses_a_restored_vault_until_it_is_accepted_there() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    let vault = place.vault();
    go_on(&place, 5);
    let other = on_host(&place, "other");
    let check = |host: &[String]| {
        let args = ["check".as_ref(), vault.as_os_str()];
        place.run(args.into_iter().chain(host.iter().map(AsRef::as_ref)))
    };
    check(&other).succeeded();
    fs::remove_dir_all(&vault).expect("lost");
    run(&place, "restore", &made, &vault).succeeded();
    check(&[]).succeeded();
    check(&other).failed(6, "--accept-rollback");
    let accepting = [&other[..], &["--accept-rollback".to_owned()]].concat();
    mount(&place, &vault, &accepting);
    secrets_are_at(&place.point());
    unmount(&place);
    check(&other).succeeded();
    check(&[]).succeeded();
}

#[test]
fn a_backup_is_restored_where_the_vault_was_never_seen() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    let restored = place.path().join("restored");
    let host = on_host(&place, "new");
    let args = ["restore".as_ref(), made.as_os_str(), restored.as_os_str()];
    place
        .run(args.into_iter().chain(host.iter().map(AsRef::as_ref)))
        .succeeded();
    mount(&place, &restored, &host);
    secrets_are_at(&place.point());
    unmount(&place);
    let args = [
        "restore".as_ref(),
        made.as_os_str(),
        place.path().as_os_str(),
    ];
    let must = ["--require-anchor".to_owned()];
    let third = on_host(&place, "third");
    let to = place.path().join("third vault");
    let args = [args[0], args[1], to.as_os_str()];
    let more = third.iter().chain(&must).map(AsRef::as_ref);
    place
        .run(args.into_iter().chain(more))
        .failed(6, "require-anchor");
}

#[test]
fn an_old_backup_is_checked_as_by_a_host_that_has_seen_nothing_newer() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    go_on(&place, 3);
    let nowhere = on_host(&place, "empty");
    let args = ["check".as_ref(), made.as_os_str()];
    place.run(args).failed(6, "older");
    place
        .run(args.into_iter().chain(nowhere.iter().map(AsRef::as_ref)))
        .succeeded();
    mount(
        &place,
        &made,
        &[&nowhere[..], &["-oro".to_owned()]].concat(),
    );
    secrets_are_at(&place.point());
    unmount(&place);
}

#[test]
fn both_say_which_keys_a_copy_needs_and_where_the_file_of_a_local_one_is() {
    let place = Place::new();
    let vault = place.vault();
    let keys = ["local-kms://one", "local-kms://two"];
    let init = ["init".as_ref(), vault.as_os_str()];
    let flags = keys.iter().flat_map(|key| ["--kms-key", key]);
    place
        .run(init.into_iter().chain(flags.map(AsRef::as_ref)))
        .succeeded();
    let (made, restored) = (place.path().join("b"), place.path().join("r"));
    for (command, from, to) in [("backup", &vault, &made), ("restore", &made, &restored)] {
        let said = run(&place, command, from, to).succeeded().stdout();
        assert!(said.contains("any one of these keys"), "{said}");
        for key in ["one", "two"] {
            let file = place.path().join(format!("kms/{key}.key"));
            assert!(
                file.exists() && said.contains(file.to_str().expect("text")),
                "{said}"
            );
        }
        fs::remove_dir_all(to).expect("removed");
        let told = json(
            &place,
            &[command.as_ref(), from.as_os_str(), to.as_os_str()],
        );
        assert_eq!(told["any_key_opens"], true);
        assert_eq!(told["kms_keys"][0]["uri"], "local-kms://one");
        assert!(told["kms_keys"][1]["key_file"].is_string());
    }
}

#[test]
fn a_backup_from_the_middle_of_a_rotation_goes_on_with_it_once_restored() {
    let place = with_secrets();
    let options = secretfs::vault::OpenOptions {
        anchor_dir: Some(place.path().join("anchors")),
        ..elsewhere(&place, "unused")
    };
    let vault = Vault::open(&place.vault(), &options).expect("opened");
    reencrypt(&vault, 3);
    assert!(vault.is_rotating());
    let made = backup(&place, "backup");
    drop(vault);
    fs::remove_dir_all(place.vault()).expect("lost");
    run(&place, "restore", &made, &place.vault()).succeeded();
    mount(&place, &place.vault(), &[]);
    let status = wait_for_the_end(&place.point());
    assert_eq!(status["generations"].as_array().map(Vec::len), Some(1));
    secrets_are_at(&place.point());
    unmount(&place);
    check_is_clean(&place);
}

/// Of the first format, killed while a removed file was open; as it is kept for the fuzz tests.
#[test]
fn a_vault_that_an_earlier_program_left_is_backed_up_and_restored() {
    let place = Place::new();
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/sample");
    let (kms, vault) = (place.path().join("kms"), place.vault());
    for directory in [&kms, &vault] {
        fs::create_dir(directory).expect("made");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        fs::set_permissions(directory, mode).expect("set");
    }
    let copy = |name: &str, to: &Path| {
        fs::copy(sample.join(name), to.join(name)).expect("copied");
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        fs::set_permissions(to.join(name), mode).expect("set");
    };
    copy("default.key", &kms);
    copy("vault.db", &vault);
    copy("vault.db-wal", &vault);
    let log = fs::read(vault.join("vault.db-wal")).expect("read");
    let made = backup(&place, "backup");
    assert!(fs::read(vault.join("vault.db-wal")).expect("read") == log);
    let restored = place.path().join("restored");
    run(&place, "restore", &made, &restored).succeeded();
    mount(&place, &restored, &[]);
    let point = place.point();
    assert_eq!(fs::read(point.join("password")).expect("read"), b"s3cret");
    assert_eq!(
        fs::read(point.join("directory/later")).expect("read"),
        b"a later secret"
    );
    assert!(!point.join("removed").exists());
    unmount(&place);
    let report = vault::check(&restored, &elsewhere(&place, "anchors")).expect("checked");
    assert_eq!(report.problem_count, 0, "{:?}", report.problems);
}
