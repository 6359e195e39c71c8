//! Copies of a store.

use std::cell::Cell;
use std::ops::ControlFlow;

use super::*;
use crate::store::{CopyError, MAX_ID, ReadRecords as _, copy};

for_each_store! {
    a_copy_has_all_that_a_version_owns_as_of_one_commit,
    a_large_version_is_copied_in_several_transactions,
    a_copy_that_is_to_end_cannot_be_opened_as_a_whole_one,
}

fn on() -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// All records. Each chunk comes with its owner, but without its place in the table.
pub(in crate::store) fn records(store: &dyn Store) -> Vec<String> {
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
        let mut chunks = tx.salvage().unwrap().scan_chunk_keys(None, 10_000)?.0;
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

fn a_copy_has_all_that_a_version_owns_as_of_one_commit(behind: Behind) {
    let vault = Home::filled(behind);
    let store = vault.writer();
    put(&*store, |tx| {
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
    let expected = records(&*store);
    let to = Home::empty(behind);
    let copied = to.writer();
    let reader = vault.reader();
    let written = Cell::new(0);
    let write_meanwhile = || {
        // The copy must not contain what is committed meanwhile.
        let n = written.replace(written.get() + 1);
        let later = || {
            put(&*store, |tx| {
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
    copy(&*reader, &*copied, &write_meanwhile).unwrap();
    assert!(written.get() > 10);
    assert_eq!(records(&*copied), expected);
}

fn a_large_version_is_copied_in_several_transactions(behind: Behind) {
    let vault = Home::filled(behind);
    {
        let store = vault.writer();
        put(&*store, |tx| {
            tx.insert_version(2, 4, &record(1, b"large"), &mut chunks(&[60_000; 200]))?;
            tx.insert_version(2, 5, &record(1, b"after it"), &mut chunks(&[100, 100]))
        })
        .unwrap();
    }
    let to = Home::empty(behind);
    let copied = to.writer();
    let in_part = Cell::new(0);
    let look = || {
        let (is_begun, has_end) = get(&*copied, |tx| {
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
    copy(&*reader, &*copied, &look).unwrap();
    assert!(in_part.get() > 1, "it came at once");
    assert_eq!(records(&*copied), records(&*reader));
}

fn a_copy_that_is_to_end_cannot_be_opened_as_a_whole_one(behind: Behind) {
    let vault = Home::filled(behind);
    let reader = vault.reader();
    for after in 0.. {
        let to = Home::empty(behind);
        let copied = to.writer();
        let left = Cell::new(after);
        let go_on = || match left.replace(left.get() - 1) {
            0 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        match copy(&*reader, &*copied, &go_on) {
            Ok(()) => {
                assert!(after > 5);
                break;
            }
            Err(error) => assert!(matches!(error, CopyError::Interrupted), "{error}"),
        }
        assert_eq!(get(&*copied, |tx| tx.header()).unwrap(), None);
    }
}
