//! Keys of the local KMS on the disk of the vault: who makes a vault, and who asks how one is, is told.

use crate::support::moto::Moto;
use crate::support::process::{PROGRAM, Place, Ran, in_own_namespace};
use serde_json::Value;

const WARNING: &str = "lie on one file system";

/// Runs a script in a mount namespace, with the program in `$SECRETFS` and the place in `$PLACE`.
fn in_namespace(place: &Place, script: &str) -> Ran {
    let mut command = in_own_namespace(place);
    command
        .args(["sh", "-euc", script])
        .env("SECRETFS", PROGRAM);
    Ran(command.output().expect("unshare runs")).succeeded()
}

fn warnings(status: &str) -> Vec<String> {
    let status: Value = serde_json::from_str(status).expect("JSON");
    let warnings = status["warnings"].as_array().expect("an array");
    let text = |warning: &Value| warning.as_str().expect("a string").to_owned();
    warnings.iter().map(text).collect()
}

#[test]
fn who_makes_or_looks_at_a_vault_on_the_disk_of_its_key_is_warned() {
    let place = Place::new();
    let ran = place
        .run(["init".as_ref(), place.vault().as_os_str()])
        .succeeded();
    let said = ran.stdout();
    let warned: Vec<&str> = said.lines().filter(|l| l.contains(WARNING)).collect();
    assert_eq!(warned.len(), 1, "{said}");
    for part in ["warning: ", "local-kms://default", "kms"] {
        assert!(warned[0].contains(part), "{said}");
    }
    let status = |path: &std::path::Path| {
        let ran = place.run(["status".as_ref(), path.as_os_str(), "--json".as_ref()]);
        warnings(&ran.succeeded().stdout())
    };
    let one = |warnings: Vec<String>| {
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains(WARNING), "{warnings:?}");
    };
    one(status(&place.vault()));
    place.mount(&[]).succeeded();
    one(status(&place.point()));
    one(status(&place.vault()));
    let file = std::fs::read_to_string(place.point().join(".secretfs/status"));
    one(warnings(&file.expect("read")));
    let ran = place.run(["status".as_ref(), place.point().as_os_str()]);
    assert!(ran.succeeded().stdout().contains(WARNING));
}

#[test]
fn a_bind_mount_does_not_hide_that_key_and_vault_share_a_disk() {
    let place = Place::new();
    let script = r#"
        mkdir "$PLACE/there" "$PLACE/keys"
        mount --bind "$PLACE/there" "$PLACE/keys"
        export SECRETFS_LOCAL_KMS_DIR="$PLACE/keys/kms"
        "$SECRETFS" init "$PLACE/v" > /dev/null
        "$SECRETFS" status "$PLACE/v" --json
    "#;
    let said = in_namespace(&place, script).stdout();
    assert_eq!(warnings(&said).len(), 1, "{said}");
}

#[test]
fn a_key_on_another_file_system_is_no_reason_to_warn() {
    let place = Place::new();
    let script = r#"
        mkdir "$PLACE/keys"
        mount -t tmpfs -o mode=0700 keys "$PLACE/keys"
        export SECRETFS_LOCAL_KMS_DIR="$PLACE/keys/kms"
        "$SECRETFS" init "$PLACE/v" > "$PLACE/said"
        "$SECRETFS" status "$PLACE/v" --json
    "#;
    let status = in_namespace(&place, script).stdout();
    assert_eq!(warnings(&status), [""; 0]);
    let said = std::fs::read_to_string(place.path().join("said")).expect("read");
    assert!(said.contains("a new local key") && !said.contains("warning"));
}

#[test]
fn keys_of_others_beside_a_vault_under_aws_are_no_reason_to_warn() {
    let place = Place::with_vault();
    let moto = Moto::start();
    let key = format!("aws-kms://{}", moto.create_key());
    let vault = place.path().join("aws");
    let run = |args: &[&str]| {
        let mut command = place.command();
        command.envs(moto.env()).arg(args[0]).arg(&vault);
        Ran(command.args(&args[1..]).output().expect("it runs")).succeeded()
    };
    let said = run(&["init", "--kms-key", &key]).stdout();
    assert!(!said.contains("warning"), "{said}");
    assert_eq!(warnings(&run(&["status", "--json"]).stdout()), [""; 0]);
}
