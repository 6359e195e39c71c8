//! The promises of every store: each test runs over all of them.

pub(super) mod copying;
mod power;
mod records;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::memory::{Medium, MemoryStore};
use super::{
    Durability, Holder, Mode, NameTag, OpenOptions, Read, Record, Store, StoreError,
    StoreErrorKind, Write, WriteRecords as _, create, open, read, write,
};

/// Makes a test of each of these functions for each store.
macro_rules! for_each_store {
    ($($test:ident,)+) => {
        mod in_files {
            $(#[test]
            fn $test() {
                super::$test(super::Behind::Files);
            })+
        }

        mod in_memory {
            $(#[test]
            fn $test() {
                super::$test(super::Behind::Memory);
            })+
        }
    };
}
use for_each_store;

/// What is behind the door.
#[derive(Clone, Copy)]
enum Behind {
    Files,
    Memory,
}

/// Where the records are kept.
enum Home {
    Files(TempDir),
    Memory(Medium),
}

impl Home {
    /// A store without records.
    fn empty(behind: Behind) -> Self {
        let home = match behind {
            Behind::Files => Self::Files(tempfile::tempdir().unwrap()),
            Behind::Memory => Self::Memory(Medium::new(None)),
        };
        if let Some(directory) = home.directory() {
            create(&directory, OpenOptions::default(), &mut |_| Ok(()))
                .unwrap()
                .unwrap();
        }
        home
    }

    /// With the three single records.
    fn new(behind: Behind) -> Self {
        let home = Self::empty(behind);
        put(&*home.writer(), |tx| {
            tx.put_header(b"header")?;
            tx.put_keyring(b"keyring")?;
            tx.put_state(b"state")
        })
        .unwrap();
        home
    }

    /// With two nodes, an entry, and versions of 0, 1 and 3 chunks, too.
    fn filled(behind: Behind) -> Self {
        let home = Self::new(behind);
        fill(&*home.writer());
        home
    }

    fn directory(&self) -> Option<PathBuf> {
        match self {
            Self::Files(home) => Some(home.path().join("vault")),
            Self::Memory(_) => None,
        }
    }

    fn open(&self, mode: Mode) -> Result<Arc<dyn Store>, StoreError> {
        match (self, mode) {
            (Self::Files(home), mode) => {
                let directory = home.path().join("vault");
                Ok(open(&directory, mode, OpenOptions::default())?.0)
            }
            (Self::Memory(medium), Mode::Write(_)) => {
                Ok(Arc::new(MemoryStore::writer(medium, Arc::new(|_| Ok(())))?))
            }
            (Self::Memory(medium), Mode::ReadOnly | Mode::ReadStill) => {
                Ok(Arc::new(MemoryStore::reader(medium, Arc::new(|_| Ok(())))))
            }
        }
    }

    /// Opens it for writing. A process that another test starts has all descriptors of this one
    /// until it runs its program, and so may hold the lock of a store that was just closed: this
    /// waits for it.
    fn writer(&self) -> Arc<dyn Store> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.open(Mode::Write(Holder::current(None))) {
                Err(error) if error.kind == StoreErrorKind::Busy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                opened => return opened.unwrap(),
            }
        }
    }

    fn reader(&self) -> Arc<dyn Store> {
        self.open(Mode::ReadOnly).unwrap()
    }
}

pub(super) fn fill(store: &dyn Store) {
    put(store, |tx| {
        tx.put_node(1, &record(1, b"root"))?;
        tx.put_node(2, &record(1, b"file"))?;
        tx.put_entry(1, &tag(7), b"entry")?;
        tx.insert_version(2, 1, &record(1, b"one"), &mut chunks(&[100]))?;
        tx.insert_version(2, 2, &record(1, b"two"), &mut chunks(&[65_576, 65_576, 10]))?;
        tx.insert_version(2, 3, &record(2, b"three"), &mut chunks(&[]))?;
        tx.put_orphan(9)?;
        tx.insert_event(1, b"event")
    })
    .unwrap();
}

pub(super) fn get<T>(
    store: &dyn Store,
    body: impl FnMut(&mut dyn Read) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    read(store, body)
}

pub(super) fn put<T>(
    store: &dyn Store,
    body: impl FnMut(&mut dyn Write) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    write(store, Durability::Now, body)
}

pub(super) fn record(generation: u64, value: &[u8]) -> Record {
    Record {
        generation,
        value: value.to_vec(),
    }
}

pub(super) fn tag(byte: u8) -> NameTag {
    [byte; 32]
}

/// Chunks of these lengths; chunk `i` consists of bytes `i`.
pub(super) fn chunks(lengths: &[usize]) -> impl Iterator<Item = Vec<u8>> {
    lengths
        .iter()
        .enumerate()
        .map(|(i, length)| vec![i as u8; *length])
        .collect::<Vec<_>>()
        .into_iter()
}

pub(super) fn kind<T>(result: Result<T, StoreError>) -> StoreErrorKind {
    match result {
        Ok(_) => panic!("it succeeded"),
        Err(error) => error.kind,
    }
}
