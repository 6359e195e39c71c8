//! A history in which a later program has written what this one does not know: it is shown as such,
//! is in nobody's way, and is authenticated like the rest.

use crate::support::evil::{blob, set_blob};
use crate::support::forge::Hand;
use crate::support::process::{Place, Ran, detach, status, wait_for};
use crate::support::rotating::{check_is_clean, json};
use secretfs::codec;
use secretfs::keyring::{Event, EventKind};
use serde_json::Value;

/// At 1,800,000,000 s, not late, of kind 57, and something to it.
const FUTURE: [u8; 24] = [
    0, 0xd2, 0x49, 0x6b, 0, 0, 0, 0, 0, 57, 0, 0, 0, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 9,
];

fn audit(place: &Place, flags: &[&str]) -> Ran {
    let mut command = place.command();
    let ran = command.arg("audit").arg(place.vault()).args(flags).output();
    Ran(ran.expect("it runs"))
}

fn lines(text: &str) -> Vec<Value> {
    let parsed = |line| serde_json::from_str(line).expect("JSON");
    text.lines().map(parsed).collect()
}

fn unmount(place: &Place) {
    let soon = std::time::Duration::from_secs(60);
    detach(&place.point());
    wait_for("the daemon's end", soon, || place.daemons().is_empty());
}

/// A vault with a secret, and with events that a later program has written.
fn with_events(events: &[&[u8]]) -> Place {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    std::fs::write(place.point().join("password"), "s3cret").expect("written");
    unmount(&place);
    let hand = Hand::of(&place.vault(), &place.path().join("kms"));
    for event in events {
        hand.append_event(&place, event);
    }
    place
}

#[test]
fn events_of_an_unknown_kind_are_shown_as_such_and_are_in_nobodys_way() {
    // One that has more to it than this program knows of its kind, and one that begins as none does.
    let more = [&FUTURE[..9], &[3, 0, 0, 0], &[1, 0, 0, 0, 0, 0, 0, 0, 0]].concat();
    let place = with_events(&[&FUTURE, &more, b"none"]);
    let unknown = |events: &[Value]| -> Vec<String> {
        let unknown = events.iter().filter(|event| event["event"] == "unknown");
        let shown =
            |event: &Value| format!("{} {} {}", event["sequence"], event["at"], event["kind"]);
        unknown.map(shown).collect()
    };
    let told = ["2 1800000000 57", "3 1800000000 3", "4 null null"];
    let whole = audit(&place, &["--json"]).succeeded().stdout();
    assert_eq!(unknown(&lines(&whole)), told);
    let people = audit(&place, &[]).succeeded().stdout();
    let line = people.lines().nth(1).expect("a line");
    assert!(line.contains("event=unknown  kind=57"), "{line}");
    assert!(line.contains("UTC"), "{line}");
    let verified = audit(&place, &["--verify"]).succeeded().stdout();
    assert!(verified.starts_with("4 events"), "{verified}");
    check_is_clean(&place);
    let last = json(&place, "status")["last_event"].clone();
    assert_eq!(last["event"], "unknown", "{last}");
    // It is mounted, its keys are replaced, and what happens goes on to be written down behind it.
    for more in [&["-o", "ro"][..], &[]] {
        place.mount(more).succeeded();
        let point = place.point();
        assert_eq!(status(&point)["last_event"]["event"], "unknown");
        let shown = std::fs::read_to_string(point.join(".secretfs/audit")).expect("readable");
        assert_eq!(unknown(&lines(&shown)), told);
        assert_eq!(
            std::fs::read(point.join("password")).expect("read"),
            b"s3cret"
        );
        if more.is_empty() {
            let args = ["rotate".as_ref(), point.as_os_str(), "--wait".as_ref()];
            let ran = place.run(args);
            assert!(ran.0.status.success(), "{}", ran.stderr());
        }
        unmount(&place);
    }
    let ran = place.run(["reencrypt".as_ref(), place.vault().as_os_str()]);
    assert!(ran.0.status.success(), "{}", ran.stderr());
    check_is_clean(&place);
    let events = lines(&audit(&place, &["--json"]).succeeded().stdout());
    assert_eq!(unknown(&events), told);
    assert_eq!(events.last().expect("some")["event"], "change-finished");
}

#[test]
fn what_was_found_under_a_running_mount_is_told_in_words() {
    let found = Event {
        at: 1_800_000_000,
        late: true,
        kind: EventKind::TamperingFound {
            count: 2,
            what: vec!["node 7 is older than it was".to_owned()],
        },
    };
    let place = with_events(&[&codec::encode(&found)]);
    let people = audit(&place, &[]).succeeded().stdout();
    let line = people.lines().nth(1).expect("a line");
    for part in [
        "event=tampering-found",
        "count=2",
        "late=yes",
        "node 7 is older than it was",
    ] {
        assert!(line.contains(part), "{line}");
    }
    let events = lines(&audit(&place, &["--json"]).succeeded().stdout());
    assert_eq!(events[1]["event"], "tampering-found");
    assert_eq!(events[1]["what"][0], "node 7 is older than it was");
    let last = json(&place, "status")["last_event"].clone();
    assert_eq!(last["count"], 2, "{last}");
    check_is_clean(&place);
}

#[test]
fn a_changed_byte_of_an_event_of_an_unknown_kind_is_code_6() {
    let place = with_events(&[&FUTURE]);
    let stored = blob(&place, "SELECT value FROM event WHERE sequence = 2");
    assert_eq!(stored, FUTURE);
    let put = "UPDATE event SET value = ?1 WHERE sequence = 2";
    let refused = |what: &str, forged: &[u8]| {
        set_blob(&place, put, forged);
        place.mount(&[]).failed(6, "");
        audit(&place, &["--verify"]).failed(6, "history");
        let ran = place.run(["check".as_ref(), place.vault().as_os_str()]);
        assert_eq!(ran.0.status.code(), Some(6), "{what}: {}", ran.stderr());
        set_blob(&place, put, &stored);
    };
    for at in 0..stored.len() {
        let mut forged = stored.clone();
        forged[at] ^= 1 << (at % 8);
        refused(&format!("byte {at}"), &forged);
    }
    refused("cut off", &stored[..stored.len() - 1]);
    refused("added", &[&stored[..], &[0]].concat());
    refused("nothing", &[]);
    place.mount(&[]).succeeded();
    unmount(&place);
    check_is_clean(&place);
}
