//! Backups and restores that are cut off at any moment: there is a whole copy or none, and another run
//! makes it.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::kit::{backup, go_on, nothing_is_left, run, secrets_are_at, unmount, with_secrets};
use crate::support::load::Dice;
use crate::support::process::{Place, Ran, kill, wait_for};

/// Of each command. `SECRETFS_BACKUP_KILLS` makes it as many as one likes.
const KILLS: u64 = 40;

fn begin(place: &Place, command: &str, from: &Path, to: &Path, fail_points: &str) -> Command {
    let mut begun = place.command();
    begun.env("FAILPOINTS", fail_points).arg(command);
    begun.arg(from).arg(to);
    begun
}

/// What is at `path` is a whole vault.
#[track_caller]
fn is_whole(place: &Place, path: &Path) {
    let nowhere = place.path().join("nowhere");
    let args = [
        "check".as_ref(),
        path.as_os_str(),
        "--anchor-dir".as_ref(),
        nowhere.as_os_str(),
    ];
    place.run(args).succeeded();
    // Two that are restored from one backup are two: a host that has seen the one refuses the other.
    fs::remove_dir_all(nowhere).expect("removed");
}

#[test]
fn a_kill_at_any_step_leaves_no_half_copy_and_another_run_makes_a_whole_one() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    let steps = [
        "copy-begun",
        "copy-made",
        "copy-part",
        "copy-copied",
        "copy-settled",
        "restore-recorded",
        "copy-verified",
        "restore-remembered",
        "copy-named",
    ];
    for (command, from) in [("backup", place.vault()), ("restore", made)] {
        for step in steps {
            if command == "backup" && step.starts_with("restore") {
                continue;
            }
            let to = place.path().join(format!("{command} {step}"));
            let at = match step {
                "copy-part" => "copy-part=3*off->return".to_owned(),
                step => format!("{step}=return"),
            };
            let ended = begin(&place, command, &from, &to, &at)
                .output()
                .expect("it runs");
            assert_eq!(
                ended.status.signal(),
                Some(libc::SIGABRT),
                "{command} {step}"
            );
            assert_eq!(to.exists(), step == "copy-named", "{command} {step}");
            if step == "copy-named" {
                is_whole(&place, &to);
                run(&place, command, &from, &to).failed(8, "already");
                let left = format!(".{command} {step}.secretfs-partial");
                fs::remove_dir(place.path().join(left)).expect("empty");
            } else {
                run(&place, command, &from, &to).succeeded();
            }
            if command == "restore" {
                // This host has seen it as it is.
                let point = place.point();
                let mount = ["mount".as_ref(), to.as_os_str(), point.as_os_str()];
                place.run(mount).succeeded();
                secrets_are_at(&point);
                unmount(&place);
            }
        }
    }
    nothing_is_left(&place);
}

fn ended(mut child: Child) -> Option<i32> {
    wait_for("its end", Duration::from_secs(60), || {
        child.try_wait().expect("a child").is_some()
    });
    child.wait().expect("a child").signal()
}

#[test]
fn a_kill_at_any_moment_leaves_no_half_copy_and_another_run_makes_a_whole_one() {
    let kills =
        std::env::var("SECRETFS_BACKUP_KILLS").map_or(KILLS, |n| n.parse().expect("a number"));
    let place = with_secrets();
    let made = backup(&place, "backup");
    let mut dice = Dice(11);
    for (command, from) in [("backup", place.vault()), ("restore", made)] {
        let to = place.path().join("copy");
        let started = Instant::now();
        run(&place, command, &from, &to).succeeded();
        let takes = started.elapsed();
        fs::remove_dir_all(&to).expect("removed");
        let (mut cut, mut whole) = (0, 0);
        for _ in 0..kills {
            let mut child = begin(&place, command, &from, &to, "");
            child.stdout(Stdio::null()).stderr(Stdio::null());
            let child = child.spawn().expect("it runs");
            std::thread::sleep(Duration::from_micros(dice.roll(takes.as_micros() as u64)));
            kill(child.id() as i32, libc::SIGKILL);
            cut += u64::from(ended(child).is_some());
            if to.exists() {
                is_whole(&place, &to);
                fs::remove_dir_all(&to).expect("removed");
                whole += 1;
            }
        }
        println!("{command}: {kills} kills, {cut} in time, {whole} of copies that were whole");
        assert!(cut > kills / 2 && whole < kills);
        run(&place, command, &from, &to).succeeded();
        is_whole(&place, &to);
        nothing_is_left(&place);
        fs::remove_dir_all(&to).expect("removed");
    }
}

#[test]
fn who_is_told_to_end_takes_away_what_was_begun() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    for (command, from) in [("backup", place.vault()), ("restore", made)] {
        for signal in [libc::SIGINT, libc::SIGTERM] {
            let to = place.path().join("copy");
            let mut child = begin(&place, command, &from, &to, "copy-part=sleep(300)");
            child.stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = child.spawn().expect("it runs");
            let partial = place.path().join(".copy.secretfs-partial/copy/vault.db");
            wait_for("the copy", Duration::from_secs(60), || partial.exists());
            // Two at once do not get into each other's way.
            run(&place, command, &from, &to).failed(7, "another process");
            kill(child.id() as i32, signal);
            let ran = Ran(child.wait_with_output().expect("it ends"));
            ran.failed(1, "interrupted");
            assert!(!to.exists());
            nothing_is_left(&place);
        }
    }
}

#[test]
fn a_name_that_is_taken_meanwhile_is_left_and_the_host_remembers_what_it_did() {
    let place = with_secrets();
    let made = backup(&place, "backup");
    go_on(&place, 3);
    for (command, from) in [("backup", &place.vault()), ("restore", &made)] {
        let to = place.path().join("copy");
        let mut child = begin(&place, command, from, &to, "copy-made=sleep(2000)");
        child.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = child.spawn().expect("it runs");
        let partial = place.path().join(".copy.secretfs-partial/copy/vault.db");
        wait_for("the copy", Duration::from_secs(60), || partial.exists());
        fs::create_dir(&to).expect("made");
        let ran = Ran(child.wait_with_output().expect("it ends"));
        ran.failed(8, "cannot give the copy its name");
        fs::remove_dir(&to).expect("still empty");
        nothing_is_left(&place);
        // The state that the backup has is still older than the last one seen.
        let args = ["check".as_ref(), made.as_os_str()];
        place.run(args).failed(6, "older");
    }
}
