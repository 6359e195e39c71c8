//! A KMS that is away, or refuses, at each call that a rotation makes: it is not begun, or it ends
//! once KMS is back.

use std::path::Path;
use std::time::Duration;

use crate::support::aws::World;
use crate::support::kms_proxy::Answer;
use crate::support::process::{detach, status, wait_for};
use crate::support::rotating::{all_is_there, command, fill, wait_for_the_end};
use serde_json::Value;

const SECRETS: usize = 40;
const SOON: Duration = Duration::from_secs(60);
const DENIED: Answer = Answer::Error(400, "AccessDeniedException", "no.");

/// A mounted vault under two keys.
fn world() -> World {
    let world = World::with_vault(2);
    world.mount_impatient("").succeeded();
    fill(&world.place.point(), SECRETS);
    world
}

/// What the rotation under way waits for.
fn trouble(point: &Path) -> Option<Value> {
    let rotation = status(point)["rotation"].take();
    (!rotation["trouble"].is_null()).then_some(rotation)
}

#[derive(Debug, PartialEq)]
enum Outcome {
    Refused,
    Later,
    Done,
}

/// Has KMS give `answer` to all calls but the first `calls`, and then serve again.
fn failing_after(world: &World, calls: usize, answer: &Answer, what: &str) -> Outcome {
    let point = world.place.point();
    let before = status(&point);
    world.proxy.set(answer.clone());
    world.proxy.set_times(calls, Answer::Forward);
    let asked = command(&point, what);
    if asked.is_err() {
        let now = status(&point);
        assert_eq!(
            now["keyring_sequence"], before["keyring_sequence"],
            "{what}"
        );
        assert_eq!(now["generations"], before["generations"], "{what}");
        assert!(now["rotation"].is_null(), "{now:#}");
        world.proxy.set(Answer::Forward);
        return Outcome::Refused;
    }
    let mut waiting = None;
    wait_for("an end or trouble", SOON, || {
        waiting = trouble(&point);
        waiting.is_some() || status(&point)["rotation"].is_null()
    });
    all_is_there(&point, SECRETS);
    world.proxy.set(Answer::Forward);
    if let Some(rotation) = &waiting {
        assert_eq!(rotation["blocked"], false, "{rotation:#}");
        // Whoever asks has it tried again at once.
        let error = command(&point, what).expect_err("refused");
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    }
    let after = wait_for_the_end(&point);
    assert_eq!(after["generations"].as_array().map(Vec::len), Some(1));
    let wraps = after["generations"][0]["wraps"].as_array().map(Vec::len);
    assert_eq!(wraps, Some(2), "{after:#}");
    match waiting {
        Some(_) => Outcome::Later,
        None => Outcome::Done,
    }
}

#[test]
fn whichever_call_kms_refuses_a_rotation_is_not_begun_or_ends_once_kms_is_back() {
    let world = world();
    // One proves the key of now; two for each new wrap; one proves the stored wraps before use.
    let calls = [("rotate", 6), ("reencrypt", 6), ("rewrap", 5)];
    for (what, calls) in calls {
        for answer in [Answer::Reset, DENIED] {
            for served in 0..=calls {
                let expected = match served {
                    _ if served == calls => Outcome::Done,
                    0..5 => Outcome::Refused,
                    _ => Outcome::Later,
                };
                let found = failing_after(&world, served, &answer, what);
                assert_eq!(found, expected, "{what}, {answer:?} after {served} calls");
            }
        }
    }
    all_is_there(&world.place.point(), SECRETS);
    detach(&world.place.point());
    world.run("check", &[], "").succeeded();
}

#[test]
fn one_call_that_fails_is_made_up_for_by_the_other_key_or_tells_and_changes_nothing() {
    let world = world();
    let point = world.place.point();
    for what in ["rotate", "reencrypt", "rewrap"] {
        for call in 0..6 {
            let before = status(&point);
            world.proxy.set_times(call, Answer::Forward);
            world.proxy.set_times(1, DENIED);
            let asked = command(&point, what);
            // Proving what stands already takes any of the keys; what is new takes all.
            let new_wrap = (1..5).contains(&call);
            assert_eq!(asked.is_err(), new_wrap, "{what}, call {call}: {asked:?}");
            let after = wait_for_the_end(&point);
            let changed = after["keyring_sequence"] != before["keyring_sequence"];
            assert_eq!(changed, !new_wrap, "{what}, call {call}: {after:#}");
            world.proxy.set(Answer::Forward);
        }
    }
    all_is_there(&point, SECRETS);
    detach(&point);
    world.run("check", &[], "").succeeded();
}

#[test]
fn a_mount_goes_without_a_new_key_that_kms_does_not_unwrap_and_uses_it_later() {
    let world = world();
    let point = world.place.point();
    for what in ["rotate", "reencrypt"] {
        detach(&point);
        wait_for("the daemon's end", SOON, || {
            world.place.daemons().is_empty()
        });
        // It dies with the new key stored, and not in use.
        world.mount_impatient("keyring-stored=return").succeeded();
        command(&point, what).expect_err("it died");
        wait_for("the daemon's end", SOON, || {
            world.place.daemons().is_empty()
        });
        detach(&point);
        world.proxy.set(DENIED);
        // The key of now is unwrapped.
        world.proxy.set_times(1, Answer::Forward);
        world.mount_impatient("").succeeded();
        wait_for("trouble", SOON, || trouble(&point).is_some());
        let now = trouble(&point).expect("trouble");
        assert_eq!(now["phase"], "prepared", "{now:#}");
        all_is_there(&point, SECRETS);
        world.proxy.set(Answer::Forward);
        wait_for_the_end(&point);
        all_is_there(&point, SECRETS);
    }
    detach(&point);
    world.run("check", &[], "").succeeded();
}
