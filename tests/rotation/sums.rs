//! The key under which the state and the sums over the vault stand: every rotation that replaces the
//! master key replaces it, beside those who write, and nobody who has the old one passes anything off
//! as genuine.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::support::evil::{Record, copy, database};
use crate::support::forge::{Hand, Stored, count_into, put_state, state};
use crate::support::layer::{Layer, new_node};
use crate::support::process::{Place, detach, wait_for};
use crate::support::rotating::check_is_clean;
use rusqlite::Connection;
use secretfs::codec;
use secretfs::crypto::SecretKey;
use secretfs::crypto::schedule::{MetadataKey, Role, VaultId};
use secretfs::keyring::KeyringBody;
use secretfs::store::Durability;
use secretfs::vault::{Kind, Phase, Publication, ROOT, Request, Tx, Vault};

const SOON: Duration = Duration::from_secs(60);

fn unmount(place: &Place) {
    detach(&place.point());
    wait_for("the daemon's end", SOON, || place.daemons().is_empty());
}

/// Somebody who has a copy of the vault with one secret, and the master key of its time.
struct Thief {
    vault: VaultId,
    /// The vault's own key, and its state record as the copy has it.
    system: MetadataKey,
    state: Vec<u8>,
    /// The secret's node and the key of its attributes.
    file: u64,
    of_file: MetadataKey,
}

fn robbed() -> (Place, Thief, Hand) {
    let place = Place::with_vault();
    place.mount(&[]).succeeded();
    let password = place.point().join("password");
    std::fs::write(&password, "s3cret").expect("written");
    std::fs::set_permissions(&password, PermissionsExt::from_mode(0o600)).expect("changed");
    unmount(&place);
    let copied = place.path().join("copied");
    copy(&place.vault(), &copied);
    let hand = Hand::of(&copied, &place.path().join("kms"));
    let copied = Connection::open(copied.join("vault.db")).expect("a database");
    let file = copied.query_row("SELECT max(id) FROM node", [], |row| row.get::<_, i64>(0));
    let file = file.expect("a node") as u64;
    let key = |node| {
        hand.metadata_key(&copied, node)
            .expect("it is under her key")
    };
    let system = key(0);
    let thief = Thief {
        vault: hand.vault,
        state: state(&copied, hand.vault, &system)
            .expect("it opens")
            .to_vec(),
        system,
        file,
        of_file: key(file),
    };
    (place, thief, hand)
}

impl Thief {
    /// Opens the secret to everybody, and has the state record say that this is right.
    fn forge(&self, place: &Place) {
        let database = database(place);
        let mut stored = Stored::of(&database, self.file);
        let attributes = stored.attributes(self.vault, &self.of_file);
        let mut attributes = attributes
            .expect("they are still sealed with the same key")
            .to_vec();
        attributes[..4].copy_from_slice(&0o777u32.to_le_bytes());
        stored.set_attributes(self.vault, &self.of_file, &attributes);
        stored.put(&database);
        // The keyring's sequence can be read, and the number of the commit is as high as one likes.
        let body: KeyringBody = codec::decode(&Record::of(place).body, "body").expect("a body");
        let mut state = self.state.clone();
        state[..8].copy_from_slice(&1_000_000u64.to_le_bytes());
        state[8..16].copy_from_slice(&body.sequence.to_le_bytes());
        count_into(&mut state, &database, &self.system);
        put_state(&database, self.vault, &self.system, &state);
    }
}

#[test]
fn after_a_rotation_the_old_keys_open_neither_state_nor_sums_and_forge_no_node() {
    for what in ["rotate", "reencrypt"] {
        let (place, thief, hand) = robbed();
        let vault = place.vault();
        // Before it, she can.
        let forged = place.path().join("forged");
        let kept = place.path().join("kept");
        copy(&vault, &kept);
        thief.forge(&place);
        place.mount(&[]).succeeded();
        let mode = std::fs::metadata(place.point().join("password")).expect("there");
        assert_eq!(
            mode.permissions().mode() & 0o777,
            0o777,
            "the forgery is one"
        );
        unmount(&place);
        std::fs::rename(&vault, &forged).expect("moved");
        std::fs::rename(&kept, &vault).expect("back");
        std::fs::remove_dir_all(place.path().join("anchors")).expect("forgotten");

        let ran = place.run([what.as_ref(), vault.as_os_str()]);
        assert!(ran.0.status.success(), "{}", ran.stderr());
        check_is_clean(&place);
        assert!(hand.metadata_key(&database(&place), 0).is_none());
        copy(&vault, &kept);
        if what == "rotate" {
            thief.forge(&place);
        } else {
            // There is nothing left that she could change.
            let stored = Stored::of(&database(&place), thief.file);
            assert!(stored.attributes(thief.vault, &thief.of_file).is_none());
            put_state(&database(&place), thief.vault, &thief.system, &thief.state);
        }
        for more in [&[][..], &["-o", "ro"]] {
            place.mount(more).failed(6, "");
        }
        let ran = place.run(["check".as_ref(), vault.as_os_str()]);
        assert_eq!(ran.0.status.code(), Some(6), "{}", ran.stderr());
        std::fs::remove_dir_all(&vault).expect("removed");
        std::fs::rename(&kept, &vault).expect("back");
        // She reads none of it, either.
        assert!(state(&database(&place), thief.vault, &thief.system).is_none());
        place.mount(&[]).succeeded();
        assert_eq!(
            std::fs::read(place.point().join("password")).expect("read"),
            b"s3cret"
        );
        unmount(&place);
    }
}

/// The vault's own key, as who has the master key of now has it.
fn system_key(layer: &Layer) -> Vec<u8> {
    let hand = Hand::of(&layer.vault(), &layer.path().join("kms"));
    let database = Connection::open(layer.vault().join("vault.db")).expect("a database");
    let key = hand
        .metadata_key(&database, 0)
        .expect("it is under the active key");
    key.0.expose().to_vec()
}

fn write(vault: &Vault, n: usize) {
    let outcomes = vault.transact(
        Durability::Soon,
        &mut [&mut |tx: &mut Tx<'_>| {
            let name = format!("s{n}");
            if n > 20 {
                tx.unlink(
                    ROOT,
                    format!("s{}", n - 20).as_bytes(),
                    &secretfs::vault::NothingOpen,
                )?;
            }
            let file = tx.create(ROOT, name.as_bytes(), &new_node(Kind::File, 0o600))?;
            tx.publish(file, name.as_bytes(), Publication::Replacement, None, &[])?;
            Ok(())
        }],
    );
    for outcome in outcomes.expect("committed") {
        outcome.expect("done");
    }
}

#[test]
fn what_is_written_while_the_sums_are_made_anew_is_in_them() {
    fail::cfg("keys-at-a-time", "return(1)").expect("a fail point");
    for request in [Request::Rotate, Request::Reencrypt] {
        let layer = Layer::in_memory();
        let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
        let written = Cell::new(0);
        let more = || {
            written.set(written.get() + 1);
            write(&vault, written.get());
        };
        (0..40).for_each(|_| more());
        let before = system_key(&layer);
        vault.begin(&request).expect("begun");
        let looked = Cell::new(0);
        let go_on = || {
            // Asked for by every look at a record.
            if vault
                .progress()
                .is_some_and(|p| p.phase == Phase::Verifying)
            {
                looked.set(looked.get() + 1);
                more();
            }
            ControlFlow::Continue(())
        };
        vault.drive(&go_on).expect("driven");
        assert!(looked.get() > 40, "{} times", looked.get());
        vault.recount().expect("the sums are right");
        assert_eq!(vault.summary().generations.len(), 1);
        drop(vault);
        assert_ne!(system_key(&layer), before, "{request}");
        assert_eq!(layer.check().problem_count, 0);
    }
    fail::remove("keys-at-a-time");
}

/// Stops when it has been asked so often in this state.
fn drive_until(vault: &Vault, phase: Phase, times: u32) {
    let left = Cell::new(times);
    let go_on = || {
        let there = vault.progress().is_some_and(|p| p.phase == phase);
        match there && left.replace(left.get().saturating_sub(1)) == 0 {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    };
    vault.drive(&go_on).expect("driven");
}

/// Does what programs did whose `rotate` wrapped the vault's own key anew, and no more.
fn wrap_system_anew(layer: &Layer, vault: Vault, system: &MetadataKey) {
    let keyring = vault.keyring();
    assert_eq!(keyring.active(), 2);
    drop(vault);
    let database = Connection::open(layer.vault().join("vault.db")).expect("a database");
    let wrapped = keyring.wrap(0, Role::Metadata, &system.0).expect("wrapped");
    let mut stored = Stored::of(&database, 0);
    stored.set_key(keyring.vault(), system, wrapped);
    stored.put(&database);
    let mut said = state(&database, keyring.vault(), system).expect("it opens");
    count_into(&mut said, &database, system);
    put_state(&database, keyring.vault(), system, &said);
}

#[test]
fn a_rotation_that_an_earlier_program_left_in_its_middle_is_finished_and_makes_the_sums_anew() {
    for (phase, times) in [
        (Phase::Migrating, 0),
        (Phase::Migrating, 2),
        (Phase::Verifying, 0),
    ] {
        let layer = Layer::in_memory();
        let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
        (1..40).for_each(|n| write(&vault, n));
        let before = system_key(&layer);
        let system = MetadataKey(SecretKey::from_slice(&before).expect("32 bytes"));
        vault.begin(&Request::Rotate).expect("begun");
        drive_until(&vault, phase, times);
        wrap_system_anew(&layer, vault, &system);
        assert_eq!(layer.check().problem_count, 0, "{phase:?}");
        let vault = Vault::open(&layer.vault(), &layer.options()).expect("opened");
        assert!(vault.is_rotating());
        vault.drive(&|| ControlFlow::Continue(())).expect("driven");
        assert_eq!(vault.summary().generations.len(), 1);
        drop(vault);
        assert_ne!(system_key(&layer), before, "{phase:?}");
        assert_eq!(layer.check().problem_count, 0, "{phase:?}");
    }
}
