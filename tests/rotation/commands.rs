//! Rotations by command: joined, interrupted, told from one another.

use std::io::Read;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::support::process::{Place, kill, status, wait_for};
use crate::support::rotating::{
    check_is_clean, command, fill, json, serve_with, wait_for_the_end, wait_for_the_middle,
};

const SECRETS: usize = 600;
const SLOWLY: &str = "migrate-before=sleep(150)";
const SOON: Duration = Duration::from_secs(60);

fn filled() -> Place {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    fill(&place.point(), SECRETS);
    umount(&place);
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
    place
}

fn umount(place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
}

/// A command in the background, which can be interrupted.
fn start(place: &Place, args: &[&str], fail_points: &str) -> Child {
    let (name, flags) = args.split_first().expect("a command");
    let mut command = place.command();
    command.env("FAILPOINTS", fail_points);
    command.arg(name).arg(place.vault()).args(flags);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("it runs")
}

/// Its code, and what it said.
fn ended(mut child: Child) -> (Option<i32>, String) {
    wait_for("its end", SOON, || {
        child.try_wait().expect("a child").is_some()
    });
    let mut said = String::new();
    let mut stderr = child.stderr.take().expect("piped");
    stderr.read_to_string(&mut said).expect("UTF-8");
    (child.wait().expect("a child").code(), said)
}

#[test]
fn who_waits_for_a_rotation_joins_the_one_that_is_under_way_and_no_other_kind() {
    let place = filled();
    let server = serve_with(&place, SLOWLY);
    command(&place.point(), "rotate").expect("begun");
    wait_for_the_middle(&place.point());
    let (vault, point) = (place.vault(), place.point());
    let other = place.run(["reencrypt".as_ref(), point.as_os_str(), "--wait".as_ref()]);
    let other = other.failed(7, "rotate is under way since ");
    assert!(
        other.stderr().contains(" of 1206 keys done"),
        "{}",
        other.stderr()
    );
    let same = place.run(["rotate".as_ref(), vault.as_os_str()]);
    same.failed(7, "rotate is under way since ");
    let joined = place.run(["rotate".as_ref(), vault.as_os_str(), "--wait".as_ref()]);
    assert!(joined.0.status.success(), "{}", joined.stderr());
    assert!(joined.stderr().contains("one is under way already"));
    assert_eq!(joined.stdout(), crate::support::rotating::done("rotate"));
    let now = status(&point);
    assert_eq!(now["active_generation"], 2, "one rotation, not two");
    assert!(now["rotation"].is_null());
    umount(&place);
    server.ended(SOON);
}

#[test]
fn a_command_that_is_interrupted_says_who_goes_on_and_the_next_one_does() {
    let place = filled();
    for (what, generation) in [("rotate", 2), ("reencrypt", 3)] {
        let child = start(&place, &[what], SLOWLY);
        wait_for("it to be in its middle", SOON, || {
            json(&place, "status")["rotation"]["phase"] == "migrating"
        });
        kill(child.id() as i32, libc::SIGINT);
        let (code, said) = ended(child);
        assert_eq!(code, Some(1), "{said}");
        assert!(
            said.contains("goes on with the next mount for writing"),
            "{said}"
        );
        let now = json(&place, "status");
        assert_eq!(now["rotation"]["change"], what, "{now:#}");
        assert_eq!(now["active_generation"], generation);
        place.mount(&[]).succeeded();
        wait_for_the_end(&place.point());
        umount(&place);
        wait_for("the daemon's end", SOON, || place.daemons().is_empty());
        check_is_clean(&place);
    }
    let _server = serve_with(&place, SLOWLY);
    let child = start(&place, &["rotate", "--wait"], "");
    wait_for_begun(&place);
    wait_for_the_middle(&place.point());
    kill(child.id() as i32, libc::SIGINT);
    let (code, said) = ended(child);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("goes on in the mount"), "{said}");
    let after = wait_for_the_end(&place.point());
    assert_eq!(after["active_generation"], 4);
    umount(&place);
}

fn wait_for_begun(place: &Place) {
    wait_for("it to begin", SOON, || {
        !status(&place.point())["rotation"].is_null()
    });
}

#[test]
fn people_see_when_the_last_rotations_ended() {
    let place = Place::with_vault();
    let vault = place.vault();
    for what in ["rotate", "rewrap"] {
        let ran = place.run([what.as_ref(), vault.as_os_str()]);
        assert!(ran.0.status.success(), "{}", ran.stderr());
    }
    let shown = place
        .run(["status".as_ref(), vault.as_os_str()])
        .succeeded()
        .stdout();
    let (_, after) = shown
        .split_once("last rotations:\n")
        .expect("they are shown");
    for (line, what) in after.lines().zip(["rewrap", "rotate"]) {
        let date = line.strip_prefix(&format!("  {what}: 20")).expect(line);
        assert!(date.ends_with(" UTC"), "{line}");
    }
}

#[test]
fn rotating_where_nothing_is_mounted_says_so() {
    let place = Place::with_vault();
    for what in ["rotate", "reencrypt", "rewrap"] {
        let ran = place.run([what.as_ref(), place.point().as_os_str()]);
        ran.failed(3, "nothing is mounted there");
    }
}
