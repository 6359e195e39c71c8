//! AWS KMS, against a real moto server: that it works as customers configure it.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::support::kms_call::{self, Caller, Good, Step, describe, unwrap, wrap};
use crate::support::kms_proxy::{Answer, Proxy};
use crate::support::moto::{self, Moto, Server};

fn uri(key: &str) -> String {
    format!("aws-kms://{key}")
}

/// Wraps and unwraps, which must give the key back; what the wrap told.
#[track_caller]
fn round_trip(caller: impl Fn() -> Caller, uri: &str) -> Good {
    let wrapped = caller().one(wrap(uri, 7, "v")).result.unwrap();
    let unwrapped = caller()
        .one(unwrap(uri, &wrapped.blob, "v"))
        .result
        .unwrap();
    assert_eq!(unwrapped.key, [7; 32]);
    wrapped
}

#[test]
fn keys_are_wrapped_by_arn_key_id_and_alias_and_the_arn_is_told() {
    let moto = Moto::start();
    let arn = moto.create_key();
    moto.create_alias("app", &arn);
    let id = arn.rsplit('/').next().unwrap();
    let alias_arn = arn.replace(&format!("key/{id}"), "alias/app");
    for key in [arn.as_str(), id, "alias/app", &alias_arn] {
        let wrapped = round_trip(|| Caller::new(moto.env()), &uri(key));
        assert_eq!(wrapped.key_id, arn, "{key}");
        let told = Caller::new(moto.env())
            .one(describe(&uri(key)))
            .result
            .unwrap();
        assert_eq!(told.key_id, arn);
        assert_eq!(told.state, "Enabled");
        assert_eq!(told.credentials.as_deref(), Some("environment"));
    }
}

#[test]
fn a_wrong_context_or_an_altered_blob_is_a_wrong_key() {
    let moto = Moto::start();
    let key = uri(&moto.create_key());
    let wrapped = round_trip(|| Caller::new(moto.env()), &key);
    let mut altered = wrapped.blob.clone();
    *altered.last_mut().unwrap() ^= 1;
    let steps = [
        unwrap(&key, &wrapped.blob, "another vault"),
        unwrap(&key, &altered, "v"),
        unwrap(&key, b"", "v"),
        unwrap(&key, &[0; 7000], "v"),
    ];
    for outcome in Caller::new(moto.env()).run(&steps) {
        assert_eq!(outcome.result.unwrap_err().kind, "WrongKey");
    }
}

#[test]
fn every_call_sends_the_pinned_key_and_the_context_and_no_name_of_a_secret() {
    let moto = Moto::start();
    let arn = moto.create_key();
    let proxy = Proxy::before(moto.address());
    round_trip(|| Caller::new(moto.env_at(&proxy.url())), &uri(&arn));
    let seen = proxy.seen();
    let actions: Vec<_> = seen.iter().map(|s| s.action.as_str()).collect();
    assert_eq!(actions, ["Encrypt", "Decrypt"]);
    let context = [
        ("secretfs:vault", "v"),
        ("secretfs:purpose", "master-key"),
        ("secretfs:generation", "1"),
    ];
    let context: BTreeMap<_, _> = context
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    for call in &seen {
        assert_eq!(call.key_id.as_deref(), Some(arn.as_str()));
        assert_eq!(call.context, context);
    }
}

#[test]
fn the_region_of_an_arn_beats_the_environment() {
    let moto = Moto::start();
    let arn = moto.create_key_in("us-west-2");
    let proxy = Proxy::before(moto.address());
    round_trip(|| Caller::new(moto.env_at(&proxy.url())), &uri(&arn));
    round_trip(
        || Caller::new(moto.env_at(&proxy.url())).without("AWS_REGION"),
        &uri(&arn),
    );
    assert!(proxy.seen().iter().all(|seen| seen.region == "us-west-2"));
}

#[test]
fn endpoint_variables_are_honoured_and_the_one_for_kms_comes_first() {
    let moto = Moto::start();
    let key = uri(&moto.create_key());
    let nowhere = format!("http://{}", moto::free_address());
    round_trip(
        || Caller::new(moto.env()).env("AWS_ENDPOINT_URL", &nowhere),
        &key,
    );
    let general = || {
        Caller::new(moto.env())
            .without("AWS_ENDPOINT_URL_KMS")
            .env("AWS_ENDPOINT_URL", &moto.url())
    };
    round_trip(general, &key);
}

#[test]
fn profiles_are_honoured_for_credentials_region_and_endpoint() {
    let moto = Moto::start();
    let arn = moto.create_key_in("ap-south-1");
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join(".aws")).unwrap();
    let config = "[profile ops]\nregion = ap-south-1\n";
    fs::write(home.path().join(".aws/config"), config).unwrap();
    let secrets = "[ops]\naws_access_key_id = AKIAOPS\naws_secret_access_key = x\n";
    fs::write(home.path().join(".aws/credentials"), secrets).unwrap();
    let caller = || {
        Caller::new(moto.env())
            .without("AWS_ACCESS_KEY_ID")
            .without("AWS_SECRET_ACCESS_KEY")
            .without("AWS_REGION")
            .env("HOME", home.path().to_str().unwrap())
            .env("AWS_PROFILE", "ops")
    };
    let id = uri(arn.rsplit('/').next().unwrap());
    assert_eq!(round_trip(caller, &id).key_id, arn);
    let told = caller().one(describe(&id)).result.unwrap();
    assert_eq!(told.credentials.as_deref(), Some("shared profile ops"));
}

#[test]
fn an_explicit_credentials_file_comes_first_and_stands_alone() {
    let moto = Moto::start();
    let key = uri(&moto.create_key());
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("credentials");
    let secrets = "[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = x\n";
    fs::write(&file, secrets).unwrap();
    let told = Caller::new(moto.env())
        .credentials_file(file.clone())
        .one(describe(&key))
        .result
        .unwrap();
    let expected = format!(
        "credentials file {} (shared profile default)",
        file.display()
    );
    assert_eq!(told.credentials, Some(expected));

    // The environment holds good credentials, but nobody asked for those.
    fs::write(&file, "").unwrap();
    let outcome = Caller::new(moto.env())
        .credentials_file(file)
        .one(describe(&key));
    assert_eq!(outcome.result.unwrap_err().kind, "NoCredentials");
}

#[test]
fn container_and_web_identity_credentials_are_found_and_named() {
    let moto = Moto::start();
    let key = uri(&moto.create_key());
    let bare = || {
        Caller::new(moto.env())
            .without("AWS_ACCESS_KEY_ID")
            .without("AWS_SECRET_ACCESS_KEY")
    };
    let answer = r#"{"AccessKeyId":"AKIACONT","SecretAccessKey":"x","Token":"t","Expiration":"2099-01-01T00:00:00Z"}"#;
    let container = Proxy::always(Answer::Raw(200, "application/json", answer.to_owned()));
    let url = format!("{}/role", container.url());
    let told = bare()
        .env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url)
        .one(describe(&key))
        .result
        .unwrap();
    assert_eq!(told.credentials.as_deref(), Some("container"));

    let token = tempfile::NamedTempFile::new().unwrap();
    fs::write(token.path(), "token").unwrap();
    let told = bare()
        .env(
            "AWS_WEB_IDENTITY_TOKEN_FILE",
            token.path().to_str().unwrap(),
        )
        .env("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/app")
        .env("AWS_ENDPOINT_URL_STS", &moto.url())
        .one(describe(&key))
        .result
        .unwrap();
    assert_eq!(told.credentials.as_deref(), Some("web identity"));
}

#[test]
fn replaced_credentials_are_used_without_a_restart() {
    let moto = Moto::start();
    let key = uri(&moto.create_key());
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("credentials");
    let secrets = "[default]\naws_access_key_id = AKIAFILE\naws_secret_access_key = x\n";
    let steps = [
        describe(&key),
        Step::Write {
            path: file.clone(),
            content: secrets.to_owned(),
        },
        describe(&key),
    ];
    let outcomes = Caller::new(moto.env())
        .without("AWS_ACCESS_KEY_ID")
        .without("AWS_SECRET_ACCESS_KEY")
        .env("AWS_SHARED_CREDENTIALS_FILE", file.to_str().unwrap())
        .run(&steps);
    assert_eq!(
        outcomes[0].result.as_ref().unwrap_err().kind,
        "NoCredentials"
    );
    outcomes[2].result.as_ref().unwrap();
}

#[test]
fn calls_from_several_threads_all_get_their_own_answer() {
    let moto = Moto::start();
    let keys: Vec<String> = (0..4).map(|_| moto.create_key()).collect();
    let steps: Vec<Step> = (0..16)
        .map(|i| wrap(&uri(&keys[i % 4]), u8::try_from(i).unwrap(), "v"))
        .collect();
    let wrapped = Caller::new(moto.env()).at_once().run(&steps);
    let steps: Vec<Step> = wrapped
        .iter()
        .enumerate()
        .map(|(i, outcome)| {
            let wrapped = outcome.result.as_ref().unwrap();
            assert_eq!(wrapped.key_id, keys[i % 4]);
            unwrap(&uri(&keys[i % 4]), &wrapped.blob, "v")
        })
        .collect();
    for (i, outcome) in Caller::new(moto.env())
        .at_once()
        .run(&steps)
        .iter()
        .enumerate()
    {
        assert_eq!(
            outcome.result.as_ref().unwrap().key,
            [u8::try_from(i).unwrap(); 32]
        );
    }
}

#[test]
fn throttling_and_passing_faults_are_retried_within_the_call() {
    let moto = Moto::start();
    let key = uri(&moto.create_key());
    let proxy = Proxy::before(moto.address());
    for answer in [
        Answer::Error(400, "ThrottlingException", "Rate exceeded"),
        Answer::Error(500, "KMSInternalException", "try again"),
        Answer::Reset,
    ] {
        proxy.set_times(2, answer.clone());
        let before = proxy.count();
        let outcome = Caller::new(moto.env_at(&proxy.url())).one(describe(&key));
        assert!(outcome.result.is_ok(), "{answer:?}: {outcome:?}");
        assert_eq!(proxy.count() - before, 3, "{answer:?}");
    }
}

#[test]
fn a_hanging_call_holds_up_no_other_call() {
    let moto = Moto::start();
    let key = uri(&moto.create_key());
    let proxy = Proxy::before(moto.address());
    proxy.set_times(1, Answer::Hang);
    let steps: Vec<Step> = (0..4).map(|_| describe(&key)).collect();
    let outcomes = Caller::new(moto.env_at(&proxy.url()))
        .timeouts(Duration::from_secs(8), Duration::from_secs(60))
        .at_once()
        .run(&steps);
    let quick = outcomes
        .iter()
        .filter(|o| o.took < Duration::from_secs(7))
        .count();
    assert_eq!(quick, 3, "{outcomes:?}");
    assert!(
        outcomes.iter().all(|outcome| outcome.result.is_ok()),
        "{outcomes:?}"
    );
}

#[test]
fn a_private_certificate_authority_is_trusted_by_aws_ca_bundle_alone() {
    let moto = Moto::start();
    let key = uri(&moto.create_key());
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join("ca.pem");
    let address = moto::free_address();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/tls_front.py");
    let (port, behind) = (
        address.port().to_string(),
        moto.address().port().to_string(),
    );
    let arguments = [script, &port, &behind, bundle.to_str().unwrap()];
    let _front = Server::start(&moto::python(), &arguments, address).expect("a TLS server");
    let url = format!("https://{address}");
    let caller = || Caller::new(moto.env_at(&url));

    round_trip(
        || caller().env("AWS_CA_BUNDLE", bundle.to_str().unwrap()),
        &key,
    );

    let told = caller().one(describe(&key)).result.unwrap_err();
    assert_eq!(told.kind, "Unreachable");
    assert!(told.message.contains("AWS_CA_BUNDLE"), "{}", told.message);

    let empty = dir.path().join("empty.pem");
    fs::write(&empty, "").unwrap();
    for bad in [empty.to_str().unwrap(), "/nonexistent.pem"] {
        let told = caller()
            .env("AWS_CA_BUNDLE", bad)
            .one(describe(&key))
            .result
            .unwrap_err();
        assert_eq!(told.kind, "Configuration");
        assert!(told.message.contains(bad), "{}", told.message);
    }
}

#[test]
fn neither_keys_nor_credentials_are_logged_at_any_level() {
    let moto = Moto::start();
    let key = uri(&moto.create_key());
    let blob = Caller::new(moto.env())
        .one(wrap(&key, 7, "v"))
        .result
        .unwrap()
        .blob;
    // The second has the SDK log what it sends and receives.
    for told in ["false", "true"] {
        let mut caller = Caller::new(moto.env());
        if told == "true" {
            caller = caller
                .env("LOG_SENSITIVE_BODIES", told)
                .env("LOG_SIGNABLE_BODY", told);
        }
        let (outcomes, log) = caller.run_logged(&[wrap(&key, 7, "v"), unwrap(&key, &blob, "v")]);
        assert_eq!(outcomes[1].result.as_ref().unwrap().key, [7; 32]);
        assert!(log.contains(kms_call::LOGGING), "{log}");
        // The key in base64, as bytes in debug form, and the secret access key.
        for secret in [
            "BwcHBwcHBwcHBw",
            "7, 7, 7, 7",
            "\\x07\\x07",
            "07070707",
            "not-a-secret",
        ] {
            assert!(!log.contains(secret), "`{secret}` in: {log}");
        }
    }
}
