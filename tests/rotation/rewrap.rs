//! `rewrap --kms-key`: the new key is proved before anything is stored, the old one must still work,
//! and what fails changes nothing.

use std::path::PathBuf;

use crate::support::aws::World;
use crate::support::evil::{blob, footprint};
use crate::support::keys::local_kms;
use crate::support::kms_proxy::{Answer, Seen};
use crate::support::process::{Place, Ran, detach, status};
use crate::support::rotating::{all_is_there, command, fill, wait_for_the_end};
use crate::support::socket::ask;
use serde_json::{Value, json};

const SECRETS: usize = 20;

fn key_id(uri: &str) -> &str {
    uri.strip_prefix("aws-kms://").expect("a URI")
}

/// What was asked since `before`, without what is the same in all of it.
fn asked(world: &World, before: usize) -> Vec<(String, String)> {
    let told = |seen: &Seen| {
        let key = seen.key_id.clone().expect("KeyId is always sent");
        (seen.action.clone(), key)
    };
    world.proxy.seen()[before..].iter().map(told).collect()
}

#[test]
fn a_new_key_encrypts_and_decrypts_before_anything_is_stored() {
    let world = World::with_vault(1);
    let new = format!("aws-kms://{}", world.moto.create_key());
    let flags = ["--kms-key", new.as_str()];
    world.mount("").succeeded();
    fill(&world.place.point(), SECRETS);
    detach(&world.place.point());
    crate::support::process::wait_for(
        "the daemon's end",
        std::time::Duration::from_secs(60),
        || world.place.daemons().is_empty(),
    );
    // All but the lock, which tells who had it last.
    let everything = || {
        let kept = ["v/vault.db", "v/vault.db-wal", "anchors"];
        footprint(&kept.map(|name| world.place.path().join(name)))
    };
    let keyring = || blob(&world.place, "SELECT value FROM keyring");
    let stored = keyring();

    // It dies where it would begin to store: by then all has been proved.
    let mark = world.proxy.count();
    let died = world.run("rewrap", &flags, "keyring-before=return");
    assert_eq!(died.0.status.code(), None, "{}", died.stderr());
    let call = |action: &str, key: &str| (action.to_owned(), key_id(key).to_owned());
    let old = &world.keys[0];
    let proof = [
        call("Decrypt", old), // to open the vault
        call("Decrypt", old), // the old key works
        call("Encrypt", &new),
        call("Decrypt", &new),
    ];
    assert_eq!(asked(&world, mark), proof);
    assert_eq!(keyring(), stored);
    world.run("status", &[], "").succeeded();

    // Whatever goes wrong with any of it, nothing changes.
    let denied = Answer::Error(400, "AccessDeniedException", "no.");
    // A key that says it unwrapped, and tells another key.
    let another = json!({"Plaintext": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
        "KeyId": key_id(&new), "EncryptionAlgorithm": "SYMMETRIC_DEFAULT"});
    let another = Answer::Raw(200, "application/x-amz-json-1.1", another.to_string());
    let before = everything();
    for (served, answer, words) in [
        (1, denied.clone(), "kms:Decrypt"),
        (2, denied.clone(), "kms:Encrypt"),
        (3, denied, "kms:Decrypt"),
        (3, another, ""),
    ] {
        world.proxy.set(answer.clone());
        world.proxy.set_times(served, Answer::Forward);
        let ran = world.run("rewrap", &flags, "");
        let said = ran.stderr();
        assert!(
            matches!(ran.0.status.code(), Some(1 | 4 | 6)),
            "{answer:?}: {said}"
        );
        assert!(said.contains(words) && said.lines().count() == 1, "{said}");
        assert!(
            said.contains(key_id(if served == 1 { old } else { &new })),
            "{said}"
        );
        world.proxy.set(Answer::Forward);
        assert_eq!(keyring(), stored, "{answer:?} after {served} calls");
        assert_eq!(everything(), before, "{answer:?} after {served} calls");
    }
    let done = world.run("rewrap", &flags, "");
    assert!(done.0.status.success(), "{}", done.stderr());
    let told: Value =
        serde_json::from_str(&world.run("status", &["--json"], "").stdout()).expect("JSON");
    assert_eq!(
        told["generations"][0]["wraps"][0]["kms_key"], *new,
        "{told:#}"
    );
    world.mount("").succeeded();
    all_is_there(&world.place.point(), SECRETS);
    detach(&world.place.point());
}

#[test]
fn the_key_that_the_vault_is_under_must_still_work() {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let point = place.point();
    fill(&point, SECRETS);
    let kms = local_kms(&place);
    kms.create("b").expect("made");
    let before = status(&point);
    // A new key, so that this looks like a way out; but what it would wrap is not proved.
    kms.set_enabled("default", false).expect("disabled");
    let asked = || ask(&place.vault(), "control rewrap local-kms://b");
    assert_eq!(asked()["refused"]["errno"], "EKEYREVOKED");
    place
        .run(
            ["rewrap".as_ref(), point.as_os_str()]
                .into_iter()
                .chain(["--kms-key".as_ref(), "local-kms://b".as_ref()]),
        )
        .failed(4, "local-kms://default is disabled");
    let after = status(&point);
    for same in ["keyring_sequence", "generations", "events"] {
        assert_eq!(after[same], before[same]);
    }
    kms.set_enabled("default", true).expect("enabled");
    assert_eq!(asked(), "begun");
    wait_for_the_end(&point);
    // From here on only the new one is needed.
    kms.set_enabled("default", false).expect("disabled");
    command(&point, "rotate").expect("begun");
    let after = wait_for_the_end(&point);
    assert_eq!(
        after["generations"][0]["wraps"][0]["kms_key"],
        "local-kms://b"
    );
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    place.mount(&[]).succeeded();
    all_is_there(&point, SECRETS);
}

#[test]
fn a_vault_leaves_aws_for_keys_that_are_files_only_when_that_is_said() {
    let world = World::with_vault(1);
    let kms = local_kms(&world.place);
    kms.create("b").expect("made");
    let local = ["--kms-key", "local-kms://b"];
    let both = ["--kms-key", "local-kms://b", "--kms-key", &world.keys[0]];
    let leave = [local[0], local[1], "--yes-leave-aws"];
    let wraps = || -> Vec<String> {
        let told = world.run("status", &["--json"], "").succeeded().stdout();
        let told: Value = serde_json::from_str(&told).expect("JSON");
        let wraps = told["generations"][0]["wraps"].as_array().cloned();
        let wraps = wraps.expect("a list").into_iter();
        wraps
            .map(|wrap| wrap["kms_key"].as_str().expect("a URI").to_owned())
            .collect()
    };
    let done = |ran: &Ran| assert!(ran.0.status.success(), "{}", ran.stderr());
    let in_aws = [world.keys[0].clone()];
    world.run("rewrap", &local, "").failed(1, "--yes-leave-aws");
    assert_eq!(wraps(), in_aws);
    // Beside its key in AWS a local one may stand; but not alone, from there either.
    done(&world.run("rewrap", &both, ""));
    assert_eq!(wraps(), ["local-kms://b".to_owned(), world.keys[0].clone()]);
    world.run("rewrap", &local, "").failed(1, "--yes-leave-aws");
    // The same in a mount.
    world.mount("").succeeded();
    let point: PathBuf = world.place.point();
    let errno = |text: &str| command(&point, text).expect_err("refused").raw_os_error();
    assert_eq!(errno("rewrap local-kms://b"), Some(libc::EINVAL));
    // Said through the mount, it is not enough.
    let said = errno("rewrap local-kms://b --yes-leave-aws");
    assert_eq!(said, Some(libc::EPERM));
    world.run("rewrap", &local, "").failed(1, "--yes-leave-aws");
    assert_eq!(wraps().len(), 2);
    done(&world.run("rewrap", &[&leave[..], &["--wait"]].concat(), ""));
    assert_eq!(wraps(), ["local-kms://b"]);
    detach(&point);
    crate::support::process::wait_for(
        "the daemon's end",
        std::time::Duration::from_secs(60),
        || world.place.daemons().is_empty(),
    );
    // AWS is needed no more; and back there nobody asks for anything.
    world.proxy.set(Answer::Reset);
    let mark = world.proxy.count();
    world.run("status", &[], "").succeeded();
    assert_eq!(world.proxy.count(), mark);
    world.proxy.set(Answer::Forward);
    done(&world.run("rewrap", &["--kms-key", &world.keys[0]], ""));
    assert_eq!(wraps(), in_aws);
}
