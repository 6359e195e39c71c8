//! Records, scans and transactions.

use super::*;
use crate::store::{Abort, MAX_ID, ReadRecords as _};

for_each_store! {
    every_record_comes_back_as_it_was_written,
    the_chunks_of_a_version_that_was_begun_are_its_own_whatever_is_stored_in_between,
    records_are_replaced_and_removed,
    a_record_is_exchanged_only_for_what_it_was_made_from,
    many_bytes_of_records_are_had_a_few_at_a_time,
    a_version_is_never_inserted_over_another,
    scans_go_through_everything_in_pages_and_in_order,
    what_a_body_gives_up_leaves_no_trace,
    a_body_that_swallows_an_error_commits_nothing,
    a_body_that_panics_commits_nothing,
    a_reader_sees_one_commit_throughout,
    values_and_numbers_out_of_bounds_are_not_written,
    a_store_opened_for_reading_refuses_to_write,
    many_threads_read_while_one_writes,
}

fn every_record_comes_back_as_it_was_written(behind: Behind) {
    let vault = Home::filled(behind);
    for store in [vault.writer(), vault.reader()] {
        get(&*store, |tx| {
            assert_eq!(tx.header()?.unwrap(), b"header");
            assert_eq!(tx.keyring()?.unwrap(), b"keyring");
            assert_eq!(tx.state()?.unwrap(), b"state");
            assert_eq!(tx.node(2)?.unwrap(), record(1, b"file"));
            assert_eq!(tx.node(3)?, None);
            assert_eq!(tx.entry(1, &tag(7))?.unwrap(), b"entry");
            assert_eq!(tx.entry(1, &tag(8))?, None);
            assert_eq!(tx.entry(2, &tag(7))?, None);
            assert_eq!(tx.version(2, 3)?.unwrap(), record(2, b"three"));
            assert_eq!(tx.version(2, 4)?, None);
            assert_eq!(tx.versions_of(2)?, [1, 2, 3]);
            assert!(tx.versions_of(1)?.is_empty());
            assert_eq!(
                tx.version_and_first_chunk(2, 1)?.unwrap(),
                (record(1, b"one"), Some(vec![0; 100]))
            );
            assert_eq!(
                tx.version_and_first_chunk(2, 3)?.unwrap(),
                (record(2, b"three"), None)
            );
            assert_eq!(tx.version_and_first_chunk(2, 4)?, None);
            assert_eq!(tx.chunk((2, 2, 1))?.unwrap(), vec![1; 65_576]);
            assert_eq!(tx.chunk((2, 2, 2))?.unwrap(), vec![2; 10]);
            assert_eq!(tx.chunk((2, 2, 3))?, None);
            assert_eq!(tx.chunk((2, 3, 0))?, None);
            assert_eq!(tx.chunk((2, 4, 0))?, None);
            assert_eq!(tx.orphans(None, 10)?, [9]);
            assert_eq!(tx.events(0, 10)?, [(1, b"event".to_vec())]);
            assert_eq!(tx.events(2, 10)?, []);
            Ok(())
        })
        .unwrap();
    }
}

fn the_chunks_of_a_version_that_was_begun_are_its_own_whatever_is_stored_in_between(
    behind: Behind,
) {
    let vault = Home::filled(behind);
    let store = vault.writer();
    let chunks = |of: &[u8]| {
        let chunks: Vec<_> = of.iter().map(|byte| vec![*byte; 5000]).collect();
        chunks.into_iter()
    };
    let keys = || {
        let found = get(&*store, |tx| {
            Ok(tx.salvage().unwrap().scan_chunk_keys(None, 100)?.0)
        });
        found.unwrap()
    };
    let before = keys();
    put(&*store, |tx| {
        tx.begin_version(2, 4, &record(1, b"four"), 3)?;
        tx.put_chunks(2, 4, 0, &mut chunks(&[0]))
    })
    .unwrap();
    put(&*store, |tx| {
        tx.insert_version(5, 1, &record(1, b"other"), &mut chunks(&[9]))
    })
    .unwrap();
    put(&*store, |tx| {
        tx.put_chunks(2, 4, 1, &mut chunks(&[1, 2]))?;
        tx.begin_version(6, 1, &record(1, b"not whole"), 3)?;
        tx.put_chunks(6, 1, 0, &mut chunks(&[3, 4]))
    })
    .unwrap();
    get(&*store, |tx| {
        for byte in 0..3 {
            assert_eq!(tx.chunk((2, 4, byte))?.unwrap(), [byte as u8; 5000]);
        }
        assert_eq!(tx.chunk((5, 1, 0))?.unwrap(), [9; 5000]);
        assert_eq!(tx.chunk((6, 1, 1))?.unwrap(), [4; 5000]);
        assert_eq!(tx.chunk((6, 1, 2))?, None);
        Ok(())
    })
    .unwrap();
    let refused = put(&*store, |tx| tx.put_chunks(2, 5, 0, &mut chunks(&[1])));
    assert!(refused.is_err());
    put(&*store, |tx| {
        tx.delete_version(2, 4)?;
        tx.delete_version(5, 1)?;
        tx.erase_version(6, 1)
    })
    .unwrap();
    assert_eq!(keys(), before);
}

fn records_are_replaced_and_removed(behind: Behind) {
    let vault = Home::filled(behind);
    let store = vault.writer();
    put(&*store, |tx| {
        tx.put_header(b"h2")?;
        tx.put_keyring(&[7; 100_000])?;
        tx.put_state(b"s2")?;
        tx.put_node(2, &record(5, b"again"))?;
        tx.put_entry(1, &tag(7), b"other")?;
        tx.rewrap_version(2, 2, &record(6, b"rewrapped"))?;
        tx.delete_version(2, 1)?;
        tx.delete_version(2, 77)?;
        tx.delete_node(77)?;
        tx.delete_entry(1, &tag(9))?;
        tx.delete_orphan(9)?;
        tx.delete_orphan(10)?;
        tx.put_orphan(4)?;
        tx.put_orphan(4)
    })
    .unwrap();
    get(&*store, |tx| {
        assert_eq!(tx.header()?.unwrap(), b"h2");
        assert_eq!(tx.keyring()?.unwrap(), [7; 100_000]);
        assert_eq!(tx.state()?.unwrap(), b"s2");
        assert_eq!(tx.node(2)?.unwrap(), record(5, b"again"));
        assert_eq!(tx.entry(1, &tag(7))?.unwrap(), b"other");
        assert_eq!(tx.versions_of(2)?, [2, 3]);
        assert_eq!(tx.version(2, 2)?.unwrap(), record(6, b"rewrapped"));
        assert_eq!(tx.chunk((2, 2, 0))?.unwrap(), vec![0; 65_576]);
        assert_eq!(
            tx.salvage().unwrap().scan_chunk_keys(None, 10)?.0,
            [(2, 2, 0), (2, 2, 1), (2, 2, 2)]
        );
        assert_eq!(tx.orphans(None, 10)?, [4]);
        Ok(())
    })
    .unwrap();
    put(&*store, |tx| {
        tx.delete_version(2, 2)?;
        tx.delete_version(2, 3)?;
        tx.delete_node(2)?;
        tx.delete_entry(1, &tag(7))
    })
    .unwrap();
    get(&*store, |tx| {
        assert_eq!(
            tx.salvage().unwrap().scan_chunk_keys(None, 10)?,
            (vec![], None)
        );
        assert_eq!(tx.scan_versions(None, 10)?, []);
        assert_eq!(tx.scan_entries(None, 10)?, []);
        assert_eq!(tx.scan_nodes(None, 10)?, [(1, record(1, b"root"))]);
        Ok(())
    })
    .unwrap();
}

fn a_record_is_exchanged_only_for_what_it_was_made_from(behind: Behind) {
    let vault = Home::filled(behind);
    let store = vault.writer();
    let again = get(&*store, |tx| {
        let nodes = tx.node_records_not_under(9, Some(1), 10)?;
        let versions = tx.version_records_not_under(9, Some((2, 1)), 1)?;
        assert_eq!(nodes, [(2, tx.node(2)?.unwrap())]);
        assert_eq!(versions, [((2, 2), tx.version(2, 2)?.unwrap())]);
        assert_eq!(tx.version_records_not_under(9, None, 10)?.len(), 3);
        let first = versions[0].1.generation;
        let others = tx.version_records_not_under(first, None, 10)?;
        assert!(others.iter().all(|(_, record)| record.generation != first));
        Ok((nodes[0].1.clone(), versions[0].1.clone()))
    });
    let (node, version) = again.unwrap();
    let other = |old: &Record| {
        [
            record(old.generation + 1, &old.value),
            record(old.generation, b"?"),
        ]
    };
    put(&*store, |tx| {
        let new = record(9, b"new");
        for wrong in other(&node) {
            assert!(!tx.exchange_node(2, &wrong, &new)?);
        }
        for wrong in other(&version) {
            assert!(!tx.exchange_version(2, 2, &wrong, &new)?);
        }
        assert!(!tx.exchange_node(77, &node, &new)?);
        assert!(!tx.exchange_version(2, 77, &version, &new)?);
        assert_eq!(tx.node(2)?.unwrap(), node);
        assert_eq!(tx.version(2, 2)?.unwrap(), version);
        assert!(tx.exchange_node(2, &node, &new)?);
        assert!(tx.exchange_version(2, 2, &version, &new)?);
        assert_eq!(tx.node(2)?.unwrap(), new);
        assert_eq!(tx.version(2, 2)?.unwrap(), new);
        assert_eq!(tx.chunk((2, 2, 2))?.unwrap(), vec![2; 10]);
        assert_eq!(tx.node_records_not_under(9, None, 10)?.len(), 1);
        Ok(())
    })
    .unwrap();
}

fn many_bytes_of_records_are_had_a_few_at_a_time(behind: Behind) {
    let vault = Home::filled(behind);
    let store = vault.writer();
    put(&*store, |tx| {
        (10..20).try_for_each(|id| tx.put_node(id, &record(3, &vec![1; 200_000])))
    })
    .unwrap();
    get(&*store, |tx| {
        let found = tx.node_records_not_under(9, Some(9), 100)?;
        let ids: Vec<_> = found.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [10, 11, 12]);
        Ok(())
    })
    .unwrap();
}

fn a_version_is_never_inserted_over_another(behind: Behind) {
    let vault = Home::filled(behind);
    let store = vault.writer();
    let again = put(&*store, |tx| {
        tx.insert_version(2, 1, &record(1, b"x"), &mut chunks(&[5]))
    });
    assert_eq!(kind(again), StoreErrorKind::Corrupt);
    let missing = put(&*store, |tx| tx.rewrap_version(2, 8, &record(1, b"x")));
    assert_eq!(kind(missing), StoreErrorKind::Corrupt);
    let event = put(&*store, |tx| tx.insert_event(1, b"another"));
    assert_eq!(kind(event), StoreErrorKind::Corrupt);
    get(&*store, |tx| {
        assert_eq!(tx.version(2, 1)?.unwrap(), record(1, b"one"));
        assert_eq!(tx.salvage().unwrap().scan_chunk_keys(None, 100)?.0.len(), 4);
        Ok(())
    })
    .unwrap();
}

fn scans_go_through_everything_in_pages_and_in_order(behind: Behind) {
    let vault = Home::new(behind);
    let store = vault.writer();
    put(&*store, |tx| {
        for i in 0..100 {
            tx.put_node(i, &record(i, &i.to_be_bytes()))?;
            tx.put_entry(i % 3, &tag(i as u8), &i.to_be_bytes())?;
            tx.insert_version(i / 10, i, &record(1, b"v"), &mut chunks(&[3, 3]))?;
            tx.put_orphan(i)?;
            tx.insert_event(i, b"e")?;
        }
        Ok(())
    })
    .unwrap();
    get(&*store, |tx| {
        for limit in [1, 7, 100, 1000, usize::MAX] {
            let mut nodes = Vec::new();
            while let page = tx.scan_nodes(nodes.last().copied(), limit)?
                && !page.is_empty()
            {
                assert!(page.len() <= limit);
                nodes.extend(page.into_iter().map(|(id, _)| id));
            }
            assert_eq!(nodes, (0..100).collect::<Vec<_>>());

            let mut versions: Vec<(u64, u64)> = Vec::new();
            while let page = tx.scan_versions(versions.last().copied(), limit)?
                && !page.is_empty()
            {
                versions.extend(page.into_iter().map(|(key, _)| key));
            }
            assert_eq!(versions, (0..100).map(|i| (i / 10, i)).collect::<Vec<_>>());

            let mut entries: Vec<(u64, NameTag)> = Vec::new();
            while let after = entries.last().copied()
                && let page = tx.scan_entries(after.as_ref().map(|(id, tag)| (*id, tag)), limit)?
                && !page.is_empty()
            {
                entries.extend(page.into_iter().map(|row| (row.directory, row.tag)));
            }
            assert_eq!(entries.len(), 100);
            assert!(entries.is_sorted());

            let mut listed: Vec<NameTag> = Vec::new();
            while let after = listed.last().copied()
                && let page = tx.entries(1, after.as_ref(), limit)?
                && !page.is_empty()
            {
                listed.extend(page.into_iter().map(|row| row.tag));
            }
            assert_eq!(
                listed,
                (0..100).filter(|i| i % 3 == 1).map(tag).collect::<Vec<_>>()
            );

            let mut keys = Vec::new();
            let mut cursor = None;
            loop {
                let (page, next) = tx.salvage().unwrap().scan_chunk_keys(cursor, limit)?;
                keys.extend(page);
                if next.is_none() {
                    break;
                }
                cursor = next;
            }
            assert_eq!(keys.len(), 200);

            let mut orphans = Vec::new();
            while let page = tx.orphans(orphans.last().copied(), limit)?
                && !page.is_empty()
            {
                orphans.extend(page);
            }
            assert_eq!(orphans.len(), 100);

            let mut events = 0;
            while let page = tx.events(events, limit)?
                && !page.is_empty()
            {
                events += page.len() as u64;
            }
            assert_eq!(events, 100);
        }
        Ok(())
    })
    .unwrap();
}

fn what_a_body_gives_up_leaves_no_trace(behind: Behind) {
    let vault = Home::filled(behind);
    let store = vault.writer();
    let before = get(&*store, |tx| tx.scan_nodes(None, 100)).unwrap();
    let mut runs = 0;
    let outcome = store
        .write(Durability::Now, &mut |tx| {
            runs += 1;
            tx.put_node(50, &record(1, b"x")).unwrap();
            tx.delete_node(1).unwrap();
            Err(Abort)
        })
        .unwrap();
    assert!(outcome.is_err());
    assert_eq!(runs, 1);
    assert_eq!(get(&*store, |tx| tx.scan_nodes(None, 100)).unwrap(), before);
}

fn a_body_that_swallows_an_error_commits_nothing(behind: Behind) {
    let vault = Home::filled(behind);
    let store = vault.writer();
    let outcome = put(&*store, |tx| {
        tx.put_node(50, &record(1, b"x"))?;
        let _ = tx.insert_event(1, b"taken");
        let _ = tx.put_node(51, &record(1, b"x"));
        Ok(())
    });
    assert_eq!(kind(outcome), StoreErrorKind::Corrupt);
    assert_eq!(get(&*store, |tx| tx.node(50)).unwrap(), None);
    put(&*store, |tx| tx.put_node(50, &record(1, b"x"))).unwrap();
}

fn a_body_that_panics_commits_nothing(behind: Behind) {
    let vault = Home::filled(behind);
    let store = vault.writer();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        put(&*store, |tx| {
            tx.put_node(50, &record(1, b"x"))?;
            panic!("on purpose");
            #[expect(unreachable_code)]
            Ok(())
        })
    }));
    assert!(panicked.is_err());
    assert_eq!(get(&*store, |tx| tx.node(50)).unwrap(), None);
    // Nobody knows what else is half done above.
    assert_eq!(
        kind(put(&*store, |tx| tx.delete_node(50))),
        StoreErrorKind::Io
    );
    drop(store);
    put(&*vault.writer(), |tx| tx.put_node(50, &record(1, b"x"))).unwrap();
}

fn a_reader_sees_one_commit_throughout(behind: Behind) {
    let vault = Home::filled(behind);
    let store = vault.writer();
    get(&*store, |tx| {
        assert_eq!(tx.node(2)?.unwrap().generation, 1);
        put(&*store, |tx| tx.put_node(2, &record(2, b"new")))?;
        assert_eq!(tx.node(2)?.unwrap().generation, 1);
        Ok(())
    })
    .unwrap();
    assert_eq!(
        get(&*store, |tx| tx.node(2)).unwrap().unwrap().generation,
        2
    );
}

fn values_and_numbers_out_of_bounds_are_not_written(behind: Behind) {
    let vault = Home::filled(behind);
    let store = vault.writer();
    put(&*store, |tx| {
        tx.put_node(MAX_ID, &record(MAX_ID, &vec![1; 1 << 20]))
    })
    .unwrap();
    assert_eq!(
        get(&*store, |tx| tx.node(MAX_ID))
            .unwrap()
            .unwrap()
            .value
            .len(),
        1 << 20
    );
    assert!(put(&*store, |tx| tx.put_node(MAX_ID + 1, &record(1, b""))).is_err());
    assert!(put(&*store, |tx| tx.put_node(u64::MAX, &record(1, b""))).is_err());
    assert!(put(&*store, |tx| tx.put_node(5, &record(1, &vec![1; 2 << 20]))).is_err());
    assert!(put(&*store, |tx| tx.put_keyring(&vec![1; (1 << 20) + 1])).is_err());
    let long = put(&*store, |tx| {
        tx.insert_version(5, 1, &record(1, b""), &mut chunks(&[(64 << 10) + 65]))
    });
    assert!(long.is_err());
    assert_eq!(
        get(&*store, |tx| tx
            .salvage()
            .unwrap()
            .scan_chunk_keys(None, 100))
        .unwrap()
        .0
        .len(),
        4
    );
}

fn a_store_opened_for_reading_refuses_to_write(behind: Behind) {
    let vault = Home::filled(behind);
    let store = vault.reader();
    let refused = put(&*store, |tx| tx.put_node(5, &record(1, b"")));
    assert_eq!(kind(refused), StoreErrorKind::ReadOnly);
    store.sync().unwrap();
}

fn many_threads_read_while_one_writes(behind: Behind) {
    let vault = Home::filled(behind);
    let store = vault.writer();
    put(&*store, |tx| tx.put_state(&[0; 1])).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..200 {
                    get(&*store, |tx| {
                        let node = tx.node(2)?.unwrap();
                        assert_eq!(
                            tx.state()?.unwrap_or_default().len() as u64,
                            node.generation
                        );
                        Ok(())
                    })
                    .unwrap();
                }
            });
        }
        scope.spawn(|| {});
        for i in 1..200 {
            write(&*store, Durability::Soon, |tx: &mut dyn Write| {
                tx.put_state(&vec![0; i as usize])?;
                tx.put_node(2, &record(i, b"x"))
            })
            .unwrap();
        }
    });
}
