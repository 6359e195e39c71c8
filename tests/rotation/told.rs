//! What is told of rotations while they run, when they have ended, and when they cannot begin; and
//! when they begin by themselves.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::aws::World;
use crate::support::clock::ahead;
use crate::support::evil::{copy, database};
use crate::support::keys::local_kms;
use crate::support::kms_proxy::Answer;
use crate::support::process::{Place, Ran, Server, status, wait_for};
use crate::support::rotating::{command, fill, json, serve_with, wait_for_the_end};
use crate::support::tree::needs;
use serde_json::Value;

const SECRETS: usize = 600;
/// A node and a version each, four directories, the root, and the vault's own node.
const KEYS: u64 = 2 * SECRETS as u64 + 6;
const SLOWLY: &str = "migrate-before=sleep(150)";
const SOON: Duration = Duration::from_secs(60);

fn umount(place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("after 1970").as_secs() as i64
}

/// Writes a command that fails: the errno, and what reading tells.
#[track_caller]
fn refused(point: &Path, text: &str) -> (i32, String) {
    let control = point.join(".secretfs/control");
    let error = command(point, text).expect_err("refused");
    let said = std::fs::read_to_string(control).expect("readable");
    (error.raw_os_error().expect("an errno"), said)
}

#[test]
fn what_a_command_fails_with_is_told_by_errno_in_words_and_by_exit_code() {
    let is = |point: &Path, text: &str, errno: i32, words: &str| {
        let (found, said) = refused(point, text);
        assert_eq!(found, errno, "{text}: {said}");
        assert!(said.contains(words), "{text}: {said}");
    };
    let local = Place::with_vault();
    local.mount(&[]).succeeded();
    let point = local.point();
    fill(&point, 20);
    is(&point, "nonsense", libc::EINVAL, "unknown command");
    is(&point, "rotate now", libc::EINVAL, "no argument");
    // A new key is on offer for a while before it is used.
    command(&point, "rotate").expect("begun");
    is(
        &point,
        "reencrypt",
        libc::EBUSY,
        "rotate is under way since ",
    );
    wait_for_the_end(&point);
    // The key of now is disabled; then it is another one of the same name.
    let kms = local_kms(&local);
    let by_command = |name: &str, code: i32, words: &str| {
        for path in [&point, &local.vault()] {
            local
                .run([name.as_ref(), path.as_os_str()])
                .failed(code, words);
        }
    };
    kms.set_enabled("default", false).expect("disabled");
    is(&point, "rotate", libc::EKEYREVOKED, "disabled");
    by_command("rotate", 4, "disabled");
    kms.set_enabled("default", true).expect("enabled");
    let (kept, gone) = (local.path().join("kms"), local.path().join("gone"));
    std::fs::rename(&kept, &gone).expect("moved");
    local_kms(&local).create("default").expect("another key");
    is(&point, "reencrypt", libc::ENOKEY, "local-kms://default");
    by_command("reencrypt", 4, "local-kms://default");
    std::fs::remove_dir_all(&kept).expect("removed");
    std::fs::rename(&gone, &kept).expect("back");
    command(&point, "rotate").expect("all is well again");
    wait_for_the_end(&point);
    assert_eq!(status(&point)["active_generation"], 3);

    let world = World::with_vault(1);
    world.mount_impatient("").succeeded();
    let point = world.place.point();
    let denied = Answer::Error(400, "AccessDeniedException", "User is not authorized.");
    for (answer, errno, words, code) in [
        (denied, libc::EACCES, "may not do kms:Decrypt", 4),
        (Answer::Hang, libc::ETIMEDOUT, "", 5),
        (Answer::Reset, libc::ETIMEDOUT, "", 5),
    ] {
        world.proxy.set(answer.clone());
        for what in ["rotate", "reencrypt", "rewrap"] {
            is(&point, what, errno, words);
            let (_, said) = refused(&point, what);
            assert!(said.contains(&format!("{what}: failed: ")), "{said}");
            assert!(said.contains(&world.keys[0]), "the key is named: {said}");
            world.run(what, &[], "").failed(code, words);
        }
    }
    assert_eq!(status(&point)["active_generation"], 1);
    world.proxy.set(Answer::Forward);
    crate::support::process::detach(&point);
}

/// Keys that stand under a generation, counted in the raw records.
fn under(place: &Place, generation: u64) -> u64 {
    let sql = "SELECT (SELECT count(*) FROM node WHERE generation = ?1) \
               + (SELECT count(*) FROM version WHERE generation = ?1)";
    let count: i64 = database(place)
        .query_row(sql, [generation as i64], |row| row.get(0))
        .expect("a count");
    count as u64
}

fn keys_of(status: &Value, generation: u64) -> Option<u64> {
    let all = status["generations"].as_array().expect("a list");
    let it = all.iter().find(|g| g["generation"] == generation)?;
    it["keys"].as_u64()
}

#[test]
fn status_tells_how_far_a_rotation_is_and_how_many_keys_each_generation_has() {
    let place = Place::with_vault();
    let server = serve_with(&place, SLOWLY);
    let point = place.point();
    fill(&point, SECRETS);
    assert_eq!(keys_of(&status(&point), 1), Some(KEYS));
    for (what, from) in [("rotate", 1), ("reencrypt", 2)] {
        command(&point, what).expect("begun");
        let begun = now();
        let mut done = 0;
        let mut told = 0;
        wait_for("its end", SOON, || {
            let now = status(&point);
            let rotation = &now["rotation"];
            if rotation["phase"] != "migrating" || rotation["total"] == 0 {
                return rotation.is_null();
            }
            let number = |name: &str| rotation[name].as_u64().expect("a number");
            assert_eq!(rotation["change"], what);
            assert_eq!((number("from"), number("to")), (from, from + 1));
            assert_eq!(number("total"), KEYS, "{now:#}");
            assert!(
                (begun - 5..=begun + 1).contains(&rotation["started"].as_i64().expect("a time"))
            );
            // Every key is under one of both, and what is done is done.
            assert!(
                (done..=under(&place, from + 1)).contains(&number("done")),
                "{now:#}"
            );
            done = number("done");
            assert_eq!(keys_of(&now, from + 1), Some(done));
            assert_eq!(keys_of(&now, from), Some(KEYS - done));
            let rate = rotation["rate"].as_f64().expect("a rate");
            match rate > 0.0 {
                true => {
                    let left = ((KEYS - done) as f64 / rate).ceil() as u64;
                    assert_eq!(rotation["eta_seconds"], left, "{now:#}");
                    told += 1;
                }
                false => assert!(rotation["eta_seconds"].is_null(), "{now:#}"),
            }
            false
        });
        assert!(told > 0, "a rate was told");
        let after = status(&point);
        assert_eq!(keys_of(&after, from), None, "{after:#}");
        assert_eq!(keys_of(&after, from + 1), Some(KEYS));
        assert_eq!((under(&place, from), under(&place, from + 1)), (0, KEYS));
    }
    umount(&place);
    assert_eq!(server.ended(SOON).0, Some(0));
}

#[test]
fn status_tells_which_copies_need_which_generation_and_when_each_kind_ended_last() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fill(&place.point(), 20);
    umount(&place);
    let begun = now();
    let mut copies = Vec::new();
    for (number, what) in ["rotate", "rewrap", "reencrypt", "rotate"]
        .into_iter()
        .enumerate()
    {
        let copied = place.path().join(format!("copy-{number}"));
        copy(&place.vault(), &copied);
        let vault = place.vault();
        let generation = json(&place, "status")["active_generation"].as_u64();
        copies.push((copied, generation.expect("a number"), now()));
        let ran = place.run([what.as_ref(), vault.as_os_str()]);
        assert!(ran.0.status.success(), "{}", ran.stderr());
    }
    place.mount(&[]).succeeded();
    for told in [status(&place.point()), json(&place, "status")] {
        let retired = told["retired_generations"].as_array().expect("a list");
        let numbers: Vec<_> = retired
            .iter()
            .filter_map(|r| r["generation"].as_u64())
            .collect();
        assert_eq!(numbers, [1, 2, 3], "{told:#}");
        for (_, generation, made) in &copies {
            let needed = retired.iter().find(|r| r["generation"] == *generation);
            let until = needed.expect("it is told")["retired"]
                .as_i64()
                .expect("a time");
            assert!(*made <= until && until <= now(), "{told:#}");
        }
        let ended = |what: &str| told["last_rotations"][what].as_i64().expect("a time");
        assert!(begun <= ended("rewrap") && ended("rewrap") <= ended("reencrypt"));
        assert!(ended("reencrypt") <= ended("rotate") && ended("rotate") <= now());
    }
    umount(&place);
    // And they do: each opens with the keys of its time.
    for (copied, generation, _) in copies {
        let args = ["status".as_ref(), copied.as_os_str(), "--json".as_ref()];
        let mut command = place.command();
        command
            .args(args)
            .env("SECRETFS_ANCHOR_DIR", place.path().join("elsewhere"));
        let told = Ran(command.output().expect("it runs")).succeeded().stdout();
        let told: Value = serde_json::from_str(&told).expect("JSON");
        assert_eq!(told["active_generation"], generation, "{told:#}");
    }
}

#[test]
fn progress_is_a_bar_on_a_terminal_and_lines_elsewhere() {
    needs(&["script"]);
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fill(&place.point(), SECRETS);
    umount(&place);
    let mounted = || serve_with(&place, SLOWLY);
    let (vault, point) = (place.vault(), place.point());
    // On a mount, and in the command itself.
    for server in [Some(()), None] {
        let server = server.map(|()| mounted());
        let path = if server.is_some() { &point } else { &vault };
        let slowly = |mut command: Command| {
            command.env("FAILPOINTS", SLOWLY).env("TERM", "xterm");
            Ran(command.stdin(Stdio::null()).output().expect("it runs"))
        };
        let mut plain = place.command();
        plain.arg("rotate").arg(path).arg("--wait");
        let plain = slowly(plain);
        let lines = plain.stderr();
        let migrating = lines.lines().filter(|line| *line == "rotate: migrating");
        assert_eq!(migrating.count(), 1, "{lines}");
        assert!(
            !lines.contains('\u{1b}') && !lines.contains('\r'),
            "{lines:?}"
        );
        assert_eq!(plain.stdout(), crate::support::rotating::done("rotate"));

        let mut on_terminal = Command::new("script");
        on_terminal.envs(
            place
                .command()
                .get_envs()
                .filter_map(|(k, v)| Some((k, v?))),
        );
        let line = format!(
            "{} rotate {} --wait",
            crate::support::process::PROGRAM,
            path.display()
        );
        on_terminal.args(["-qec", &line, "/dev/null"]);
        let shown = slowly(on_terminal);
        assert!(shown.0.status.success(), "{}", shown.stdout());
        let shown = shown.stdout();
        assert!(
            shown.contains("rotate migrating [█") && shown.contains("/1,206 "),
            "{shown:?}"
        );
        assert!(
            !shown.contains("█] 0/0"),
            "full before it has begun: {shown:?}"
        );
        assert!(
            shown.contains('\u{1b}') && shown.contains("rotate: done"),
            "{shown:?}"
        );
        if let Some(server) = server {
            umount(&place);
            assert_eq!(server.ended(SOON).0, Some(0));
        }
    }
}

#[test]
fn a_rotation_is_due_so_long_after_the_last_one_and_a_rewrap_is_none() {
    let place = Place::with_vault();
    // How many days after the vault was made it is mounted, what is done then, and the generation
    // that is used before and after.
    let days = [
        (1, "", 1, 1),
        (89, "rewrap", 1, 1),
        (91, "", 2, 2),
        // A rewrap has replaced nothing; 91 days ago from here is too long.
        (100, "reencrypt", 2, 3),
        (182, "rewrap", 3, 3),
        (189, "rewrap", 3, 3),
        (191, "rotate", 4, 5),
        (280, "rewrap", 5, 5),
        (282, "", 6, 6),
    ];
    for (day, what, before, after) in days {
        let mut mount = place.command();
        mount.arg("mount").arg(place.vault()).arg(place.point());
        mount.args(["-f", "-o", "rotate-every=90d"]);
        ahead(&mut mount, &format!("+{day}d"));
        let server = Server::start(mount);
        let point = place.point();
        let is = |generation: u64| {
            let now = status(&point);
            let rotation = &now["rotation"];
            assert!(
                now["active_generation"].as_u64() <= Some(generation),
                "day {day}: {now:#}"
            );
            now["active_generation"] == generation && rotation.is_null()
        };
        wait_for("what is due", SOON, || is(before));
        if !what.is_empty() {
            // It asks whether one is due before it ends.
            command(&point, what).unwrap_or_else(|error| panic!("day {day}, {what}: {error}"));
            wait_for("the end", SOON, || is(after));
        }
        umount(&place);
        assert_eq!(server.ended(SOON).0, Some(0));
    }
}

#[test]
fn who_names_a_mount_where_the_vault_is_meant_is_told() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    for command in ["audit", "check"] {
        place
            .run([command.as_ref(), place.point().as_os_str()])
            .failed(3, "not the vault: name its directory");
    }
}

#[test]
fn audit_is_for_people_for_programs_and_for_who_wants_to_know_if_it_is_whole() {
    let place = Place::with_vault();
    let vault = place.vault();
    for what in ["rotate", "rewrap", "reencrypt"] {
        let ran = place.run([what.as_ref(), vault.as_os_str()]);
        assert!(ran.0.status.success(), "{}", ran.stderr());
    }
    let audit = |flags: &[&str]| {
        let mut command = place.command();
        let ran = command.arg("audit").arg(&vault).args(flags).output();
        Ran(ran.expect("it runs")).succeeded().stdout()
    };
    let lines = audit(&["--json"]);
    let events: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    for (at, event) in events.iter().enumerate() {
        assert_eq!(event["sequence"], at as u64 + 1, "{event}");
        assert!(event["at"].is_number(), "{event}");
    }
    for what in ["rotate", "rewrap", "reencrypt"] {
        let told = |event: &&Value| event["event"] == "change-finished" && event["change"] == what;
        assert_eq!(events.iter().filter(told).count(), 1, "{lines}");
    }
    let people = audit(&[]);
    assert_eq!(people.lines().count(), events.len());
    assert!(
        people
            .lines()
            .all(|line| line.contains("at=20") && line.contains("event="))
    );
    let whole = format!("{} events, none missing or changed\n", events.len());
    assert_eq!(audit(&["--verify"]), whole);
    // The same through a mount.
    place.mount(&[]).succeeded();
    let file = place.point().join(".secretfs/audit");
    let text = std::fs::read_to_string(file).expect("readable");
    let told = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"));
    assert_eq!(told.collect::<Vec<Value>>(), events);
    umount(&place);
}
