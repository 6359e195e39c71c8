//! The embedded KMS, as several processes see it.

use std::path::Path;

use crate::support::kms_call::{Caller, Outcome, Step, describe, unwrap, wrap};

/// A process that can reach no AWS at all: whatever its configuration touches is broken.
fn caller(dir: &Path) -> Caller {
    Caller::new(vec![
        (
            "SECRETFS_LOCAL_KMS_DIR".to_owned(),
            dir.to_str().unwrap().to_owned(),
        ),
        ("AWS_CONFIG_FILE".to_owned(), "/dev/full".to_owned()),
        ("AWS_CA_BUNDLE".to_owned(), "/nonexistent".to_owned()),
        (
            "AWS_ENDPOINT_URL".to_owned(),
            "http://127.0.0.1:1".to_owned(),
        ),
    ])
}

fn ensure(name: &str) -> Step {
    Step::Ensure {
        name: name.to_owned(),
    }
}

#[test]
fn the_local_kms_works_whatever_the_aws_configuration_is() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("kms");
    let uri = "local-kms://default";
    let steps = [ensure("default"), wrap(uri, 7, "v"), describe(uri)];
    let outcomes = caller(&dir).run(&steps);
    let wrapped = outcomes[1].result.as_ref().unwrap();
    assert_eq!(wrapped.key_id, "default@1");
    let told = outcomes[2].result.as_ref().unwrap();
    assert_eq!((told.state.as_str(), &told.credentials), ("Enabled", &None));
    let unwrapped = caller(&dir)
        .one(unwrap(uri, &wrapped.blob, "v"))
        .result
        .unwrap();
    assert_eq!(unwrapped.key, [7; 32]);
    let error = caller(&dir)
        .one(unwrap(uri, &wrapped.blob, "w"))
        .result
        .unwrap_err();
    assert_eq!(error.kind, "WrongKey");
}

#[test]
fn of_creators_in_several_processes_one_wins_and_none_overwrites() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("kms");
    let uris: Vec<String> = (0..25).map(|i| format!("local-kms://key-{i}")).collect();
    let steps: Vec<Step> = uris
        .iter()
        .flat_map(|uri| {
            [
                ensure(uri.strip_prefix("local-kms://").unwrap()),
                wrap(uri, 7, "v"),
            ]
        })
        .collect();
    let runs: Vec<Vec<Outcome>> = std::thread::scope(|scope| {
        let creators: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| caller(&dir).run(&steps)))
            .collect();
        creators
            .into_iter()
            .map(|creator| creator.join().unwrap())
            .collect()
    });
    for (i, uri) in uris.iter().enumerate() {
        let good = |run: &[Outcome], step: usize| run[2 * i + step].result.clone().unwrap();
        let created = runs
            .iter()
            .filter(|run| good(run, 0).state == "true")
            .count();
        assert_eq!(created, 1, "{uri}");
        let opens: Vec<Step> = runs
            .iter()
            .map(|run| unwrap(uri, &good(run, 1).blob, "v"))
            .collect();
        for outcome in caller(&dir).run(&opens) {
            assert_eq!(outcome.result.unwrap().key, [7; 32], "{uri}");
        }
    }
}
