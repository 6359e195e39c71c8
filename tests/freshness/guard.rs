//! Wrong keys, edited vaults, older vaults and other vaults: each is refused with its own exit
//! code, and nothing on disk is changed by the attempt.

mod edited;
mod keys;

use std::fs;
use std::path::PathBuf;

use crate::support::evil::{copy, footprint};
use crate::support::process::{Place, Ran};

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
