//! A vault that is opened while another process commits.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::kms::{KeyUri, KmsSettings};

use super::super::super::{InitOptions, OpenOptions, Outcome, Request, Vault, init};

#[test]
fn what_another_process_remembers_while_a_vault_is_opened_is_no_rollback() {
    let scenario = fail::FailScenario::setup();
    let home = tempfile::tempdir().unwrap();
    let (path, anchor_dir) = (home.path().join("vault"), home.path().join("anchors"));
    let kms = KmsSettings {
        local_dir: Some(home.path().join("kms")),
        ..KmsSettings::default()
    };
    let new = InitOptions {
        kms_keys: vec![KeyUri::default_local()],
        uid: 0,
        gid: 0,
        kms: kms.clone(),
        anchor_dir: Some(anchor_dir.clone()),
    };
    init(&path, &new).unwrap();
    let options = OpenOptions {
        kms,
        anchor_dir: Some(anchor_dir),
        ..OpenOptions::default()
    };
    let writer = Arc::new(Vault::open(&path, &options).unwrap());
    let before = writer.keyring().body().sequence;

    let rotating = Arc::clone(&writer);
    let rotate = move || {
        fail::remove("memory-loaded");
        rotating.begin(&Request::Rotate).unwrap();
        let go_on = || ControlFlow::Continue(());
        assert_eq!(rotating.drive(&go_on).unwrap(), Outcome::Done);
        rotating.keep_anchor().unwrap();
    };
    fail::cfg_callback("memory-loaded", rotate).unwrap();
    let reading = OpenOptions {
        read_only: true,
        ..options
    };
    let reader = Vault::open(&path, &reading).expect("no rollback");
    assert!(reader.keyring().body().sequence > before);
    assert_eq!(reader.state().commit, writer.state().commit);
    scenario.teardown();
}
