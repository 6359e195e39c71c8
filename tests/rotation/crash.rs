//! A rotation that dies at each of its steps: the next mount finishes it, and nothing is lost.
//!
//! The daemon aborts where a fail point tells it to, as if it were killed there.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::process::{Place, status, wait_for};

const SECRETS: usize = 600;
/// Mounting takes less; the mount gives up after 30 s.
const PATIENCE: Duration = Duration::from_secs(20);
const DIRECTORIES: usize = 40;

fn content(n: usize) -> Vec<u8> {
    let length = if n.is_multiple_of(60) {
        150_000
    } else {
        20 + n
    };
    (0..length).map(|at| (at * 7 + n) as u8).collect()
}

/// What lasts long enough to die in its middle: a few names at a time, and a few records.
const FEW: &str = "names-at-a-time=return(37);keys-at-a-time=return(100)";

fn mount(place: &Place, fail_at: Option<&str>) {
    let mut command = place.command();
    command.arg("mount").arg(place.vault()).arg(place.point());
    // Through the mount, a vault goes to keys only that the mount names.
    command.args(["-o", "kms-key=local-kms://default,kms-key=local-kms://b"]);
    if let Some(fail_at) = fail_at {
        command.env("FAILPOINTS", format!("{FEW};{fail_at}"));
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut mounting = command.spawn().expect("the program runs");
    let patience = Instant::now() + PATIENCE;
    while mounting.try_wait().expect("a child").is_none() && Instant::now() < patience {
        std::thread::sleep(Duration::from_millis(10));
    }
    let ended = mounting.try_wait().expect("a child").is_some();
    let at_work = (!ended).then(|| what_daemons_do(place));
    let mounted = mounting.wait_with_output().expect("a child");
    assert!(
        mounted.status.success(),
        "{}{}",
        String::from_utf8_lossy(&mounted.stderr),
        at_work.unwrap_or_default()
    );
}

/// What each thread of the daemons is doing, for who looks for what it waits for.
fn what_daemons_do(place: &Place) -> String {
    let stacks = place.daemons().into_iter().map(|daemon| {
        let shown = Command::new("gdb")
            .args(["-p", &daemon.to_string(), "-batch", "-ex"])
            .arg("thread apply all bt 30")
            .output();
        let shown = shown.expect("gdb runs").stdout;
        format!("\ndaemon {daemon}:\n{}", String::from_utf8_lossy(&shown))
    });
    stacks.collect()
}

/// A disk that many tests share may take a tenth of a second for each of a thousand syncs.
const SLOW_DISK: Duration = Duration::from_secs(300);

/// One vault, in which each of `cases` is made to die at its place and finished by the next mount.
fn dies_and_is_finished(text: &str, cases: &[String]) {
    let place = Place::with_vault();
    let made = place.run([
        "init".as_ref(),
        place.path().join("other").as_os_str(),
        "--kms-key".as_ref(),
        "local-kms://b".as_ref(),
    ]);
    made.succeeded();
    place.mount(&[]).succeeded();
    for n in 0..SECRETS {
        std::fs::write(place.point().join(format!("s{n}")), content(n)).expect("written");
    }
    for n in 0..DIRECTORIES {
        std::fs::create_dir(place.point().join(format!("d{n}"))).expect("made");
    }
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
    for case in cases {
        mount(&place, Some(case));
        let before = status(&place.point());
        // The command itself may be what dies.
        let asked = std::fs::write(place.point().join(".secretfs/control"), text);
        wait_for(case, SLOW_DISK, || place.daemons().is_empty());
        let _ = nix::mount::umount2(&place.point(), nix::mount::MntFlags::MNT_DETACH);
        // What it has left fits together as it is.
        let vault = place.vault();
        place.run(["check".as_ref(), vault.as_os_str()]).succeeded();
        mount(&place, None);
        let deadline = Instant::now() + SLOW_DISK;
        let after = loop {
            let status = status(&place.point());
            if status["rotation"].is_null() {
                break status;
            }
            assert!(Instant::now() < deadline, "{case}: {status:#}");
            std::thread::sleep(Duration::from_millis(10));
        };
        let generation = |status: &Value| status["active_generation"].as_u64().expect("a number");
        let entered = generation(&after) - generation(&before);
        let rewrapped = after["events"].as_u64() > before["events"].as_u64();
        if !text.starts_with("rewrap") {
            assert!(entered <= 1, "{case}");
            // What was acknowledged is done.
            assert!(asked.is_err() || entered == 1, "{case}: {after:#}");
        } else {
            assert!(asked.is_err() || rewrapped, "{case}: {after:#}");
        }
        let generations = after["generations"].as_array().expect("a list");
        assert_eq!(generations.len(), 1, "{case}: {after:#}");
        for n in 0..SECRETS {
            let found = std::fs::read(place.point().join(format!("s{n}"))).expect("readable");
            assert!(found == content(n), "{case}: secret {n}");
        }
        let listed = std::fs::read_dir(place.point()).expect("listed").count();
        assert_eq!(listed, SECRETS + DIRECTORIES, "{case}");
        for n in 0..DIRECTORIES {
            // By its name, and by what it says itself of its place.
            let above = place.point().join(format!("d{n}/.."));
            let above = std::fs::metadata(above).expect("there");
            assert_eq!(std::os::unix::fs::MetadataExt::ino(&above), 1, "{case}");
        }
        place
            .run(["umount".as_ref(), place.point().as_os_str()])
            .succeeded();
        place.run(["check".as_ref(), vault.as_os_str()]).succeeded();
    }
}

/// The places around each of a number of transitions of the keyring.
fn around_transitions(count: usize) -> Vec<String> {
    let places = ["before", "uncommitted", "stored", "used", "anchored"];
    let at = |n: usize| {
        places.map(|place| match n {
            0 => format!("keyring-{place}=return"),
            n => format!("keyring-{place}={n}*off->return"),
        })
    };
    (0..count).flat_map(at).collect()
}

#[test]
fn a_rotation_that_dies_around_the_first_of_its_states_is_finished() {
    // Prepared, active, migrating.
    dies_and_is_finished("rotate", &around_transitions(3));
}

#[test]
fn a_rotation_that_dies_around_the_last_of_its_states_is_finished() {
    // Verifying, retired, scrubbing, done.
    dies_and_is_finished("rotate", &around_transitions(7)[15..]);
}

#[test]
fn a_rotation_that_dies_while_it_wraps_or_scrubs_is_finished() {
    let cases = [
        "migrate-before=return",
        "migrate-before=1*off->return",
        "migrate-before=3*off->return",
        "migrate-within=return",
        "migrate-within=100*off->return",
        "migrate-within=700*off->return",
        "migrate-after=return",
        "migrate-after=2*off->return",
        "scrub-before=return",
        "scrub-after=return",
    ];
    dies_and_is_finished("rotate", &cases.map(str::to_owned));
}

#[test]
fn a_reencryption_that_dies_while_it_seals_anew_is_finished() {
    let cases = [
        "keyring-stored=1*off->return",
        "migrate-before=2*off->return",
        "migrate-within=return",
        "migrate-within=50*off->return",
        "migrate-within=602*off->return",
        "migrate-within=900*off->return",
        "migrate-after=return",
        "migrate-after=3*off->return",
        "system-before=return",
        "system-stored=return",
        "keyring-uncommitted=4*off->return",
        "scrub-before=return",
        "scrub-after=return",
    ];
    dies_and_is_finished("reencrypt", &cases.map(str::to_owned));
}

#[test]
fn a_reencryption_that_dies_while_it_moves_the_names_of_a_directory_is_finished() {
    let cases = [
        "names-before=return",
        "names-before=9*off->return",
        "names-within=return",
        "names-within=5*off->return",
        "names-after=return",
        "names-after=3*off->return",
        "names-after=16*off->return",
    ];
    dies_and_is_finished("reencrypt", &cases.map(str::to_owned));
}

#[test]
fn a_reencryption_that_dies_around_the_first_of_its_states_is_finished() {
    dies_and_is_finished("reencrypt", &around_transitions(7)[..12]);
}

#[test]
fn a_reencryption_that_dies_around_those_in_its_middle_is_finished() {
    dies_and_is_finished("reencrypt", &around_transitions(7)[12..24]);
}

#[test]
fn a_reencryption_that_dies_around_the_last_of_its_states_is_finished() {
    dies_and_is_finished("reencrypt", &around_transitions(7)[24..]);
}

/// Around the two transactions that replace the system node's key.
const OF_THE_SYSTEM: [&str; 6] = [
    "system-before=return",
    "system-within=return",
    "system-stored=return",
    "system-before=1*off->return",
    "system-within=1*off->return",
    "system-stored=1*off->return",
];

#[test]
fn a_rotation_that_dies_while_it_makes_the_sums_anew_is_finished() {
    dies_and_is_finished("rotate", &OF_THE_SYSTEM.map(str::to_owned));
}

#[test]
fn a_reencryption_that_dies_while_it_makes_the_sums_anew_is_finished() {
    dies_and_is_finished("reencrypt", &OF_THE_SYSTEM.map(str::to_owned));
}

#[test]
fn a_rewrap_that_dies_anywhere_is_finished_or_was_never_begun() {
    let mut cases = around_transitions(2);
    cases.extend(["scrub-before=return", "scrub-after=return"].map(str::to_owned));
    dies_and_is_finished("rewrap local-kms://b local-kms://default", &cases);
}
