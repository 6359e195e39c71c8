//! Key metadata that somebody has put back, forged or taken away: refused, sent to no KMS, and
//! repaired by nothing that guesses. And a KMS that refuses while keys are being replaced.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::support::kms_proxy::{Answer, Proxy};
use crate::support::layer::Layer;
use crate::support::moto::Moto;
use crate::support::process::{Place, Ran, status};
use rusqlite::Connection;
use secretfs::crypto::schedule::Role;
use secretfs::keyring::{Event, EventKind, KeyringError, RotationKind, UnverifiedKeyring};
use secretfs::kms::{self, KeyUri};
use secretfs::vault::{Failure, Request, Vault};

fn rotate(layer: &Layer, request: &Request) {
    let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
    vault.begin(request).expect("begun");
    vault.drive(&|| ControlFlow::Continue(())).expect("driven");
}

fn filled(secrets: usize) -> Layer {
    let layer = Layer::in_memory();
    let served = layer.open();
    for n in 0..secrets {
        let (_, fh) = served.create(1, format!("s{n}").as_bytes(), 0o600);
        served.write(fh, 0, b"a secret").expect("written");
        served.flush(fh).expect("published");
        served.release(fh);
    }
    served.finish();
    layer
}

fn database(layer: &Layer) -> Connection {
    Connection::open(layer.vault().join("vault.db")).expect("open")
}

fn keyring_record(layer: &Layer) -> Vec<u8> {
    let sql = "SELECT value FROM keyring";
    database(layer)
        .query_row(sql, [], |row| row.get(0))
        .expect("a record")
}

fn put_keyring(layer: &Layer, record: &[u8]) {
    let changed = database(layer).execute("UPDATE keyring SET value = ?1", [record]);
    assert_eq!(changed.expect("changed"), 1);
}

fn failure(layer: &Layer, anchored: bool) -> Failure {
    let mut options = layer.options();
    if !anchored {
        options.anchor_dir = None;
    }
    match Vault::open(&layer.vault(), &options) {
        Ok(_) => panic!("it was opened"),
        Err(error) => error.failure(),
    }
}

#[test]
fn an_old_keyring_record_put_back_after_a_rotation_is_refused_with_and_without_an_anchor() {
    for request in [
        Request::Rotate,
        Request::Reencrypt,
        Request::Rewrap {
            to: vec![],
            leave_aws: false,
        },
    ] {
        let layer = filled(3);
        let old = keyring_record(&layer);
        rotate(&layer, &request);
        let new = keyring_record(&layer);
        put_keyring(&layer, &old);
        assert_eq!(failure(&layer, true), Failure::Integrity);
        assert_eq!(failure(&layer, false), Failure::Integrity);
        put_keyring(&layer, &new);
        assert_eq!(layer.check().problem_count, 0);
    }
}

#[test]
fn a_rotation_under_way_is_believed_only_to_the_bit() {
    let layer = filled(30);
    let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
    vault.begin(&Request::Rotate).expect("begun");
    let prepared = keyring_record(&layer);
    // Stops in the middle of the work.
    let steps = std::cell::Cell::new(0);
    let go_on = || {
        steps.set(steps.get() + 1);
        match vault.progress().is_some_and(|p| p.done > 5) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    vault.drive(&go_on).expect("stopped");
    assert!(vault.progress().is_some(), "it is under way");
    drop(vault);
    let migrating = keyring_record(&layer);
    put_keyring(&layer, &prepared);
    assert_eq!(
        failure(&layer, false),
        Failure::Integrity,
        "an earlier state of it"
    );
    for at in 0..migrating.len() {
        let mut forged = migrating.clone();
        forged[at] ^= 1 << (at % 8);
        put_keyring(&layer, &forged);
        assert_eq!(failure(&layer, false), Failure::Integrity, "byte {at}");
    }
    put_keyring(&layer, &migrating);
    let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
    vault
        .drive(&|| ControlFlow::Continue(()))
        .expect("finished");
    assert_eq!(vault.summary().active_generation, 2);
    drop(vault);
    assert_eq!(layer.check().problem_count, 0);
}

#[test]
fn after_a_rotation_the_old_master_key_opens_nothing_that_is_stored() {
    for request in [Request::Rotate, Request::Reencrypt] {
        let layer = filled(50);
        let header: Vec<u8> = database(&layer)
            .query_row("SELECT value FROM header", [], |row| row.get(0))
            .expect("a header");
        let old = UnverifiedKeyring::parse(&header, &keyring_record(&layer)).expect("parsed");
        let kms = kms::connect(&layer.kms());
        let old = old
            .unlock(&[KeyUri::default_local()], &kms)
            .expect("unlocked");
        let opened = |layer: &Layer| {
            let database = database(layer);
            let mut opened = 0;
            let mut nodes = database
                .prepare("SELECT id, value FROM node")
                .expect("prepared");
            let rows = nodes.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
            for row in rows.expect("queried") {
                let (id, value): (i64, Vec<u8>) = row.expect("a row");
                opened += u32::from(
                    old.unwrap(1, id as u64, Role::Metadata, &value[9..81])
                        .is_ok(),
                );
            }
            let sql = "SELECT node, version, value FROM version";
            let mut versions = database.prepare(sql).expect("prepared");
            let rows = versions.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
            for row in rows.expect("queried") {
                let (node, version, value): (i64, i64, Vec<u8>) = row.expect("a row");
                let role = Role::Content {
                    version: version as u64,
                };
                opened += u32::from(old.unwrap(1, node as u64, role, &value[..72]).is_ok());
            }
            opened
        };
        assert_eq!(opened(&layer), 2 + 2 * 50, "before, it opens all of them");
        rotate(&layer, &request);
        assert_eq!(opened(&layer), 0);
    }
}

#[test]
fn a_hundred_thousand_forged_generation_numbers_cause_no_call_to_a_kms() {
    const SECRETS: u64 = 500;
    let layer = filled(SECRETS as usize);
    let mut options = layer.options();
    options.read_only = true;
    let vault = Vault::open(&layer.vault(), &options).expect("opened");
    // Whoever asked a KMS now would be told that there is none.
    std::fs::rename(layer.path().join("kms"), layer.path().join("away")).expect("moved");
    let forge = database(&layer);
    let mut asked = 0;
    for round in 0..200 {
        forge
            .execute("UPDATE node SET generation = 2 + id * 1000 + ?1", [round])
            .expect("forged");
        for id in 1..=SECRETS {
            // Of a generation that nobody knows, or older than it was; a KMS would deny.
            match vault.node(id) {
                Err(error) if error.failure() == Failure::Integrity => asked += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(asked, 100_000);
}

#[test]
fn a_record_that_does_not_authenticate_stops_a_rotation_after_all_others_are_done() {
    let layer = filled(40);
    let database = database(&layer);
    let id: i64 = database
        .query_row("SELECT max(node) FROM version", [], |row| row.get(0))
        .expect("a version");
    let sql = "SELECT value FROM version WHERE node = ?1";
    let saved: Vec<u8> = database
        .query_row(sql, [id], |row| row.get(0))
        .expect("a value");
    let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
    let mut forged = saved.clone();
    forged[10] ^= 1;
    let put = "UPDATE version SET value = ?1 WHERE node = ?2";
    database.execute(put, (&forged, id)).expect("forged");
    vault.begin(&Request::Rotate).expect("begun");
    let error = vault
        .drive(&|| ControlFlow::Continue(()))
        .expect_err("blocked");
    assert_eq!(error.failure(), Failure::Integrity);
    let progress = vault.progress().expect("under way");
    assert!(
        progress
            .trouble
            .is_some_and(|t| t.contains(&format!("node {id}")))
    );
    let left = "SELECT (SELECT count(*) FROM node WHERE generation = 1) \
                + (SELECT count(*) FROM version WHERE generation = 1)";
    let left: i64 = database
        .query_row(left, [], |row| row.get(0))
        .expect("a count");
    // The vault's own key is replaced once all others are.
    assert_eq!(left, 2, "only what is damaged, and what sums up all");
    assert_eq!(vault.summary().generations.len(), 2, "its key is kept");
    database.execute(put, (&saved, id)).expect("restored");
    vault.drive(&|| ControlFlow::Continue(())).expect("goes on");
    assert_eq!(vault.summary().generations.len(), 1);
    drop(vault);
    assert_eq!(layer.check().problem_count, 0);
}

#[test]
fn a_name_taken_out_while_all_is_encrypted_anew_is_noticed() {
    let layer = filled(20);
    let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
    vault.begin(&Request::Reencrypt).expect("begun");
    // Until the names are about to be filed anew.
    let taken = std::cell::Cell::new(false);
    let go_on = || {
        let migrating = vault.progress().is_some_and(|p| p.total > 0);
        if migrating && !taken.replace(true) {
            let sql = "DELETE FROM entry WHERE tag = (SELECT min(tag) FROM entry)";
            assert_eq!(database(&layer).execute(sql, []).expect("taken out"), 1);
        }
        ControlFlow::Continue(())
    };
    let error = vault.drive(&go_on).expect_err("noticed");
    assert!(taken.get());
    assert_eq!(error.failure(), Failure::Integrity, "{error}");
    assert!(error.to_string().contains("directory 1"), "{error}");
    assert_eq!(vault.summary().generations.len(), 2, "the old key is kept");
}

#[test]
fn who_follows_is_led_neither_back_to_a_key_that_was_left_nor_to_a_foreign_one() {
    let layer = filled(3);
    let header: Vec<u8> = database(&layer)
        .query_row("SELECT value FROM header", [], |row| row.get(0))
        .expect("a header");
    let kms = kms::connect(&layer.kms());
    let pins = [KeyUri::default_local()];
    let parse = |record: &[u8]| UnverifiedKeyring::parse(&header, record).expect("parsed");
    let mut old = parse(&keyring_record(&layer))
        .unlock(&pins, &kms)
        .expect("unlocked");
    let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
    vault.begin(&Request::Rotate).expect("begun");
    let steps = std::cell::Cell::new(0);
    let go_on = || match vault.keyring().active() == 2 && steps.replace(steps.get() + 1) > 0 {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    vault.drive(&go_on).expect("stopped");
    let known = vault.keyring();
    assert!(known.holds(1) && known.holds(2), "both are in use");
    // Made with the old key, which somebody may have, and newer than all that was seen.
    let event = Event {
        at: 0,
        late: false,
        kind: EventKind::Retired { generation: 2 },
    };
    while old.body().sequence <= known.body().sequence {
        old.record_event(&event);
    }
    let error = parse(&old.encode())
        .follow(&known, &pins, &kms)
        .expect_err("refused");
    assert!(matches!(error, KeyringError::Integrity(_)), "{error}");
    // A key of her own as the newest, beside the old one.
    let hers: KeyUri = "local-kms://hers".parse().expect("a URI");
    kms.local()
        .expect("local")
        .ensure(hers.key())
        .expect("made");
    let new = old
        .make_generation(9, std::slice::from_ref(&hers), &kms, 0)
        .expect("made");
    old.prepare(RotationKind::Rotate, new, 0).expect("prepared");
    let proved = old.prove(9, &kms).expect("proved");
    old.activate(proved, 0).expect("activated");
    let error = parse(&old.encode())
        .follow(&known, &pins, &kms)
        .expect_err("refused");
    assert!(matches!(error, KeyringError::NotPinned(_)), "{error}");
}

#[test]
fn a_large_vault_with_an_older_part_serves_nothing_once_that_is_found() {
    let layer = filled(1500);
    let old: Vec<(i64, i64, Vec<u8>)> = {
        let database = database(&layer);
        let mut rows = database
            .prepare("SELECT id, generation, value FROM node")
            .expect("prepared");
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)));
        rows.expect("queried")
            .map(|row| row.expect("a row"))
            .collect()
    };
    let served = layer.open();
    let ino = served.lookup(1, b"s700").expect("found").ino;
    served.set_xattr(ino, b"user.x", b"newer", 0).expect("set");
    served.finish();
    let (id, generation, value) = old
        .iter()
        .find(|(id, ..)| *id == ino as i64)
        .expect("a node");
    let sql = "UPDATE node SET generation = ?2, value = ?3 WHERE id = ?1";
    database(&layer)
        .execute(sql, (id, generation, value))
        .expect("put back");
    let failure = layer.try_open().map(drop).expect_err("it is not opened");
    assert_eq!(failure.failure(), Failure::Integrity);
    let served = layer.open_counted_later();
    let deadline = Instant::now() + Duration::from_secs(60);
    while served.read_all(ino).is_ok() {
        assert!(Instant::now() < deadline, "it is served");
        std::thread::sleep(Duration::from_millis(5));
    }
    let other = served.lookup(1, b"s3").map(drop);
    assert_eq!(other.expect_err("nothing is served").0, libc::EIO);
    served.abort();
}

// --- a KMS that refuses ------------------------------------------------------------------------

#[test]
fn a_kms_that_refuses_or_is_away_changes_nothing_and_is_told_by_errno() {
    let moto = Moto::start();
    let proxy = Proxy::before(moto.address());
    let env = moto.env_at(&proxy.url());
    let place = Place::new();
    let key = format!("aws-kms://{}", moto.create_key());
    let run = |name: &str, more: &[&str]| {
        let mut command = place.command();
        command.envs(env.iter().map(|(k, v)| (k, v)));
        command.arg(name).arg(place.vault());
        if name == "mount" {
            command.arg(place.point());
        }
        Ran(command.args(more).output().expect("it runs"))
    };
    run("init", &["--kms-key", &key]).succeeded();
    run("mount", &["-o", "kms-timeout=2"]).succeeded();
    let point = place.point();
    std::fs::write(point.join("f"), "a secret").expect("written");
    let control = point.join(".secretfs/control");
    let before = status(&point)["keyring_sequence"].clone();
    let refusals = [
        (
            Answer::Error(400, "AccessDeniedException", "no."),
            libc::EACCES,
        ),
        (
            Answer::Error(400, "DisabledException", "off."),
            libc::EKEYREVOKED,
        ),
        (
            Answer::Error(400, "NotFoundException", "none."),
            libc::EKEYREVOKED,
        ),
        (
            Answer::Error(400, "InvalidCiphertextException", ""),
            libc::ENOKEY,
        ),
        (Answer::Reset, libc::ETIMEDOUT),
    ];
    for (answer, errno) in refusals {
        let shown = format!("{answer:?}");
        proxy.set(answer);
        for command in ["rotate", "reencrypt", "rewrap"] {
            let error = std::fs::write(&control, command).expect_err("refused");
            assert_eq!(error.raw_os_error(), Some(errno), "{command}, {shown}");
            let said = std::fs::read_to_string(&control).expect("readable");
            assert!(
                said.contains("failed: ") && said.contains(command),
                "{said}"
            );
        }
        assert_eq!(
            std::fs::read(point.join("f")).expect("readable"),
            b"a secret"
        );
    }
    assert_eq!(status(&point)["keyring_sequence"], before);
    proxy.set(Answer::Forward);
    // It does not leave AWS through the mount.
    let error = std::fs::write(&control, "rewrap local-kms://default").expect_err("refused");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    assert_eq!(status(&point)["keyring_sequence"], before);
    std::fs::write(&control, "rotate").expect("begun");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !status(&point)["rotation"].is_null() {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(status(&point)["active_generation"], 2);
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
    run("check", &[]).succeeded();
}

#[test]
fn a_kms_that_goes_away_after_the_intent_is_waited_for() {
    let moto = Moto::start();
    let proxy = Proxy::before(moto.address());
    let env = moto.env_at(&proxy.url());
    let place = Place::new();
    let key = format!("aws-kms://{}", moto.create_key());
    let mut init = place.command();
    init.envs(env.iter().map(|(k, v)| (k, v)))
        .arg("init")
        .arg(place.vault());
    Ran(init.args(["--kms-key", &key]).output().expect("it runs")).succeeded();
    let mut mount = place.command();
    mount
        .envs(env.iter().map(|(k, v)| (k, v)))
        .arg("mount")
        .arg(place.vault())
        .arg(place.point());
    Ran(mount
        .args(["-o", "kms-timeout=2"])
        .output()
        .expect("it runs"))
    .succeeded();
    let point = place.point();
    // Decrypt, to prove the key of now; encrypt and decrypt, for the new one; then nothing more.
    let before = proxy.count();
    std::fs::write(point.join(".secretfs/control"), "rotate").expect("begun");
    proxy.set(Answer::Reset);
    let calls = proxy.count() - before;
    assert!(calls >= 3, "{calls}");
    std::thread::sleep(Duration::from_secs(1));
    proxy.set(Answer::Forward);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !status(&point)["rotation"].is_null() {
        assert!(Instant::now() < deadline, "{:#}", status(&point));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(status(&point)["active_generation"], 2);
    place
        .run(["umount".as_ref(), point.as_os_str()])
        .succeeded();
}
