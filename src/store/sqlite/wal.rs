//! Makes durable what was committed: syncs the WAL, beside whoever goes on to commit.
//!
//! Commits leave the sync to this (`synchronous = NORMAL`: SQLite still orders its own writes around
//! checkpoints), so that none of them holds the database while it waits for the disk, and one sync
//! serves all that were committed before it.
//!
//! This is the one file that is opened beside SQLite. It takes no locks on the WAL, which would
//! vanish when a descriptor of it is closed; those are on the database and its shared memory.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::unistd::fdatasync;

use crate::store::place::{Opened, Place, identity};
use crate::store::{StoreError, StoreErrorKind as Kind};
use crate::sync::{Mutex, Rank};

/// How far the WAL is on disk.
#[derive(Debug)]
pub(super) struct Wal {
    place: Arc<Place>,
    opened: Arc<Opened>,
    file: Mutex<Option<Arc<File>>>,
    /// Commits so far, and how many of them are on disk.
    committed: AtomicU64,
    synced: AtomicU64,
    /// Why nobody knows what is on disk. Held during a sync: the kernel tells of a failure once, and
    /// whoever syncs at the same time or after it must not take its silence for success.
    failed: Mutex<Option<StoreError>>,
}

impl Wal {
    /// `unsynced`: what is in it already may not be on disk.
    pub(super) fn new(place: Arc<Place>, opened: Arc<Opened>, unsynced: bool) -> Self {
        Self {
            place,
            opened,
            file: Mutex::new(Rank::WalFile, None),
            committed: AtomicU64::new(u64::from(unsynced)),
            synced: AtomicU64::new(0),
            failed: Mutex::new(Rank::WalSync, None),
        }
    }

    /// Opens it while there are descriptors to be had; if it cannot be, the first sync says so.
    pub(super) fn open_early(&self) {
        let _ = self.file();
    }

    /// Something was committed into it.
    pub(super) fn has_grown(&self) {
        self.committed.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether all that was committed is on disk.
    pub(super) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire) >= self.committed.load(Ordering::Acquire)
    }

    /// Returns when all that was committed before is on disk. After a failure nobody knows what is:
    /// nothing more must be written.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let mut failed = self.failed.lock();
        if let Some(error) = &*failed {
            return Err(error.clone());
        }
        // Read now: one sync serves all who waited for the last one.
        let upto = self.committed.load(Ordering::Acquire);
        if self.synced.load(Ordering::Acquire) >= upto {
            return Ok(());
        }
        let file = self.file()?;
        let outcome = self.flush(&file);
        match &outcome {
            Ok(()) => {
                self.synced.fetch_max(upto, Ordering::AcqRel);
            }
            Err(error) => *failed = Some(error.clone()),
        }
        outcome
    }

    /// Makes durable what other processes have committed, for one that only reads.
    pub(super) fn sync_of_others(&self) -> Result<(), StoreError> {
        if self.place.wal_len() == 0 {
            return Ok(());
        }
        self.has_grown();
        self.sync()
    }

    fn flush(&self, file: &File) -> Result<(), StoreError> {
        loop {
            match fdatasync(file) {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => {
                    let error = StoreError::of_file("cannot sync", self.place.wal(), &errno.into());
                    return Err(StoreError::new(Kind::Io, error.to_string()));
                }
            }
        }
    }

    /// The WAL that SQLite has open. It stays the same file until the vault is closed.
    fn file(&self) -> Result<Arc<File>, StoreError> {
        let mut file = self.file.lock();
        if let Some(file) = &*file {
            return Ok(Arc::clone(file));
        }
        let path = self.place.wal();
        let found = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .and_then(|file| Ok((identity(&file.metadata()?), file)))
            .map_err(|error| StoreError::of_file("cannot open", path, &error))?;
        // What lies at its path may be another vault's.
        self.place.remember_wal(&self.opened);
        if !self.opened.is_wal(found.0) {
            self.place.check_unmoved(&self.opened)?;
            return Err(StoreError::new(
                Kind::Moved,
                format!("{} is not the file that was opened", path.display()),
            ));
        }
        Ok(Arc::clone(file.insert(Arc::new(found.1))))
    }
}
