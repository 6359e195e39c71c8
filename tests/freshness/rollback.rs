//! A host never serves older than it has seen: whole vaults, or parts of them, that somebody puts back
//! while they are not mounted, or while their mount is killed, are refused.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::support::evil::{copy, database};
use crate::support::kms_proxy::{Answer, Proxy};
use crate::support::moto::Moto;
use crate::support::process::{Place, Ran, status, system, wait_for};
use crate::support::put_back::{
    all_as_it_was, keep, large_with_an_older_part, newest, node_as_it_was, put_back, unmount,
    write_once,
};
use serde_json::Value;

/// The anchor is at most this far behind what was acknowledged.
const BEHIND: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);

/// A mount by a host that remembers elsewhere.
fn mount_elsewhere(place: &Place, more: &[&str]) -> Ran {
    let mut command = place.command();
    command.env("SECRETFS_ANCHOR_DIR", place.path().join("other-host"));
    command
        .arg("mount")
        .arg(place.vault())
        .arg(place.point())
        .args(more);
    Ran(command.output().expect("the program runs"))
}

/// The commit that the anchor in `directory` knows.
fn anchored(place: &Place, directory: &str) -> u64 {
    let found = fs::read_dir(place.path().join(directory))
        .into_iter()
        .flatten()
        .flatten();
    let mut files = found.map(|entry| entry.path());
    let anchor = files.find(|path| path.extension().is_some_and(|e| e == "json"));
    let text = anchor
        .and_then(|path| fs::read_to_string(path).ok())
        .unwrap_or_default();
    let json = text
        .rsplit_once("}\n")
        .map_or(String::new(), |(json, _)| format!("{json}}}"));
    let anchor: Value = serde_json::from_str(&json).unwrap_or_default();
    anchor["commit_sequence"].as_u64().unwrap_or(0)
}

#[test]
fn a_host_that_only_reads_refuses_an_older_vault_than_it_has_seen() {
    let place = Place::with_vault();
    write_once(&place, "OLD");
    let kept = keep(&place);
    write_once(&place, "NEW");
    for _ in 0..2 {
        mount_elsewhere(&place, &["-oro"]).succeeded();
        assert_eq!(
            fs::read(place.point().join("secret")).expect("read"),
            b"NEW"
        );
        unmount(&place);
    }
    put_back(&place, &kept);
    for options in ["-oro", "-oro,require-anchor", "-orw"] {
        mount_elsewhere(&place, &[options]).failed(6, "older than what this host has seen");
        assert!(!place.is_mounted());
    }
}

#[test]
fn an_older_vault_that_takes_its_place_while_kms_is_asked_is_refused() {
    let moto = Moto::start();
    let proxy = Proxy::before(moto.address());
    let env = moto.env_at(&proxy.url());
    let place = Place::new();
    let key = format!("aws-kms://{}", moto.create_key());
    let command = |name: &str, more: &[&str]| {
        let mut command = place.command();
        command.envs(env.iter().map(|(k, v)| (k, v)));
        command.arg(name).arg(place.vault());
        if name == "mount" {
            command.arg(place.point());
        }
        command
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    let run = |name, more: &[&str]| Ran(command(name, more).output().expect("it runs"));
    run("init", &["--kms-key", &key]).succeeded();
    let write = |text: &str| {
        run("mount", &[]).succeeded();
        fs::write(place.point().join("secret"), text).expect("written");
        unmount(&place);
    };
    write("OLD");
    let kept = keep(&place);
    write("NEW");
    let whole = place.path().join("whole");
    copy(&place.vault(), &whole);
    for mode in ["-orw", "-oro"] {
        let asked = proxy.count();
        proxy.set_times(1, Answer::Hang);
        let mounting = command("mount", &[mode]).spawn().expect("it runs");
        wait_for("KMS to be asked", PATIENCE, || proxy.count() > asked);
        all_as_it_was(&place, &kept);
        let ran = Ran(mounting.wait_with_output().expect("it ends"));
        ran.failed(6, "was put back");
        assert!(!place.is_mounted());
        all_as_it_was(&place, &whole);
    }
}

#[test]
fn the_anchor_of_a_host_that_only_reads_rises_while_it_is_mounted() {
    let place = Place::with_vault();
    let kept = keep(&place);
    mount_elsewhere(&place, &["-oro"]).succeeded();
    let seen = anchored(&place, "other-host");
    let writer = crate::support::process::apart(&place, "w", "rw");
    let written = crate::support::process::root_of(&place, &writer, "w");
    fs::write(written.join("secret"), "NEW").expect("written");
    let commit = status(&written)["commit_sequence"]
        .as_u64()
        .expect("a commit");
    assert!(commit > seen);
    // Nobody reads anything meanwhile.
    wait_for("the anchor", BEHIND, || {
        anchored(&place, "other-host") >= commit
    });
    // Killed, it has done nothing at its end.
    place
        .daemons()
        .into_iter()
        .for_each(|pid| crate::support::process::kill(pid, libc::SIGKILL));
    system("umount", &["-l".as_ref(), place.point().as_os_str()]);
    drop(writer);
    put_back(&place, &kept);
    mount_elsewhere(&place, &["-oro"]).failed(6, "older than what this host has seen");
}

#[test]
fn what_an_idle_writer_acknowledged_before_it_is_killed_is_not_rolled_back_unnoticed() {
    let place = Place::with_vault();
    let kept = keep(&place);
    let server = place.serve(&[]);
    let secret = place.point().join("secret");
    for text in ["one", "two", "three"] {
        fs::write(&secret, text).expect("written");
    }
    let commit = status(&place.point())["commit_sequence"]
        .as_u64()
        .expect("a commit");
    let begun = Instant::now();
    wait_for("the anchor", BEHIND, || {
        anchored(&place, "anchors") >= commit
    });
    println!("the anchor was behind for {:?}", begun.elapsed());
    server.signal(libc::SIGKILL);
    server.ended(PATIENCE);
    system("umount", &["-l".as_ref(), place.point().as_os_str()]);
    put_back(&place, &kept);
    place
        .mount(&[])
        .failed(6, "older than what this host has seen");
    place
        .mount(&["-oro"])
        .failed(6, "older than what this host has seen");
}

#[test]
fn the_anchor_of_a_writer_that_is_never_idle_is_no_further_behind() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let secret = place.point().join("secret");
    let mut samples = Vec::new();
    let begun = Instant::now();
    while begun.elapsed() < 2 * BEHIND {
        for at in 0..20 {
            fs::write(&secret, format!("value {at}")).expect("written");
        }
        let commit = status(&place.point())["commit_sequence"]
            .as_u64()
            .expect("a commit");
        samples.push((Instant::now(), commit));
        let anchored = anchored(&place, "anchors");
        let due = samples.iter().rev().find(|(at, _)| at.elapsed() > BEHIND);
        if let Some((_, commit)) = due {
            assert!(anchored >= *commit, "{anchored} instead of {commit}");
        }
    }
    assert!(samples.len() > 10);
    unmount(&place);
}

#[test]
fn status_says_what_the_anchor_knows_and_when_there_is_none() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let point = place.point();
    let told = status(&point);
    assert_eq!(told["anchored"], true);
    assert_eq!(told["anchor"]["commit"], told["commit_sequence"]);
    assert!(told["anchor"]["age_seconds"].as_u64().expect("an age") < 60);
    assert_eq!(told["anchor"]["trouble"], Value::Null);
    unmount(&place);

    let with = |more: &[&str]| {
        let mut command = place.command();
        command.env("SECRETFS_ANCHOR_DIR", "/proc/nothing");
        command
            .arg("mount")
            .arg(place.vault())
            .arg(&point)
            .args(more);
        Ran(command.output().expect("the program runs"))
    };
    with(&[]).succeeded();
    let told = status(&point);
    assert_eq!(told["anchored"], false);
    assert_eq!(told["anchor"]["commit"], Value::Null);
    let trouble = told["anchor"]["trouble"].as_str().expect("a reason");
    assert!(trouble.contains("/proc/nothing"), "{trouble}");
    unmount(&place);
}

#[test]
fn who_must_have_an_anchor_must_be_able_to_store_it() {
    let place = Place::with_vault();
    write_once(&place, "once");
    // The same anchor, where nothing can be written.
    let frozen = place.path().join("frozen");
    fs::create_dir(&frozen).expect("made");
    system(
        "mount",
        &[
            "-t".as_ref(),
            "tmpfs".as_ref(),
            "none".as_ref(),
            frozen.as_os_str(),
        ],
    );
    system(
        "cp",
        &[
            "-a".as_ref(),
            place.path().join("anchors/.").as_os_str(),
            frozen.as_os_str(),
        ],
    );
    system(
        "mount",
        &["-o".as_ref(), "remount,ro".as_ref(), frozen.as_os_str()],
    );
    let mut refused = Vec::new();
    for more in [&["-orequire-anchor"][..], &["-oro,require-anchor"]] {
        let mut command = place.command();
        command.env("SECRETFS_ANCHOR_DIR", &frozen);
        command
            .arg("mount")
            .arg(place.vault())
            .arg(place.point())
            .args(more);
        refused.push(Ran(command.output().expect("the program runs")));
    }
    system("umount", &[frozen.as_os_str()]);
    for ran in refused {
        ran.failed(1, "anchor");
    }
    assert!(!place.is_mounted());
}

#[test]
fn a_host_that_remembers_nothing_can_be_told_how_far_the_vault_must_have_come() {
    let place = Place::with_vault();
    write_once(&place, "OLD");
    let kept = keep(&place);
    place.mount(&[]).succeeded();
    fs::write(place.point().join("secret"), "NEW").expect("written");
    let said = unmount(&place);
    let commit: u64 = said
        .trim()
        .rsplit(' ')
        .next()
        .expect("a word")
        .parse()
        .expect("a number");
    let by_status = place.run([
        "status".as_ref(),
        place.vault().as_os_str(),
        "--json".as_ref(),
    ]);
    let by_status: Value = serde_json::from_str(&by_status.succeeded().stdout()).expect("JSON");
    assert_eq!(
        by_status["commit_sequence"].as_u64(),
        Some(commit),
        "{said}"
    );

    fs::remove_dir_all(place.path().join("anchors")).expect("removed");
    let (right, more) = (
        format!("-oro,min-commit={commit}"),
        format!("-oro,min-commit={}", commit + 1),
    );
    place.mount(&[&right]).succeeded();
    let said = unmount(&place);
    assert!(said.ends_with(&format!(" {commit}\n")), "{said}");
    place.mount(&[&more]).failed(6, "min-commit");
    fs::remove_dir_all(place.path().join("anchors")).expect("removed");
    put_back(&place, &kept);
    place.mount(&[&right]).failed(6, "min-commit");
    let rw = format!("-omin-commit={commit}");
    place.mount(&[&rw]).failed(6, "min-commit");
    // Without it, nobody can tell.
    place.mount(&["-oro"]).succeeded();
}

#[test]
fn a_large_vault_of_which_part_is_older_is_not_mounted() {
    let place = large_with_an_older_part();
    for mode in ["-orw", "-oro"] {
        place
            .mount(&[mode])
            .failed(6, "replayed, inserted or deleted");
        assert!(!place.is_mounted());
    }
}

#[test]
fn who_uses_a_mount_before_its_vault_was_counted_waits_and_is_served_nothing_older() {
    let place = large_with_an_older_part();
    for mode in ["-orw,verify-within=0", "-oro,verify-within=0"] {
        let ran = place.mount(&[mode]);
        // It may have been quicker than that.
        if !ran.0.status.success() {
            ran.failed(6, "replayed, inserted or deleted");
            continue;
        }
        let point = place.point();
        let error = fs::read(point.join("secret")).expect_err("it is older");
        assert_eq!(error.raw_os_error(), Some(libc::EIO));
        let error = fs::write(point.join("new"), "x").expect_err("nothing is acknowledged");
        assert!(
            matches!(error.raw_os_error(), Some(libc::EIO | libc::EROFS)),
            "{error}"
        );
        let told = status(&point);
        assert_eq!(told["state"], "condemned");
        assert!(
            told["integrity"]
                .as_str()
                .expect("text")
                .starts_with("failed: "),
            "{told}"
        );
        place.run(["umount".as_ref(), point.as_os_str()]);
        wait_for("the end of the mount", PATIENCE, || {
            place.daemons().is_empty()
        });
    }
}

#[test]
fn counting_in_the_background_is_for_who_asks_for_it_and_is_told() {
    let place = large_with_an_older_part();
    place.mount(&["-oro,verify=background"]).succeeded();
    let point = place.point();
    assert_eq!(status(&point)["verify"], "background");
    wait_for("the end of the count", PATIENCE, || {
        status(&point)["state"] == "condemned"
    });
    let error = fs::read(point.join("secret")).expect_err("it is older");
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
}

#[test]
fn what_is_remembered_of_a_record_takes_at_most_24_bytes() {
    let place = large_with_an_older_part();
    node_as_it_was(&place, &place.path().join("whole"), newest(&place));
    for mode in ["-orw", "-oro"] {
        place.mount(&[mode]).succeeded();
        let told = status(&place.point());
        let count = |table: &str| {
            let sql = format!("SELECT count(*) FROM {table}");
            database(&place)
                .query_row(&sql, [], |row| row.get::<_, i64>(0))
                .expect("counted")
        };
        let records = ["node", "version", "entry"].map(count).iter().sum::<i64>();
        let bytes = told["memory"]["records"].as_i64().expect("bytes");
        assert!(
            bytes > 16 * records && bytes <= 24 * records,
            "{bytes} for {records}"
        );
        unmount(&place);
    }
}

#[test]
fn integrity_is_told_with_the_commit_and_the_time_of_the_count() {
    let place = Place::with_vault();
    write_once(&place, "once");
    let begun = secretfs::vault::Timestamp::now().seconds;
    place.mount(&["-oro"]).succeeded();
    let told = status(&place.point());
    assert_eq!(told["integrity"], "verified");
    assert_eq!(told["integrity_commit"], told["commit_sequence"]);
    let since = told["integrity_since"].as_i64().expect("a time");
    assert!((begun..begun + 60).contains(&since));
    assert_eq!(told["verify"], "before");
    assert_eq!(told["findings"]["count"], 0);
}

#[test]
fn the_commit_is_told_at_the_end_also_where_no_anchor_can_be_stored() {
    let place = Place::with_vault();
    let mut command = place.command();
    command.env("SECRETFS_ANCHOR_DIR", "/proc/nothing");
    command.arg("mount").arg(place.vault()).arg(place.point());
    Ran(command.output().expect("it runs")).succeeded();
    fs::write(place.point().join("secret"), "s").expect("written");
    let commit = status(&place.point())["commit_sequence"]
        .as_u64()
        .expect("a number");
    let said = unmount(&place);
    let told: u64 = said
        .trim()
        .rsplit(' ')
        .next()
        .expect("a word")
        .parse()
        .expect("a number");
    assert!(told >= commit, "{said}");
}
