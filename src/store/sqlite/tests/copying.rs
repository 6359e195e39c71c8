//! Copies of a store in files.

use std::ops::ControlFlow;

use super::*;
use crate::store::copy;
use crate::store::tests::copying::records;

/// A store whose tables are empty.
fn empty() -> Vault {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("vault");
    SqliteStore::create(&directory, OpenOptions::default(), &mut |_| Ok(()))
        .unwrap()
        .unwrap();
    Vault {
        _home: home,
        directory,
    }
}

#[test]
fn a_version_that_was_begun_is_copied_as_far_as_it_is_there_and_chunks_of_none_are_not() {
    let vault = Vault::filled();
    {
        let store = vault.writer();
        put(&store, |tx| {
            tx.begin_version(2, 9, &record(1, b"begun"), 4)?;
            tx.put_chunks(2, 9, 0, &mut chunks(&[5000, 5000]))?;
            tx.begin_version(2, 10, &record(1, b"bare"), 4)
        })
        .unwrap();
    }
    {
        // The next process stores another chunk where the rest should have come.
        let store = vault.writer();
        put(&store, |tx| {
            tx.insert_version(3, 1, &record(1, b"next"), &mut chunks(&[100, 100]))
        })
        .unwrap();
    }
    vault.tamper("INSERT INTO chunk (id, node, version, idx, sealed) VALUES (900, 7, 7, 0, x'00')");
    let to = empty();
    let copied = to.writer();
    copy(&vault.reader(), &copied, &|| ControlFlow::Continue(())).unwrap();
    get(&copied, |tx| {
        assert_eq!(tx.version(2, 9)?.unwrap(), record(1, b"begun"));
        assert_eq!(tx.version(2, 10)?.unwrap(), record(1, b"bare"));
        assert_eq!(tx.chunk((2, 9, 1))?.unwrap(), vec![1; 5000]);
        assert_eq!(tx.chunk((3, 1, 1))?.unwrap(), vec![1; 100]);
        let mut keys = tx.salvage().unwrap().scan_chunk_keys(None, 100)?.0;
        keys.retain(|(node, ..)| *node == 7);
        assert!(keys.is_empty());
        Ok(())
    })
    .unwrap();
}

#[test]
fn what_is_read_as_nobody_changes_it_gets_no_file_beside_it() {
    let vault = Vault::filled();
    let names = || {
        let entries = fs::read_dir(&vault.directory).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let before = names();
    let store = vault.open(Mode::ReadStill).unwrap();
    assert_eq!(records(&store).len(), 14);
    assert_eq!(names(), before);
    drop(store);
    let writer = vault.writer();
    put(&writer, |tx| tx.put_state(b"later")).unwrap();
    assert_eq!(kind(vault.open(Mode::ReadStill)), StoreErrorKind::NotAVault);
}
