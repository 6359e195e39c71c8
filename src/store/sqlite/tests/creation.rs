//! A vault is created completely or not at all.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use super::*;
use crate::store::Abort;

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_new_vault_is_private_and_consists_of_two_files() {
    let vault = Vault::new();
    assert_eq!(mode(&vault.directory), 0o700);
    assert_eq!(
        vault.snapshot().keys().collect::<Vec<_>>(),
        ["lock", "vault.db"]
    );
    assert_eq!(mode(&vault.file("vault.db")), 0o600);
    assert_eq!(mode(&vault.file("lock")), 0o600);
    let store = vault.writer();
    put(&store, |tx| tx.put_orphan(1)).unwrap();
    assert_eq!(mode(&vault.file("vault.db-wal")), 0o600);
    assert_eq!(mode(&vault.file("vault.db-shm")), 0o600);
}

#[test]
fn an_empty_directory_becomes_a_vault_and_is_closed_to_others() {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).unwrap();
    create(home.path()).unwrap();
    assert_eq!(mode(home.path()), 0o700);
    assert_eq!(
        create(home.path()).unwrap_err().kind,
        StoreErrorKind::Exists
    );
}

#[test]
fn a_directory_in_use_is_not_touched() {
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), PermissionsExt::from_mode(0o755)).unwrap();
    for (name, content) in [("notes", ""), ("lock", "mine")] {
        fs::write(home.path().join(name), content).unwrap();
        let before = snapshot(home.path());
        assert_eq!(
            create(home.path()).unwrap_err().kind,
            StoreErrorKind::Occupied
        );
        assert_eq!(snapshot(home.path()), before);
        assert_eq!(mode(home.path()), 0o755);
        fs::remove_file(home.path().join(name)).unwrap();
    }
    let file = home.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(create(&file).is_err());
    assert!(create(&home.path().join("no/such/parent")).is_err());
    assert_eq!(fs::read(&file).unwrap(), b"x");
}

#[test]
fn a_creation_that_is_given_up_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("vault");
    let outcome = SqliteStore::create(&directory, OpenOptions::default(), &mut |tx| {
        tx.put_header(b"header").unwrap();
        Err(Abort)
    });
    assert!(outcome.unwrap().is_err());
    assert!(!directory.exists());

    let swallowed = SqliteStore::create(&directory, OpenOptions::default(), &mut |tx| {
        let _ = tx.put_node(u64::MAX, &record(1, b""));
        Ok(())
    });
    assert!(swallowed.is_err());
    assert!(!directory.exists());

    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, PermissionsExt::from_mode(0o750)).unwrap();
    assert!(
        SqliteStore::create(&directory, OpenOptions::default(), &mut |_| Err(Abort))
            .unwrap()
            .is_err()
    );
    assert_eq!(mode(&directory), 0o750);
    assert!(snapshot(&directory).is_empty());
    create(&directory).unwrap();
}

#[test]
fn two_creations_at_once_make_one_vault() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("vault");
    SqliteStore::create(&directory, OpenOptions::default(), &mut |tx| {
        assert_eq!(create(&directory).unwrap_err().kind, StoreErrorKind::Busy);
        tx.put_header(b"first").unwrap();
        Ok(())
    })
    .unwrap()
    .unwrap();
    let vault = SqliteStore::open(&directory, Mode::ReadOnly, OpenOptions::default()).unwrap();
    assert_eq!(get(&vault, |tx| tx.header()).unwrap().unwrap(), b"first");
}

#[test]
fn a_creation_that_was_killed_can_be_repeated() {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("vault");
    let status = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "store::sqlite::tests::creation::child_dies_in_create",
            "--ignored",
        ])
        .env("SECRETFS_TEST_VAULT", &directory)
        .status()
        .unwrap();
    assert!(!status.success());
    assert!(
        directory.join("vault.db.new").exists(),
        "{:?}",
        snapshot(&directory).keys()
    );
    let opened = SqliteStore::open(&directory, Mode::ReadOnly, OpenOptions::default());
    assert_eq!(kind(opened), StoreErrorKind::NotAVault);
    create(&directory).unwrap();
    assert_eq!(
        snapshot(&directory).keys().collect::<Vec<_>>(),
        ["lock", "vault.db"]
    );
}

#[test]
#[ignore = "run by a_creation_that_was_killed_can_be_repeated"]
fn child_dies_in_create() {
    let Some(directory) = std::env::var_os("SECRETFS_TEST_VAULT") else {
        return;
    };
    let _ = SqliteStore::create(Path::new(&directory), OpenOptions::default(), &mut |tx| {
        tx.put_keyring(&[1; 1000]).unwrap();
        std::process::abort();
    });
}
