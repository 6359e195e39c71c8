//! What AWS KMS, or whatever stands in its place, can answer: each is told in its class and in
//! plain words, within the time allowed.

use std::time::Duration;

use crate::support::kms_call::{Bad, Caller, Outcome, Step, describe, unwrap, wrap};
use crate::support::kms_proxy::{Answer, Proxy};
use crate::support::moto::{environment, free_address};

const KEY: &str =
    "aws-kms://arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";
/// What the tests pretend to have as a wrap; must never be seen in an error.
const BLOB: &[u8] = b"ciphertext-ciphertext-ciphertext-ciphertext";

fn caller(url: &str) -> Caller {
    // No test here needs a home that exists.
    Caller::new(environment("/nonexistent".as_ref(), url))
}

fn steps() -> [Step; 3] {
    [wrap(KEY, 7, "v"), unwrap(KEY, BLOB, "v"), describe(KEY)]
}

/// All three operations must fail with `kind`, on this key, and with all of `words`.
#[track_caller]
fn fails(answer: Answer, kind: &str, words: &[&str]) {
    let proxy = Proxy::always(answer.clone());
    for outcome in caller(&proxy.url()).run(&steps()) {
        failed(&outcome, kind, words, &format!("{answer:?}"));
    }
    assert!(proxy.count() >= 3);
}

#[track_caller]
fn failed(outcome: &Outcome, kind: &str, words: &[&str], what: &str) {
    let Err(Bad { kind: got, message }) = &outcome.result else {
        panic!("{what}: {outcome:?}");
    };
    assert_eq!(got, kind, "{what}: {message}");
    assert!(message.contains(KEY), "{what}: {message}");
    assert!(!message.contains('\n'), "{what}: {message}");
    for word in words {
        assert!(message.contains(word), "{what}: no `{word}` in: {message}");
    }
    for secret in [
        "not-a-secret",
        "ciphertext-",
        "Y2lwaGVydGV4d",
        "BwcHBwcHBwcHBwcHBwcH",
    ] {
        assert!(!message.contains(secret), "{what}: {message}");
    }
}

fn error(code: &'static str) -> Answer {
    Answer::Error(400, code, "Said by AWS")
}

#[test]
fn denied_calls_name_action_key_and_credentials() {
    let arn = KEY.strip_prefix("aws-kms://").unwrap();
    let message = "User: arn:aws:iam::111122223333:user/app is not authorized to perform this";
    let proxy = Proxy::always(Answer::Error(400, "AccessDeniedException", message));
    let outcomes = caller(&proxy.url()).run(&steps());
    for (outcome, action) in outcomes
        .iter()
        .zip(["kms:Encrypt", "kms:Decrypt", "kms:DescribeKey"])
    {
        let words = [action, arn, "(from: environment)", "key policy", "user/app"];
        failed(outcome, "Denied", &words, action);
    }
}

#[test]
fn unusable_credentials_are_denied_and_the_remedy_named() {
    fails(
        error("ExpiredTokenException"),
        "Denied",
        &["expired", "renew"],
    );
    fails(
        error("UnrecognizedClientException"),
        "Denied",
        &["access key", "replace"],
    );
    fails(
        error("InvalidClientTokenId"),
        "Denied",
        &["access key", "replace"],
    );
    fails(
        error("InvalidSignatureException"),
        "Denied",
        &["signature", "clock"],
    );
    fails(error("InvalidGrantTokenException"), "Denied", &["grant"]);
}

#[test]
fn states_of_the_key_are_told_apart() {
    fails(error("DisabledException"), "Disabled", &["enable it"]);
    let pending = "arn:aws:kms:eu-central-1:111122223333:key/1 is pending deletion.";
    let pending = Answer::Error(400, "KMSInvalidStateException", pending);
    fails(
        pending,
        "PendingDeletion",
        &["is pending deletion.", "cancel the deletion"],
    );
    fails(
        error("NotFoundException"),
        "NotFound",
        &["no such key", "eu-central-1"],
    );
    let unavailable = Answer::Error(500, "KeyUnavailableException", "later");
    fails(
        unavailable,
        "Unreachable",
        &["KeyUnavailableException", "try again"],
    );
    let internal = Answer::Error(500, "KMSInternalException", "later");
    fails(internal, "Unreachable", &["try again"]);
    let dependency = Answer::Error(503, "DependencyTimeoutException", "later");
    fails(dependency, "Unreachable", &["try again"]);
}

#[test]
fn wrong_keys_and_contexts_are_told() {
    fails(
        error("IncorrectKeyException"),
        "WrongKey",
        &["not the key that wrapped it"],
    );
    fails(
        error("InvalidCiphertextException"),
        "WrongKey",
        &["context", "altered"],
    );
}

#[test]
fn keys_of_the_wrong_kind_are_a_matter_of_configuration() {
    fails(
        error("InvalidKeyUsageException"),
        "Configuration",
        &["symmetric"],
    );
    fails(
        error("ValidationException"),
        "Configuration",
        &["alias/NAME"],
    );
    fails(error("InvalidArnException"), "Configuration", &["ARN"]);
    let bad = "aws-kms://arn:aws:kms:eu/../x:1:key/1";
    let outcome = caller("http://127.0.0.1:1").one(describe(bad));
    assert_eq!(outcome.result.unwrap_err().kind, "Configuration");
}

#[test]
fn throttling_is_told_after_the_retries() {
    fails(error("ThrottlingException"), "Throttled", &["less often"]);
    fails(
        error("LimitExceededException"),
        "Throttled",
        &["less often"],
    );
    let proxy = Proxy::always(error("ThrottlingException"));
    caller(&proxy.url()).one(describe(KEY)).result.unwrap_err();
    assert_eq!(proxy.count(), 3);
}

#[test]
fn refusals_in_xml_or_html_are_classified_too() {
    let xml = |status, body: &str| Answer::Raw(status, "text/xml", body.to_owned());
    let denied = "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>";
    fails(xml(403, denied), "Denied", &["kms:"]);
    let wrong = "<ErrorResponse><Error><Code>SignatureDoesNotMatch</Code></Error></ErrorResponse>";
    fails(xml(403, wrong), "Denied", &["signature"]);
    // What moto sends.
    let moto = r#"<?xml version="1.0" encoding="utf-8"?>
        <ErrorResponse><Errors><Error><Code>InvalidClientTokenId</Code><Message>The security token included in the request is invalid.</Message><Type>Sender</Type></Error></Errors></ErrorResponse>"#;
    fails(xml(403, moto), "Denied", &["access key"]);
    // Not the word of AWS, but of something in between.
    fails(
        xml(403, "<html>no</html>"),
        "BadAnswer",
        &["403", "proxies"],
    );
    fails(xml(403, ""), "BadAnswer", &["403", "proxies"]);
    fails(xml(429, "<html>slow</html>"), "Throttled", &["less often"]);
    fails(xml(503, "<html>down</html>"), "Unreachable", &["try again"]);
    fails(xml(404, "<html>what?</html>"), "BadAnswer", &["404"]);
}

#[test]
fn answers_that_are_none_are_told_and_never_panic() {
    let json = |body: &str| Answer::Raw(200, "application/x-amz-json-1.1", body.to_owned());
    for body in ["{}", "", "null", "[]", "{", "hello", "{\"KeyMetadata\":{}}"] {
        fails(json(body), "BadAnswer", &["answered"]);
    }
    fails(
        error("NoSuchErrorException"),
        "BadAnswer",
        &["NoSuchErrorException"],
    );
}

#[test]
fn an_answer_from_another_key_or_with_no_256_bit_key_is_refused() {
    let arn = KEY.strip_prefix("aws-kms://").unwrap();
    let short = "AAAA";
    let right = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    let answer = |arn: &str, plain: &str| {
        let body = format!(
            r#"{{"KeyId":"{arn}","Plaintext":"{plain}","CiphertextBlob":"AAAA","KeyMetadata":{{"KeyId":"x","Arn":"{arn}","KeyState":"Enabled"}}}}"#
        );
        Proxy::always(Answer::Raw(200, "application/x-amz-json-1.1", body))
    };
    let good = caller(&answer(arn, right).url()).run(&steps());
    assert_eq!(good[1].result.as_ref().unwrap().key, [7; 32]);
    assert!(
        good.iter().all(|outcome| outcome.result.is_ok()),
        "{good:?}"
    );

    let other = arn.replace("1234abcd", "99999999");
    for outcome in caller(&answer(&other, right).url()).run(&steps()) {
        failed(&outcome, "BadAnswer", &["another key", &other], "other key");
    }
    for plain in [short, "", &"A".repeat(44)] {
        let outcome = caller(&answer(arn, plain).url()).one(unwrap(KEY, BLOB, "v"));
        failed(&outcome, "BadAnswer", &["256 bits"], plain);
    }
}

#[test]
fn a_service_that_echoes_the_request_gives_nothing_away() {
    // Words of 40 characters and more could be key or ciphertext, in whatever form.
    let echo = "cannot read BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";
    fails(
        Answer::Error(400, "AccessDeniedException", echo),
        "Denied",
        &["cannot read ..."],
    );
    fails(
        Answer::Error(400, "KMSInvalidStateException", echo),
        "PendingDeletion",
        &[],
    );
    fails(
        Answer::Error(400, "ValidationException", echo),
        "Configuration",
        &[],
    );
}

#[test]
fn connections_that_are_refused_reset_or_cut_off_are_unreachable() {
    fails(Answer::Reset, "Unreachable", &["connection"]);
    fails(Answer::Half, "Unreachable", &["connection"]);
    let outcome = caller(&format!("http://{}", free_address())).one(describe(KEY));
    failed(
        &outcome,
        "Unreachable",
        &["connection was refused"],
        "refused",
    );
    let outcome = caller("https://no-such-host.invalid").one(describe(KEY));
    failed(
        &outcome,
        "Unreachable",
        &["no-such-host.invalid"],
        "unknown name",
    );
}

#[test]
fn a_hung_server_is_told_within_the_total_timeout() {
    let proxy = Proxy::always(Answer::Hang);
    let bounds = (Duration::from_secs(1), Duration::from_secs(2));
    for outcome in caller(&proxy.url())
        .timeouts(bounds.0, bounds.1)
        .at_once()
        .run(&steps())
    {
        failed(&outcome, "Unreachable", &["network"], "hung");
        assert!(outcome.took < Duration::from_secs(20), "{outcome:?}");
    }
    // The bound on one attempt leaves time for others.
    let outcome = caller(&proxy.url())
        .timeouts(Duration::from_millis(300), Duration::from_secs(30))
        .one(describe(KEY));
    failed(&outcome, "Unreachable", &["in time"], "hung attempts");
    assert!(outcome.took < Duration::from_secs(20), "{outcome:?}");
}

#[test]
fn missing_credentials_are_told_and_where_they_were_looked_for() {
    let proxy = Proxy::always(Answer::Hang);
    let bare = || caller(&proxy.url()).without("AWS_ACCESS_KEY_ID");
    for outcome in bare().run(&steps()) {
        failed(
            &outcome,
            "NoCredentials",
            &["AWS_PROFILE", "AWS_ACCESS_KEY_ID"],
            "none",
        );
    }
    let outcome = bare()
        .env("AWS_PROFILE", "no-such-profile")
        .one(describe(KEY));
    failed(
        &outcome,
        "NoCredentials",
        &["no-such-profile"],
        "unknown profile",
    );
    assert_eq!(proxy.count(), 0, "nothing is asked without credentials");
}

#[test]
fn a_search_for_credentials_that_hangs_is_told_apart_from_a_hung_kms() {
    let hung = Proxy::always(Answer::Hang);
    let bare = || {
        caller("http://127.0.0.1:1")
            .without("AWS_ACCESS_KEY_ID")
            .without("AWS_EC2_METADATA_DISABLED")
            .timeouts(Duration::from_millis(500), Duration::from_secs(1))
    };
    let container = format!("{}/role", hung.url());
    for caller in [
        bare().env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container),
        bare().env("AWS_EC2_METADATA_SERVICE_ENDPOINT", &hung.url()),
    ] {
        let outcome = caller.one(describe(KEY));
        failed(&outcome, "NoCredentials", &["credentials"], "hung search");
        assert!(outcome.took < Duration::from_secs(20), "{outcome:?}");
    }
}

#[test]
fn an_unknown_region_is_told() {
    let outcome = caller("http://127.0.0.1:1")
        .without("AWS_REGION")
        .one(describe("aws-kms://alias/app"));
    let error = outcome.result.unwrap_err();
    assert_eq!(error.kind, "Configuration");
    assert!(error.message.contains("AWS_REGION"), "{}", error.message);
    let outcome = caller("http://127.0.0.1:1")
        .env("AWS_REGION", "evil/x")
        .one(describe("aws-kms://alias/app"));
    assert_eq!(outcome.result.unwrap_err().kind, "Configuration");
}

#[test]
fn a_key_in_no_state_to_serve_is_described_as_such() {
    let arn = KEY.strip_prefix("aws-kms://").unwrap();
    for (said, state) in [
        ("Enabled", "Enabled"),
        ("Updating", "Enabled"),
        ("Disabled", "Disabled"),
        ("PendingDeletion", "PendingDeletion"),
        ("PendingReplicaDeletion", "PendingDeletion"),
        ("PendingImport", "Unavailable"),
        ("Creating", "Unavailable"),
        ("SomethingNew", "Unavailable"),
    ] {
        let body = format!(
            r#"{{"KeyMetadata":{{"KeyId":"1","Arn":"{arn}","KeyState":"{said}","KeyUsage":"ENCRYPT_DECRYPT","KeySpec":"SYMMETRIC_DEFAULT"}}}}"#
        );
        let proxy = Proxy::always(Answer::Raw(200, "application/x-amz-json-1.1", body.clone()));
        let told = caller(&proxy.url()).one(describe(KEY)).result.unwrap();
        assert_eq!(told.state, state, "{said}");
        let signing = body.replace("ENCRYPT_DECRYPT", "SIGN_VERIFY");
        proxy.set(Answer::Raw(200, "application/x-amz-json-1.1", signing));
        let outcome = caller(&proxy.url()).one(describe(KEY));
        failed(&outcome, "Configuration", &["symmetric"], said);
    }
}
