//! What the store in memory does on demand: it loses its power, refuses, and waits.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::memory::{Flaw, Moment};
use super::super::{ReadRecords as _, Scrub};
use super::*;

fn open(medium: &Medium) -> MemoryStore {
    MemoryStore::writer(medium, Arc::new(|_| Ok(()))).unwrap()
}

fn put_soon(store: &MemoryStore, id: u64) {
    write(store, Durability::Soon, |tx| {
        tx.put_node(id, &record(1, b"x"))?;
        tx.put_state(&id.to_be_bytes())
    })
    .unwrap();
}

/// The nodes that are there, and the state.
fn found(store: &MemoryStore) -> (Vec<u64>, Option<Vec<u8>>) {
    get(store, |tx| {
        let nodes = tx.scan_nodes(None, 100)?.into_iter();
        Ok((nodes.map(|(id, _)| id).collect(), tx.state()?))
    })
    .unwrap()
}

fn after_cut(flaw: Option<Flaw>, survivors: usize) -> (Vec<u64>, Option<Vec<u8>>) {
    let medium = Medium::new(flaw);
    let store = open(&medium);
    put_soon(&store, 1);
    store.sync().unwrap();
    (2..6).for_each(|id| put_soon(&store, id));
    medium.cut_power(|pending| {
        assert!(pending == 4 || flaw == Some(Flaw::SyncsNothing));
        survivors
    });
    assert_eq!(kind(get(&store, |tx| tx.state())), StoreErrorKind::Io);
    assert_eq!(kind(store.sync()), StoreErrorKind::Io);
    drop(store);
    found(&open(&medium))
}

#[test]
fn a_power_cut_leaves_what_is_durable_and_the_first_of_the_commits_since() {
    for survivors in 0..=4 {
        let last = survivors as u64 + 1;
        let expected = ((1..=last).collect(), Some(last.to_be_bytes().to_vec()));
        assert_eq!(after_cut(None, survivors), expected);
    }
}

#[test]
fn each_flaw_leaves_what_no_sound_store_does() {
    let state = |id: u64| Some(id.to_be_bytes().to_vec());
    assert_eq!(after_cut(Some(Flaw::SyncsNothing), 0), (vec![], None));
    let lost = after_cut(Some(Flaw::LosesLastRecord), 1);
    assert_eq!(lost, (vec![1, 2], state(1)));
    let torn = after_cut(Some(Flaw::TearsCommits), 1);
    assert_eq!(torn, (vec![1, 2, 3], state(2)));
    let reordered = after_cut(Some(Flaw::Reorders), 0);
    assert_eq!(reordered, (vec![1, 3, 4, 5], state(5)));

    let medium = Medium::new(Some(Flaw::ShowsStaleState));
    let store = open(&medium);
    put_soon(&store, 1);
    let stale = (0..4).filter(|_| found(&store).0.is_empty());
    assert_eq!(stale.count(), 1);

    let medium = Medium::new(Some(Flaw::KeepsChunks));
    let store = open(&medium);
    fill(&store);
    put(&store, |tx| tx.erase_version(2, 2)).unwrap();
    let left = get(&store, |tx| {
        tx.salvage().unwrap().scan_chunk_keys(None, 100)
    });
    assert_eq!(left.unwrap().0.len(), 4);
}

#[test]
fn what_is_refused_before_a_commit_leaves_nothing() {
    for refused in [Moment::Write, Moment::Commit] {
        let medium = Medium::new(None);
        let hook = move |moment| match moment == refused {
            true => Err(StoreError::new(StoreErrorKind::Full, "on purpose")),
            false => Ok(()),
        };
        let store = MemoryStore::writer(&medium, Arc::new(hook)).unwrap();
        let outcome = put(&store, |tx| tx.put_state(b"x"));
        assert_eq!(kind(outcome), StoreErrorKind::Full);
        assert!(!store.has_stopped_writing());
        assert_eq!(found(&store).1, None);
    }
}

#[test]
fn nothing_is_written_after_a_sync_that_failed() {
    let medium = Medium::new(None);
    let hook = |moment| match moment {
        Moment::Sync => Err(StoreError::new(StoreErrorKind::Io, "on purpose")),
        _ => Ok(()),
    };
    let store = MemoryStore::writer(&medium, Arc::new(hook)).unwrap();
    assert_eq!(
        kind(put(&store, |tx| tx.put_state(b"x"))),
        StoreErrorKind::Io
    );
    assert!(store.has_stopped_writing());
    assert!(put(&store, |tx| tx.put_state(b"y")).is_err());
}

#[test]
fn a_reader_of_an_earlier_state_is_in_the_way_of_a_scrub() {
    let medium = Medium::new(None);
    let moments = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&moments);
    let hook = move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    let store = MemoryStore::writer(&medium, Arc::new(hook)).unwrap();
    get(&store, |_| {
        put(&store, |tx| tx.put_state(b"x"))?;
        assert_eq!(store.scrub()?, Scrub::ReaderInTheWay);
        Ok(())
    })
    .unwrap();
    assert_eq!(store.scrub().unwrap(), Scrub::Scrubbed);
    assert!(moments.load(Ordering::Relaxed) > 8);
    assert_eq!(
        kind(MemoryStore::writer(&medium, Arc::new(|_| Ok(())))),
        StoreErrorKind::Busy
    );
}
