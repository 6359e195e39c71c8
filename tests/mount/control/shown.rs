//! What the control files show, and to whom.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use super::{ended, file, shared};
use crate::support::layer::{Layer, caller_as};
use crate::support::process::{PROGRAM, Place, Ran, status};
use crate::support::rotating::{command, serve_with, wait_for_the_end};
use crate::support::socket::ask;
use crate::support::tree::{ALICE, BOB, as_user};
use serde_json::Value;

/// The names of members.
fn members(value: &Value) -> Vec<&str> {
    let members = value.as_object().expect("an object").keys();
    members.map(String::as_str).collect()
}

const PUBLIC: [&str; 8] = [
    "format",
    "integrity",
    "integrity_since",
    "integrity_since_time",
    "mode",
    "program",
    "state",
    "view",
];

#[test]
fn who_may_not_command_sees_the_public_part_of_status_alone() {
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    let text_for = |uid: Option<u32>| {
        let read = || {
            let told = fs::metadata(file(&place, "status")).expect("stat").len();
            let text = fs::read_to_string(file(&place, "status")).expect("readable");
            assert_eq!(told, text.len() as u64);
            text
        };
        match uid {
            Some(uid) => as_user(uid, &[], read),
            None => read(),
        }
    };
    // By turns: what the kernel keeps of one is not told to the other.
    for _ in 0..20 {
        let public = text_for(Some(BOB));
        let parsed: Value = serde_json::from_str(&public).expect("JSON");
        assert_eq!(members(&parsed), PUBLIC, "{public}");
        assert_eq!(parsed["state"], "unlocked");
        assert_eq!(parsed["integrity"], "verified");
        for hidden in [
            place.path().to_str().expect("UTF-8"),
            "kms",
            "pid",
            "arn:",
            "\"locked\"",
        ] {
            assert!(!public.contains(hidden), "{hidden}: {public}");
        }
        let full: Value = serde_json::from_str(&text_for(None)).expect("JSON");
        assert_eq!(full["view"], "full");
        assert!(full["pid"].is_number() && full["mountpoint"].is_string());
        for name in PUBLIC.into_iter().filter(|name| *name != "view") {
            assert_eq!(full[name], parsed[name], "{name}");
        }
    }
    // Together, too.
    std::thread::scope(|scope| {
        for uid in [None, Some(ALICE), Some(BOB)] {
            scope.spawn(move || (0..200).for_each(|_| drop(text_for(uid))));
        }
    });
    // The command prints what there is.
    let program = place.path().join("program");
    fs::copy(PROGRAM, &program).expect("copied");
    let mut asked = Command::new("setpriv");
    asked.args(["--reuid", "4002", "--regid", "4002", "--clear-groups"]);
    asked.arg(&program).arg("status").arg(place.point());
    let told = Ran(asked.output().expect("setpriv runs")).succeeded();
    assert!(told.stdout().contains("integrity: verified"));
    assert!(told.stdout().contains("view: public"));
    ended(server);
}

#[test]
fn what_is_wrong_is_told_to_everybody_in_a_word_and_what_it_is_to_who_may_command() {
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    let elsewhere = place.path().join("elsewhere");
    fs::rename(place.vault(), &elsewhere).expect("moved");
    let full = status(&place.point())["integrity"].clone();
    let full = full.as_str().expect("words");
    assert!(
        full.starts_with("failed: ") && full.contains(place.vault().to_str().expect("UTF-8")),
        "{full}"
    );
    let public = as_user(BOB, &[], || status(&place.point()));
    assert_eq!(public["integrity"], "failed");
    fs::rename(&elsewhere, place.vault()).expect("back");
    ended(server);
}

#[test]
fn stat_of_the_history_reads_it_once_until_it_grows() {
    // Fail points are those of the whole process.
    let scenario = fail::FailScenario::setup();
    let layer = Layer::new();
    let fs = layer.open();
    let root = caller_as(1, 0);
    let audit = fs.lookup_as(root, 1 << 63, b"audit").expect("there");
    let reads = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&reads);
    fail::cfg_callback("read-history", move || {
        counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
    })
    .expect("a fail point");
    let stat = || {
        for _ in 0..100 {
            let found = fs.getattr_as(root, audit.ino, None).expect("there");
            let opened = fs.open_as(root, audit.ino, libc::O_RDONLY).expect("opened");
            assert!(found.size >= audit.size);
            fs.release(opened);
        }
        reads.swap(0, std::sync::atomic::Ordering::SeqCst)
    };
    assert_eq!(stat(), 0);
    fs.0.vault()
        .begin(&secretfs::vault::Request::Rotate)
        .expect("begun");
    let longer = fs.lookup_as(root, 1 << 63, b"audit").expect("there");
    assert!(longer.size > audit.size);
    scenario.teardown();
}

#[test]
fn what_stat_tells_is_what_is_then_read_and_nothing_stands_behind_it() {
    crate::support::tree::needs(&["python3"]);
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    command(&place.point(), "nonsense").expect_err("refused");
    let script = r#"
import json, os, subprocess, sys
def run(*args): return subprocess.run(args, check=True, capture_output=True).stdout
for name in sys.argv[1:]:
    for n in range(20):
        told = int(run("stat", "-c", "%s", name))
        assert told == len(run("cat", name)), (name, n)
        assert os.stat(name).st_size == len(open(name, "rb").read()), name
        with open(name, "rb") as f: assert os.fstat(f.fileno()).st_size == len(f.read()), name
        text = open(name).read()
        assert int(run("wc", "-c", name).split()[0]) == len(run("dd", "status=none", "if=" + name)), name
        assert text == text.rstrip() + "\n" and "  \n" not in text, name
        run("cp", name, "/dev/null")
json.loads(open(sys.argv[1]).read())
"#;
    let python = |program: &mut Command, names: &[&str]| {
        let names = names.iter().map(|name| file(&place, name));
        let output = program.args(["-c", script]).args(names).output();
        let ran = Ran(output.expect("python3 runs"));
        assert!(ran.0.status.success(), "{}", ran.stderr());
    };
    python(
        &mut Command::new("/usr/bin/python3"),
        &["status", "control", "audit"],
    );
    let mut by_bob = Command::new("setpriv");
    by_bob.args(["--reuid", "4002", "--regid", "4002", "--clear-groups"]);
    python(by_bob.arg("/usr/bin/python3"), &["status"]);
    ended(server);
}

#[test]
fn what_was_told_is_not_shown_once_a_command_has_changed_it() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    for round in 0..5 {
        let before = fs::metadata(file(&place, "control")).expect("stat").len();
        let text = ["nonsense", "rotate now"][round % 2];
        command(&place.point(), text).expect_err("refused");
        let said = fs::read_to_string(file(&place, "control")).expect("readable");
        assert_ne!(said.len() as u64, before, "{said}");
        // Told, changed over the socket, and read.
        fs::metadata(file(&place, "control")).expect("stat");
        ask(&place.vault(), "control rewrap nonsense");
        let said = fs::read_to_string(file(&place, "control")).expect("readable");
        assert!(said.contains("nonsense"), "{said}");
    }
    ended(server);
}

/// What stands beside the seconds is the same time.
fn check_times(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let beside = members.get(&format!("{name}_time"));
                match (name.as_str(), member.as_i64(), beside) {
                    (_, Some(seconds), Some(time)) => {
                        let time = time.as_str().expect("text");
                        let date = Command::new("date")
                            .args(["-u", "-d", time, "+%s"])
                            .output()
                            .expect("date runs");
                        let date = String::from_utf8_lossy(&date.stdout).trim().to_owned();
                        assert_eq!(date, seconds.to_string(), "{name}: {time}");
                        assert_eq!(time.len(), "2026-11-30T06:09:07Z".len());
                        found.push(name.clone());
                    }
                    ("at" | "created" | "since" | "started" | "retired", Some(_), None) => {
                        panic!("no date beside {name}")
                    }
                    _ => check_times(member, found),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| check_times(item, found)),
        _ => {}
    }
}

#[test]
fn every_time_is_told_in_seconds_and_as_a_date() {
    let place = Place::with_vault();
    let server = place.serve(&[]);
    command(&place.point(), "rotate").expect("begun");
    let now = wait_for_the_end(&place.point());
    let mut found = Vec::new();
    check_times(&now, &mut found);
    for name in ["integrity_since", "created", "retired", "at"] {
        assert!(found.iter().any(|n| n == name), "{name}: {now:#}");
    }
    assert!(now["last_rotations_time"]["rotate"].is_string(), "{now:#}");
    let history = fs::read_to_string(file(&place, "audit")).expect("readable");
    let mut dates = Vec::new();
    for line in history.lines() {
        check_times(&serde_json::from_str(line).expect("JSON"), &mut dates);
    }
    assert_eq!(dates.len(), history.lines().count());
    let said = fs::read_to_string(file(&place, "control")).expect("readable");
    let mut words = said.split(' ');
    let (at, time) = (
        words.next().expect("seconds"),
        words.next().expect("a date"),
    );
    let both = serde_json::json!({"at": at.parse::<i64>().expect("a number"), "at_time": time});
    check_times(&both, &mut dates);
    ended(server);
}

#[test]
fn the_log_as_json_shows_values_as_they_are() {
    let place = Place::with_vault();
    let server = place.serve(&["-o", "log-format=json,log-level=trace"]);
    fs::write(place.point().join("a"), "s3cret").expect("written");
    command(&place.point(), "nonsense").expect_err("refused");
    command(&place.point(), "rewrap local-kms://other").expect_err("refused");
    command(&place.point(), "rotate").expect("begun");
    wait_for_the_end(&place.point());
    let log = ended(server);
    let mut mounted = false;
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for (name, value) in event.as_object().expect("an object") {
            let text = value.as_str().unwrap_or_default();
            let debug = ["Some(", "None", "Ok(", "Err(", "{ ", "\""];
            assert!(!debug.iter().any(|form| text.contains(form)), "{line}");
            // A word with a capital is the name of something in the program.
            let is_name = text.chars().next().is_some_and(char::is_uppercase);
            let may_be = ["level", "message"].contains(&name.as_str());
            assert!(may_be || !is_name, "{line}");
        }
        if event["message"] == "mounted" {
            mounted = true;
            assert!(["all", "arena", "none"].contains(&event["locked"].as_str().expect("text")));
        }
    }
    assert!(mounted, "{log}");
}

/// A passed descriptor of a file shows what its opener may see, and no more is told of it.
#[test]
fn a_file_that_is_open_can_be_read_by_whom_it_was_passed_on_to() {
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    let mut status = File::open(file(&place, "status")).expect("opened");
    let text = as_user(BOB, &[], || {
        let mut text = String::new();
        status.read_to_string(&mut text).expect("readable");
        text
    });
    assert!(text.contains("\"view\": \"full\""), "{text}");
    // It is not his to open again; by its name he opens what he may see.
    let again = format!("/proc/self/fd/{}", status.as_raw_fd());
    let refused = as_user(BOB, &[], || {
        fs::read_to_string(&again).expect_err("not his")
    });
    assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
    drop(status);
    ended(server);
}

/// An overlay asks for everybody as who has mounted it: the mode keeps others out.
#[test]
fn who_may_not_command_sees_no_more_through_an_overlay() {
    let place = Place::with_vault();
    let server = shared(&place, &[]);
    let over = ["upper", "work", "over"].map(|name| place.path().join(name));
    for directory in &over {
        fs::create_dir(directory).expect("made");
    }
    let [upper, work, over] = over;
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        place.point().display(),
        upper.display(),
        work.display()
    );
    let options = ["-t", "overlay", "overlay", "-o", &options].map(std::ffi::OsStr::new);
    crate::support::process::system("mount", &[&options[..], &[over.as_os_str()]].concat());
    let status = over.join(".secretfs/status");
    let other = as_user(BOB, &[], || fs::read_to_string(&status));
    let own = fs::read_to_string(&status).expect("root's");
    crate::support::process::system("umount", &[over.as_os_str()]);
    assert!(own.contains("\"view\": \"full\""), "{own}");
    let seen = other.unwrap_or_default();
    assert!(!seen.contains("full"), "{seen}");
    ended(server);
}

/// The names of all members, those of members behind a dot.
fn all_members(of: &str, value: &Value, found: &mut std::collections::BTreeSet<String>) {
    match value {
        // Kinds of rotations are its names, and the newest event has members of its own.
        _ if ["last_rotations", "last_event"].contains(&of) => {}
        Value::Object(members) => {
            for (name, member) in members {
                let is_date = |of: &str| members.contains_key(of);
                if name.strip_suffix("_time").is_some_and(is_date) {
                    continue;
                }
                let name = match of {
                    "" => name.clone(),
                    of => format!("{of}.{name}"),
                };
                all_members(&name, member, found);
                found.insert(name);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| all_members(of, item, found)),
        _ => {}
    }
}

#[test]
fn every_member_of_status_stands_in_its_man_page() {
    let place = Place::with_vault();
    let mut found = std::collections::BTreeSet::new();
    let shown = |path: &Path| -> Value {
        let ran = place.run(["status".as_ref(), path.as_os_str(), "--json".as_ref()]);
        serde_json::from_str(&ran.succeeded().stdout()).expect("JSON")
    };
    all_members("", &shown(&place.vault()), &mut found);
    // One rotation has ended, and one stays in its middle.
    let server = place.serve(&[]);
    command(&place.point(), "rotate").expect("begun");
    wait_for_the_end(&place.point());
    ended(server);
    let server = serve_with(&place, "migrate-before=pause");
    command(&place.point(), "reencrypt").expect("begun");
    for path in [place.point(), place.vault()] {
        let now = shown(&path);
        assert!(now["rotation"].is_object(), "{now:#}");
        all_members("", &now, &mut found);
    }
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("man/secretfs-status.1");
    let page = fs::read_to_string(page).expect("a page");
    let table: Vec<&str> = page
        .lines()
        .skip_while(|line| *line != ".SH MEMBERS")
        .filter_map(|line| line.strip_prefix(".B "))
        .collect();
    for name in &found {
        assert!(table.contains(&name.as_str()), "{name} is not in the page");
    }
    for name in [
        "rotation.trouble",
        "held_for_writing_by.pid",
        "anchor.commit",
    ] {
        assert!(found.contains(name), "{found:?}");
    }
    drop(server);
}
