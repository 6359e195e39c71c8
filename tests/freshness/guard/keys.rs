//! Wrong keys, keys that do not serve, and keys that somebody adds to the vault.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{command, filled, refused, refused_with, unmount};
use crate::support::evil::{Record, blob, copy, set_blob};
use crate::support::keys::local_kms;
use crate::support::kms_proxy::{Answer, Proxy};
use crate::support::moto::Moto;
use crate::support::process::Place;
use secretfs::keyring::Wrap;

#[test]
fn another_local_key_of_the_same_name_is_code_4() {
    let place = filled();
    fs::rename(place.path().join("kms"), place.path().join("kms.right")).expect("moved");
    local_kms(&place).create("default").expect("another key");
    refused(&place, 4, "local-kms://default");
    // The right one still opens it.
    fs::remove_dir_all(place.path().join("kms")).expect("removed");
    fs::rename(place.path().join("kms.right"), place.path().join("kms")).expect("moved");
    place.mount(&[]).succeeded();
}

#[test]
fn the_key_of_another_vault_is_code_4() {
    let (place, other) = (filled(), Place::with_vault());
    fs::remove_dir_all(place.path().join("kms")).expect("removed");
    copy(&other.path().join("kms"), &place.path().join("kms"));
    refused(&place, 4, "local-kms://default");
}

#[test]
fn a_local_key_that_does_not_serve_is_code_4_and_told_by_its_state() {
    let place = filled();
    let kms = local_kms(&place);
    kms.set_enabled("default", false).expect("disabled");
    refused(&place, 4, "disabled");
    kms.set_enabled("default", true).expect("enabled");
    place.mount(&[]).succeeded();
    unmount(&place);
    let week = Duration::from_secs(7 * 86400);
    kms.schedule_deletion("default", week).expect("scheduled");
    refused(&place, 4, "deletion");
    kms.cancel_deletion("default").expect("cancelled");
    refused(&place, 4, "disabled");
    fs::remove_dir_all(place.path().join("kms")).expect("removed");
    refused(&place, 4, "there is no key local-kms://default");
}

#[test]
fn loose_modes_of_the_key_directory_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = filled();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("set");
    };
    let kms = place.path().join("kms");
    mode(&kms, 0o755);
    refused(&place, 1, "kms");
    mode(&kms, 0o700);
    let key = fs::read_dir(&kms)
        .expect("listed")
        .map(|e| e.expect("an entry").path())
        .find(|p| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("default"))
        })
        .expect("a key");
    mode(&key, 0o640);
    refused(&place, 1, "default");
    mode(&key, 0o600);
    place.mount(&[]).succeeded();
}

#[test]
fn a_wrong_aws_key_is_code_4() {
    let moto = Moto::start();
    let place = Place::new();
    let right = moto.create_key();
    moto.create_alias("app", &right);
    let env = moto.env();
    command(&place, "init", &env, &["--kms-key", "aws-kms://alias/app"]).succeeded();
    command(&place, "mount", &env, &[]).succeeded();
    unmount(&place);
    // The alias is moved to another key.
    let body = serde_json::json!({"AliasName": "alias/app", "TargetKeyId": moto.create_key()});
    moto.kms(crate::support::moto::REGION, "UpdateAlias", &body);
    refused_with(&place, &env, &[], 4, "alias/app");
}

#[test]
fn pins_given_as_options_hold() {
    let place = filled();
    let status = place
        .run([
            "status".as_ref(),
            place.vault().as_os_str(),
            "--json".as_ref(),
        ])
        .succeeded();
    let status: serde_json::Value = serde_json::from_str(&status.stdout()).expect("JSON");
    let id = status["vault"].as_str().expect("an id");
    let other = id.chars().rev().collect::<String>();
    refused_with(
        &place,
        &[],
        &["-o", &format!("vault-id={other}")],
        6,
        "was asked for",
    );
    refused_with(
        &place,
        &[],
        &["-o", "kms-key=local-kms://other"],
        6,
        "not pinned",
    );
    let pins = format!("vault-id={id},kms-key=local-kms://default,require-anchor");
    place.mount(&["-o", &pins]).succeeded();
    unmount(&place);
    fs::remove_dir_all(place.path().join("anchors")).expect("removed");
    refused_with(&place, &[], &["-o", "require-anchor"], 6, "require-anchor");
    place.mount(&[]).succeeded();
    unmount(&place);
    place.mount(&["-o", "require-anchor"]).succeeded();
}

#[test]
fn a_key_pinned_for_one_mount_does_not_make_the_host_forget_the_others() {
    let place = Place::new();
    let keys = ["--kms-key", "local-kms://a", "--kms-key", "local-kms://b"];
    let kms = local_kms(&place);
    command(&place, "init", &[], &keys).succeeded();
    command(&place, "mount", &[], &["-o", "kms-key=local-kms://b"]).succeeded();
    unmount(&place);
    kms.set_enabled("b", false).expect("disabled");
    command(&place, "mount", &[], &["-o", "kms-key=local-kms://b"]).failed(4, "local-kms://b");
    command(&place, "mount", &[], &[]).succeeded();
}

fn attackers_wrap(uri: &str) -> Wrap {
    Wrap {
        uri: uri.to_owned(),
        key_id: uri.to_owned(),
        blob: vec![0xaa; 200],
        created: 1_700_000_000,
    }
}

const HERS: &str =
    "aws-kms://arn:aws:kms:eu-central-1:666666666666:key/1234abcd-12ab-34cd-56ef-1234567890ab";

#[test]
fn an_unpinned_key_in_the_keyring_is_never_asked() {
    let place = filled();
    let proxy = Proxy::always(Answer::Error(400, "AccessDeniedException", "asked"));
    let env = crate::support::moto::environment(place.path(), &proxy.url());
    let stored = blob(&place, "SELECT value FROM keyring");
    type Edit = fn(&mut secretfs::keyring::KeyringBody);
    let edits: [Edit; 4] = [
        |body| body.generations[0].wraps.insert(0, attackers_wrap(HERS)),
        |body| body.generations[0].wraps.push(attackers_wrap(HERS)),
        |body| body.generations[0].wraps = vec![attackers_wrap(HERS)],
        |body| body.generations[0].wraps[0].uri = HERS.to_owned(),
    ];
    for edit in edits {
        for sequence in [0, 1] {
            let mut record = Record::of(&place);
            record.edit(edit);
            record.edit(|body| body.sequence += sequence);
            record.store(&place);
            refused_with(&place, &env, &[], 6, "");
            // Nor on a host that never saw the vault, but was told which key it has.
            let anchors = place.path().join("anchors");
            fs::rename(&anchors, place.path().join("away")).expect("moved");
            refused_with(&place, &env, &["-o", "kms-key=local-kms://default"], 6, "");
            fs::rename(place.path().join("away"), &anchors).expect("moved");
            set_blob(&place, "UPDATE keyring SET value = ?1", &stored);
        }
    }
    assert_eq!(proxy.seen(), []);
    command(&place, "mount", &env, &[]).succeeded();
    fs::write(place.point().join("after"), "x").expect("written");
    assert_eq!(proxy.count(), 0);
}

#[test]
fn an_unpinned_local_key_is_not_read_either() {
    let place = filled();
    let kms = local_kms(&place);
    kms.create("hers").expect("a key");
    let mut record = Record::of(&place);
    record.edit(|body| {
        body.sequence += 1;
        body.generations[0].wraps[0].uri = "local-kms://hers".to_owned();
    });
    record.store(&place);
    refused(&place, 6, "not pinned on this host (local-kms://hers)");
}
