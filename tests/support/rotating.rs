//! What tests of rotations have in common: secrets that are known, and how to ask and to wait.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use secretfs::vault::{Phase, Request, Vault, VaultError};
use serde_json::Value;

use super::process::{Place, Server, status};

/// What a command tells of the vault.
pub fn json(place: &Place, command: &str) -> Value {
    let path = place.vault();
    let ran = place.run([command.as_ref(), path.as_os_str(), "--json".as_ref()]);
    serde_json::from_str(&ran.succeeded().stdout()).expect("JSON")
}

/// What a command says on standard output when it has done what was asked.
pub fn done(what: &str) -> String {
    let keeps = "data keys are what they were: whoever had the old master key and a copy of the vault \
                 goes on to have those of all that was in it; after a compromise, replace them with \
                 `secretfs reencrypt`";
    match what {
        "rotate" => format!("rotate: done\n{keeps}\n"),
        _ => format!("{what}: done\n"),
    }
}

/// Writes to the control file.
pub fn command(point: &Path, text: &str) -> std::io::Result<()> {
    std::fs::write(point.join(".secretfs/control"), text)
}

/// Waits until no rotation is under way.
#[track_caller]
pub fn wait_for_the_end(point: &Path) -> Value {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let status = status(point);
        if status["rotation"].is_null() {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Makes secrets in four directories.
pub fn fill(point: &Path, count: usize) {
    for directory in 0..4 {
        std::fs::create_dir_all(point.join(format!("d{directory}"))).expect("made");
    }
    for n in 0..count {
        std::fs::write(secret(point, n), content(n)).expect("written");
    }
}

/// Where it is.
pub fn secret(point: &Path, n: usize) -> PathBuf {
    point.join(format!("d{}/secret-{n}", n % 4))
}

/// What a secret holds.
pub fn content(n: usize) -> Vec<u8> {
    // Some of several chunks.
    let length = if n.is_multiple_of(50) {
        150_000
    } else {
        20 + n % 700
    };
    format!("the content of secret {n} ")
        .into_bytes()
        .repeat(length / 20 + 1)
}

#[track_caller]
pub fn all_is_there(point: &Path, count: usize) {
    for n in 0..count {
        assert!(
            std::fs::read(secret(point, n)).expect("readable") == content(n),
            "secret {n}"
        );
    }
}

#[track_caller]
pub fn check_is_clean(place: &Place) {
    let report = json(place, "check");
    assert_eq!(report["problem_count"], 0, "{report:#}");
}

/// Serves the vault for writing in a process of its own, with fail points.
pub fn serve_with(place: &Place, fail_points: &str) -> Server {
    let mut command = place.command();
    command.env("FAILPOINTS", fail_points).arg("mount");
    command.arg(place.vault()).arg(place.point()).arg("-f");
    Server::start(command)
}

/// Waits until a rotation is in its middle: some keys are done, and not all.
#[track_caller]
pub fn wait_for_the_middle(point: &Path) -> Value {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let status = status(point);
        let rotation = &status["rotation"];
        assert!(!rotation.is_null(), "it ended: {status:#}");
        let number = |name: &str| rotation[name].as_u64().expect("a number");
        if rotation["phase"] == "migrating"
            && 0 < number("done")
            && number("done") < number("total")
        {
            return status;
        }
        assert!(Instant::now() < deadline, "{status:#}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Begins to replace all data keys, or goes on with it, by about as many transactions, each of which
/// looks at one name of a directory, and then by as many looks at one record.
pub fn reencrypt(vault: &Vault, transactions: u32) {
    fail::cfg("names-at-a-time", "return(1)").expect("a fail point");
    fail::cfg("keys-at-a-time", "return(1)").expect("a fail point");
    fail::cfg("offer", "return").expect("a fail point");
    if !vault.is_rotating() {
        vault.begin(&Request::Reencrypt).expect("begun");
    }
    let migrates = || {
        vault
            .progress()
            .is_some_and(|p| matches!(p.phase, Phase::Migrating | Phase::Verifying))
    };
    let left = Cell::new(transactions);
    let go_on = || match migrates() && left.replace(left.get().saturating_sub(1)) == 0 {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    // What has the vault mounted goes on by itself, too.
    match vault.drive(&go_on) {
        Ok(_) | Err(VaultError::Busy(_)) => {}
        Err(error) => panic!("not driven: {error}"),
    }
}
