//! Copies of a store.

use std::cell::Cell;
use std::ops::ControlFlow;

use super::*;
use crate::store::{CopyError, MAX_ID, copy};

fn on() -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A store whose tables are empty.
fn empty() -> Vault {
    let home = tempfile::tempdir().unwrap();
    let directory = home.path().join("vault");
    SqliteStore::create(&directory, &mut |_| Ok(()))
        .unwrap()
        .unwrap();
    Vault {
        _home: home,
        directory,
    }
}

/// All records. Each chunk comes with its owner, but without its place in the table.
fn records(store: &SqliteStore) -> Vec<String> {
    get(store, |tx| {
        let mut all = vec![
            format!("{:?}", tx.header()?),
            format!("{:?}", tx.keyring()?),
            format!("{:?}", tx.state()?),
            format!("{:?}", tx.scan_nodes(None, 10_000)?),
            format!("{:?}", tx.scan_entries(None, 10_000)?),
            format!("{:?}", tx.orphans(None, 10_000)?),
            format!("{:?}", tx.events(0, 10_000)?),
        ];
        let mut chunks = tx.scan_chunk_keys(None, 10_000)?.0;
        chunks.sort_unstable();
        for key in chunks {
            all.push(format!("{key:?} {:?}", tx.chunk(key)?));
        }
        for (key, record) in tx.scan_versions(None, 10_000)? {
            all.push(format!("{key:?} {record:?}"));
        }
        Ok(all)
    })
    .unwrap()
}

#[test]
fn a_copy_has_all_that_a_version_owns_as_of_one_commit() {
    let vault = Vault::filled();
    let store = vault.writer();
    put(&store, |tx| {
        // More than a batch of each.
        for n in 100..300 {
            tx.put_node(n, &record(3, b"node"))?;
            tx.put_entry(n, &tag(n as u8), b"entry")?;
            tx.insert_version(n, 1, &record(3, b"version"), &mut chunks(&[70, 80]))?;
            tx.put_orphan(n)?;
            tx.insert_event(n, b"event")?;
        }
        tx.put_node(MAX_ID, &record(4, b"last"))
    })
    .unwrap();
    let expected = records(&store);
    let to = empty();
    let copied = to.writer();
    let reader = vault.reader();
    let written = Cell::new(0);
    let write_meanwhile = || {
        // The copy must not contain what is committed meanwhile.
        let n = written.replace(written.get() + 1);
        let later = || {
            put(&store, |tx| {
                tx.put_node(1000 + n, &record(5, b"later"))?;
                tx.delete_version(100 + n, 1)?;
                tx.put_state(b"later")
            })
            .unwrap();
        };
        // Another thread commits, because this one may hold locks of the copy.
        std::thread::scope(|scope| scope.spawn(later).join()).unwrap();
        on()
    };
    copy(&reader, &copied, &write_meanwhile).unwrap();
    assert!(written.get() > 10);
    assert_eq!(records(&copied), expected);
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
    copy(&vault.reader(), &copied, &on).unwrap();
    get(&copied, |tx| {
        assert_eq!(tx.version(2, 9)?.unwrap(), record(1, b"begun"));
        assert_eq!(tx.version(2, 10)?.unwrap(), record(1, b"bare"));
        assert_eq!(tx.chunk((2, 9, 1))?.unwrap(), vec![1; 5000]);
        assert_eq!(tx.chunk((3, 1, 1))?.unwrap(), vec![1; 100]);
        let mut keys = tx.scan_chunk_keys(None, 100)?.0;
        keys.retain(|(node, ..)| *node == 7);
        assert!(keys.is_empty());
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_large_version_is_copied_in_several_transactions() {
    let vault = Vault::filled();
    {
        let store = vault.writer();
        put(&store, |tx| {
            tx.insert_version(2, 4, &record(1, b"large"), &mut chunks(&[60_000; 200]))?;
            tx.insert_version(2, 5, &record(1, b"after it"), &mut chunks(&[100, 100]))
        })
        .unwrap();
    }
    let to = empty();
    let copied = to.writer();
    let in_part = Cell::new(0);
    let look = || {
        let (is_begun, has_end) = get(&copied, |tx| {
            Ok((
                tx.version(2, 4)?.is_some(),
                tx.chunk((2, 4, 199))?.is_some(),
            ))
        })
        .unwrap();
        in_part.set(in_part.get() + u32::from(is_begun && !has_end));
        on()
    };
    let reader = vault.reader();
    copy(&reader, &copied, &look).unwrap();
    assert!(in_part.get() > 1, "it came at once");
    assert_eq!(records(&copied), records(&reader));
}

#[test]
fn a_copy_that_is_to_end_cannot_be_opened_as_a_whole_one() {
    let vault = Vault::filled();
    let reader = vault.reader();
    for after in 0.. {
        let to = empty();
        let copied = to.writer();
        let left = Cell::new(after);
        let go_on = || match left.replace(left.get() - 1) {
            0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        match copy(&reader, &copied, &go_on) {
            Ok(()) => {
                assert!(after > 5);
                break;
            }
            Err(error) => assert!(matches!(error, CopyError::Interrupted), "{error}"),
        }
        assert_eq!(get(&copied, |tx| tx.header()).unwrap(), None);
    }
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
