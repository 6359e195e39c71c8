//! The promises of the store, on real files.

mod copying;
mod creation;
mod disk;
mod hostility;
mod processes;
mod records;
mod wal;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::SqliteStore;
use crate::store::tests::{chunks, fill, get, kind, put, record, tag};
use crate::store::{
    Durability, Holder, Mode, OpenOptions, ReadRecords as _, StoreError, StoreErrorKind, Write,
    WriteRecords as _, write,
};

/// A vault in a directory of its own.
pub(super) struct Vault {
    _home: TempDir,
    pub(super) directory: PathBuf,
}

impl Vault {
    pub(super) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().join("vault");
        let vault = Self {
            _home: home,
            directory,
        };
        create(&vault.directory).unwrap();
        vault
    }

    /// With two nodes, an entry, and versions of 0, 1 and 3 chunks.
    pub(super) fn filled() -> Self {
        let vault = Self::new();
        fill(&vault.writer());
        vault
    }

    pub(super) fn open(&self, mode: Mode) -> Result<SqliteStore, StoreError> {
        SqliteStore::open(&self.directory, mode, OpenOptions::default())
    }

    pub(super) fn writer(&self) -> SqliteStore {
        self.open_once_free(Holder::current(None)).unwrap()
    }

    /// Opens it for writing. A process that another test starts has all descriptors of this one
    /// until it runs its program, and so may hold the lock of a store that was just closed: this
    /// waits for it.
    pub(super) fn open_once_free(&self, holder: Holder) -> Result<SqliteStore, StoreError> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.open(Mode::Write(holder.clone())) {
                Err(error) if error.kind == StoreErrorKind::Busy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                opened => return opened,
            }
        }
    }

    pub(super) fn reader(&self) -> SqliteStore {
        self.open(Mode::ReadOnly).unwrap()
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A connection of the attacker to the closed vault. Its changes end up in the database itself.
    pub(super) fn tamper(&self, sql: &str) {
        let connection = rusqlite::Connection::open(self.file("vault.db")).unwrap();
        connection
            .set_db_config(rusqlite::config::DbConfig::SQLITE_DBCONFIG_DEFENSIVE, false)
            .unwrap();
        connection.execute_batch(sql).unwrap();
    }

    /// Every file's name and bytes, except for the index of the WAL, which is no state.
    pub(super) fn snapshot(&self) -> BTreeMap<String, Bytes> {
        snapshot(&self.directory)
    }
}

/// A file's content, shown by its length only.
#[derive(PartialEq, Eq)]
pub(super) struct Bytes(pub(super) Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

pub(super) fn snapshot(directory: &Path) -> BTreeMap<String, Bytes> {
    fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name() != "vault.db-shm")
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                Bytes(fs::read(entry.path()).unwrap()),
            )
        })
        .collect()
}

pub(super) fn create(directory: &Path) -> Result<(), StoreError> {
    SqliteStore::create(directory, OpenOptions::default(), &mut |tx| {
        tx.put_header(b"header").unwrap();
        tx.put_keyring(b"keyring").unwrap();
        tx.put_state(b"state").unwrap();
        Ok(())
    })
    .map(Result::unwrap)
}
