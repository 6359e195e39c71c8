//! Where the vaults are, and copies of them to work on.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rusqlite::Connection;
use serde_json::{Value, json};

use crate::support::process::{Place, Ran, detach, wait_for};

/// The vaults, and what each is for.
pub const VAULTS: &[(&str, &str)] = &[
    ("new", "a vault that was just made"),
    ("early", "an early copy of the next one"),
    ("tree", "nodes of every kind, with their attributes"),
    (
        "left-overs",
        "what a killed daemon leaves: orphans, an older version, a begun one",
    ),
    ("killed", "the newest commits are in the log alone"),
    (
        "history",
        "events of every kind; two KMS keys, one of two versions",
    ),
    ("prepared", "a rotate with its master key pending"),
    (
        "rotate",
        "a rotate under way: some records are under each master key",
    ),
    (
        "reencrypt",
        "a reencrypt under way: a directory has entries under two keys",
    ),
    (
        "sums",
        "a reencrypt that recomputes the sums: the system node has two keys",
    ),
    ("rewrap", "a rewrap that scrubs the old wraps"),
];

pub fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The directory of one of the vaults.
pub fn of(name: &str) -> PathBuf {
    here().join("vaults").join(name)
}

fn copy_files(from: &Path, to: &Path) {
    fs::create_dir(to).expect("made");
    fs::set_permissions(to, Permissions::from_mode(0o700)).expect("set");
    for file in fs::read_dir(from).expect("a directory") {
        let file = file.expect("a file");
        let copy = to.join(file.file_name());
        fs::copy(file.path(), &copy).expect("copied");
        fs::set_permissions(&copy, Permissions::from_mode(0o600)).expect("set");
    }
}

/// A copy of a vault and of its keys, on a host that has never seen it.
pub fn copied(name: &str) -> Place {
    let place = Place::new();
    copy_files(&of(name).join("vault"), &place.vault());
    copy_files(&of(name).join("kms"), &place.path().join("kms"));
    place
}

/// Keeps a vault that nobody has open, and its keys, under a name. With `whole`, what is in the log is
/// brought into the database first, and that takes no more room than it needs.
pub fn keep(place: &Place, name: &str, whole: bool) {
    let target = of(name);
    let _ = fs::remove_dir_all(&target);
    fs::create_dir_all(target.join("vault")).expect("made");
    fs::create_dir_all(target.join("kms")).expect("made");
    if whole {
        let database = Connection::open(place.vault().join("vault.db")).expect("a database");
        database.execute_batch("VACUUM").expect("vacuumed");
        let truncate = "PRAGMA wal_checkpoint(TRUNCATE)";
        database
            .query_row(truncate, [], |_| Ok(()))
            .expect("checkpointed");
    }
    let mut bytes = 0;
    for file in ["vault.db", "vault.db-wal"] {
        let from = place.vault().join(file);
        if fs::metadata(&from).is_ok_and(|found| found.len() > 0) {
            bytes += fs::copy(from, target.join("vault").join(file)).expect("copied");
        }
    }
    assert!(bytes <= 200 << 10, "{name} has {bytes} bytes");
    for key in fs::read_dir(place.path().join("kms")).expect("keys") {
        let key = key.expect("a key");
        if key.path().extension() == Some(OsStr::new("key")) {
            fs::copy(key.path(), target.join("kms").join(key.file_name())).expect("copied");
        }
    }
    let expected = serde_json::to_string_pretty(&found_in(&copied(name))).expect("JSON");
    fs::write(target.join("expected.json"), expected + "\n").expect("written");
}

fn told(place: &Place, command: &str) -> Ran {
    let vault = place.vault();
    let args = [command.as_ref(), vault.as_os_str(), "--json".as_ref()];
    place.run(args).succeeded()
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// Runs one of the programs beside this file in a mount.
pub fn python(place: &Place, program: &str, args: &[&str]) -> String {
    let mut python = Command::new("python3");
    python.arg(here().join(program)).args(args);
    python.current_dir(place.point()).stdin(Stdio::null());
    let ran = python.env("LC_ALL", "C.UTF-8").output();
    Ran(ran.expect("python3 runs")).succeeded().stdout()
}

/// Unmounts, and waits for the daemon.
pub fn unmount(place: &Place) {
    detach(&place.point());
    let soon = std::time::Duration::from_secs(60);
    wait_for("the daemon's end", soon, || place.daemons().is_empty());
}

/// What the program finds in a vault: the keys, what `check` counts, the history, and the tree that it
/// shows when it is mounted.
pub fn found_in(place: &Place) -> Value {
    let mut check = parsed(&told(place, "check").stdout());
    let audit: Vec<Value> = told(place, "audit").stdout().lines().map(parsed).collect();
    assert_eq!(check["problem_count"], 0, "{check:#}");
    let check = check.as_object_mut().expect("an object");
    check.retain(|name, _| !name.starts_with("problem"));
    let status = parsed(&told(place, "status").stdout());
    let generations = status["generations"].as_array().expect("a list").iter();
    let generations: Vec<Value> = generations
        .map(|found| {
            json!({
                "generation": found["generation"], "state": found["state"],
                "created": found["created"], "wraps": found["wraps"],
            })
        })
        .collect();
    let rotation = &status["rotation"];
    place.mount(&["-o", "ro"]).succeeded();
    let tree = parsed(&python(place, "describe.py", &[]));
    unmount(place);
    let rotation = match rotation {
        Value::Null => Value::Null,
        _ => json!({
            "kind": rotation["change"], "phase": rotation["phase"],
            "from": rotation["from"], "to": rotation["to"],
        }),
    };
    json!({
        "vault": status["vault"],
        "format": status["format"],
        "keyring": status["keyring_sequence"],
        "commit": status["commit_sequence"],
        "active_generation": status["active_generation"],
        "generations": generations,
        "rotation": rotation,
        "check": check,
        "events": audit,
        "tree": tree,
    })
}
