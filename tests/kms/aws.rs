//! Vaults under AWS KMS, by the real program over HTTP: that they work, and what each refusal of
//! AWS comes to.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::evil::footprint;
use crate::support::kms_proxy::{Answer, Proxy};
use crate::support::moto::{Moto, environment, free_address};
use crate::support::process::{Place, Ran};

type Env = Vec<(String, String)>;

fn command(place: &Place, name: &str, env: &Env, more: &[&str]) -> Ran {
    let mut command = place.command();
    command.envs(env.iter().map(|(k, v)| (k, v)));
    command.arg(name).arg(place.vault());
    if name == "mount" {
        command.arg(place.point());
    }
    Ran(command.args(more).output().expect("it runs"))
}

fn unmount(place: &Place) {
    place
        .run(["umount".as_ref(), place.point().as_os_str()])
        .succeeded();
}

fn without(mut env: Env, names: &[&str]) -> Env {
    env.retain(|(name, _)| !names.contains(&name.as_str()));
    env
}

const SOME: &str =
    "aws-kms://arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

/// Everything in the place but the moto server's and the tests' own.
fn all_of(place: &Place) -> Vec<std::path::PathBuf> {
    vec![place.path().to_owned()]
}

#[test]
fn a_vault_under_an_aws_key_works_by_alias_arn_and_key_id() {
    let moto = Moto::start();
    let arn = moto.create_key();
    moto.create_alias("app", &arn);
    let id = arn.rsplit('/').next().expect("an id");
    let env = moto.env();
    for key in ["alias/app", arn.as_str(), id] {
        let uri = format!("aws-kms://{key}");
        let place = Place::new();
        let ran = command(&place, "init", &env, &["--kms-key", &uri]).succeeded();
        assert!(ran.stdout().contains(&uri), "{}", ran.stdout());
        // No key of the local KMS is made for nothing.
        assert!(!place.path().join("kms").exists());
        command(&place, "mount", &env, &[]).succeeded();
        fs::write(place.point().join("password"), "s3cret").expect("written");
        unmount(&place);
        command(&place, "mount", &env, &[]).succeeded();
        let text = fs::read(place.point().join("password")).expect("read");
        assert_eq!(text, b"s3cret");
        let ran = place
            .run([
                "status".as_ref(),
                place.point().as_os_str(),
                "--json".as_ref(),
            ])
            .succeeded();
        let status: serde_json::Value = serde_json::from_str(&ran.stdout()).expect("JSON");
        assert_eq!(status["unlocked_by"], uri);
        assert_eq!(status["credentials"], "environment");
        assert_eq!(status["generations"][0]["wraps"][0]["key_id"], arn);
        unmount(&place);
        command(&place, "check", &env, &[]).succeeded();
    }
}

#[test]
fn a_vault_under_several_keys_opens_with_any_that_answers() {
    let moto = Moto::start();
    let proxy = Proxy::before(moto.address());
    let env = moto.env_at(&proxy.url());
    let aws = format!("aws-kms://{}", moto.create_key());
    let place = Place::new();
    let keys = ["--kms-key", &aws, "--kms-key", "local-kms://spare"];
    command(&place, "init", &env, &keys).succeeded();
    let unlocked_by = || {
        let ran = command(&place, "status", &env, &["--json"]).succeeded();
        let status: serde_json::Value = serde_json::from_str(&ran.stdout()).expect("JSON");
        status["unlocked_by"].as_str().expect("a key").to_owned()
    };
    assert_eq!(unlocked_by(), aws);
    proxy.set(Answer::Error(400, "DisabledException", "is disabled."));
    assert_eq!(unlocked_by(), "local-kms://spare");
    proxy.set(Answer::Forward);
    fs::remove_dir_all(place.path().join("kms")).expect("removed");
    assert_eq!(unlocked_by(), aws);
    // With neither, both are told in one line, and the one that may come back decides.
    proxy.set(Answer::Reset);
    let ran = command(&place, "mount", &env, &["--kms-timeout", "2"]).failed(5, &aws);
    assert!(
        ran.stderr().contains("local-kms://spare"),
        "{}",
        ran.stderr()
    );
}

/// What AWS says, the code it comes to, and words that must be in the line.
fn refusals() -> Vec<(Answer, i32, &'static [&'static str])> {
    let says = |code, message| Answer::Error(400, code, message);
    let denied = "User: arn:aws:iam::111122223333:user/app is not authorized to perform this";
    vec![
        (
            says("AccessDeniedException", denied),
            4,
            &["kms:", "key policy"],
        ),
        (
            says("DisabledException", "x is disabled."),
            4,
            &["disabled"],
        ),
        (
            says("KMSInvalidStateException", "x is pending deletion."),
            4,
            &["pending deletion"],
        ),
        (
            says("NotFoundException", "Alias x is not found."),
            4,
            &["no such key"],
        ),
        (says("ExpiredTokenException", "expired"), 4, &["expired"]),
        (says("ThrottlingException", "Rate exceeded"), 5, &["often"]),
        (Answer::Error(500, "KMSInternalException", "oops"), 5, &[]),
        (Answer::Reset, 5, &["127.0.0.1"]),
    ]
}

#[test]
fn each_refusal_of_aws_has_its_code_and_its_words_and_changes_nothing() {
    let moto = Moto::start();
    let proxy = Proxy::before(moto.address());
    let env = moto.env_at(&proxy.url());
    let key = moto.create_key();
    let uri = format!("aws-kms://{key}");
    let place = Place::new();
    command(&place, "init", &env, &["--kms-key", &uri]).succeeded();
    let before = footprint(&all_of(&place));
    for (answer, code, words) in refusals() {
        println!("{answer:?}");
        proxy.set(answer);
        for name in ["mount", "status", "check"] {
            let ran = command(&place, name, &env, &["--kms-timeout", "3"]).failed(code, &key);
            for word in words {
                assert!(ran.stderr().contains(word), "{word:?}: {}", ran.stderr());
            }
        }
    }
    proxy.set(Answer::Error(400, "InvalidCiphertextException", ""));
    command(&place, "mount", &env, &[]).failed(4, &key);
    assert_eq!(footprint(&all_of(&place)), before);
    proxy.set(Answer::Forward);
    command(&place, "mount", &env, &[]).succeeded();
}

#[test]
fn init_under_a_key_that_refuses_makes_nothing() {
    let proxy = Proxy::always(Answer::Hang);
    let place = Place::new();
    let env = environment(place.path(), &proxy.url());
    for (answer, code, words) in refusals() {
        println!("{answer:?}");
        proxy.set(answer);
        let ran = command(
            &place,
            "init",
            &env,
            &["--kms-key", SOME, "--kms-timeout", "3"],
        );
        let ran = ran.failed(code, "1234abcd-12ab-34cd-56ef-1234567890ab");
        for word in words {
            assert!(ran.stderr().contains(word), "{word:?}: {}", ran.stderr());
        }
        assert!(!place.vault().exists());
    }
    // The second key refuses, after the first has wrapped.
    let keys = ["--kms-key", "local-kms://a", "--kms-key", SOME];
    command(&place, "init", &env, &keys).failed(5, SOME);
    assert!(!place.vault().exists());
    // An empty directory stays what it is.
    fs::create_dir(place.vault()).expect("made");
    let before = footprint(&[place.vault()]);
    command(&place, "init", &env, &keys).failed(5, SOME);
    assert_eq!(footprint(&[place.vault()]), before);
    // What wraps but does not unwrap would be a vault nobody can open.
    let moto = Moto::start();
    let lying = Proxy::before(moto.address());
    lying.set_times(1, Answer::Forward);
    let env = moto.env_at(&lying.url());
    let uri = format!("aws-kms://{}", moto.create_key());
    lying.set(Answer::Error(400, "AccessDeniedException", "no"));
    lying.set_times(1, Answer::Forward);
    command(&place, "init", &env, &["--kms-key", &uri]).failed(4, "kms:Decrypt");
    assert_eq!(footprint(&[place.vault()]), before);
}

#[test]
fn no_credentials_are_told_at_once() {
    let moto = Moto::start();
    let place = Place::new();
    let env = moto.env();
    let uri = format!("aws-kms://{}", moto.create_key());
    command(&place, "init", &env, &["--kms-key", &uri]).succeeded();
    let none = without(env, &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]);
    let asked = Instant::now();
    let ran = command(&place, "mount", &none, &[]).failed(4, "credentials");
    assert!(
        asked.elapsed() < Duration::from_secs(6),
        "{:?}",
        asked.elapsed()
    );
    assert!(
        ran.stderr().contains("AWS_ACCESS_KEY_ID") || ran.stderr().contains("aws configure"),
        "{}",
        ran.stderr()
    );
    // The metadata service swallows everything: the bound of all calls holds here, too.
    let mut slow = without(none, &["AWS_EC2_METADATA_DISABLED"]);
    let hanging = Proxy::always(Answer::Hang);
    slow.push(("AWS_EC2_METADATA_SERVICE_ENDPOINT".into(), hanging.url()));
    let asked = Instant::now();
    command(&place, "mount", &slow, &["--kms-timeout", "2"]).failed(4, "credentials");
    assert!(
        asked.elapsed() < Duration::from_secs(12),
        "{:?}",
        asked.elapsed()
    );
}

#[test]
fn a_hung_or_absent_kms_ends_within_the_bound() {
    let moto = Moto::start();
    let proxy = Proxy::before(moto.address());
    let env = moto.env_at(&proxy.url());
    let uri = format!("aws-kms://{}", moto.create_key());
    let place = Place::new();
    command(&place, "init", &env, &["--kms-key", &uri]).succeeded();
    proxy.set(Answer::Hang);
    for (more, bound) in [(&[][..], 6), (&["--kms-timeout", "1500ms"], 2)] {
        let asked = Instant::now();
        command(&place, "mount", &env, more).failed(5, "answer");
        let took = asked.elapsed();
        // With room for a busy machine.
        assert!(took < Duration::from_secs(bound + 5), "{took:?}");
    }
    let nobody = environment(place.path(), &format!("http://{}", free_address()));
    command(&place, "mount", &nobody, &[]).failed(5, "127.0.0.1");
    let nowhere = environment(place.path(), "https://kms.invalid:1");
    command(&place, "mount", &nowhere, &[]).failed(5, "kms.invalid");
    let nonsense = environment(place.path(), "not a url");
    let ran = command(&place, "mount", &nonsense, &[]);
    assert!(
        matches!(ran.0.status.code(), Some(1 | 5)),
        "{}",
        ran.stderr()
    );
    assert_eq!(ran.stderr().lines().count(), 1, "{}", ran.stderr());
}

#[test]
fn the_usual_endpoint_and_region_variables_are_honoured() {
    let moto = Moto::start();
    let proxy = Proxy::before(moto.address());
    let arn = moto.create_key();
    let place = Place::new();
    let uri = format!("aws-kms://{arn}");
    let mut env = without(moto.env(), &["AWS_ENDPOINT_URL_KMS", "AWS_REGION"]);
    env.push(("AWS_ENDPOINT_URL".into(), proxy.url()));
    // The region is the ARN's.
    command(&place, "init", &env, &["--kms-key", &uri]).succeeded();
    command(&place, "check", &env, &[]).succeeded();
    assert!(proxy.count() >= 3);
    assert!(
        proxy
            .seen()
            .iter()
            .all(|seen| seen.region == crate::support::moto::REGION)
    );
    // An id alone tells of no region.
    let id = format!("aws-kms://{}", arn.rsplit('/').next().expect("an id"));
    let other = Place::new();
    command(&other, "init", &env, &["--kms-key", &id]).failed(1, "AWS_REGION");
    env.push((
        "AWS_DEFAULT_REGION".into(),
        crate::support::moto::REGION.into(),
    ));
    let ran = command(&other, "init", &env, &["--kms-key", &id]);
    if ran.0.status.success() {
        return;
    }
    // The SDK for Rust knows AWS_REGION only; then that is what the line says.
    ran.failed(1, "AWS_REGION");
}
