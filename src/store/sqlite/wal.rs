//! Makes commits durable: syncs the WAL while other threads go on to commit.
//!
//! Commits themselves do not sync (`synchronous = NORMAL`; SQLite still orders its own writes
//! around checkpoints). So no commit holds the database while it waits for the disk, and one sync
//! serves all commits before it.
//!
//! The WAL is the one file that is opened beside SQLite. That is safe: SQLite's locks, which vanish
//! when a descriptor is closed, are on the database and its shared memory, not on the WAL.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::unistd::fdatasync;

use crate::store::place::{Opened, Place, identity};
use crate::store::{StoreError, StoreErrorKind as Kind};
use crate::sync::{Mutex, Rank};

/// The WAL, and how much of it is on disk.
#[derive(Debug)]
pub(super) struct Wal {
    place: Arc<Place>,
    opened: Arc<Opened>,
    file: Mutex<Option<Arc<File>>>,
    /// Number of commits so far, and of those on disk.
    committed: AtomicU64,
    synced: AtomicU64,
    /// Why nobody knows what is on disk. Held during a sync: the kernel reports a failure once, and
    /// a thread that syncs at the same time or later must not take its silence for success.
    failed: Mutex<Option<StoreError>>,
}

impl Wal {
    /// `unsynced`: the WAL already has commits that may not be on disk.
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

    /// Opens the WAL early, while there are free descriptors. If that fails, the first sync returns
    /// the error.
    pub(super) fn open_early(&self) {
        let _ = self.file();
    }

    /// Counts a commit.
    pub(super) fn has_grown(&self) {
        self.committed.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether all commits are on disk.
    pub(super) fn is_synced(&self) -> bool {
        self.synced.load(Ordering::Acquire) >= self.committed.load(Ordering::Acquire)
    }

    /// Returns when all earlier commits are on disk. After a failure nobody knows what is on disk,
    /// and nothing more may be written.
    pub(super) fn sync(&self) -> Result<(), StoreError> {
        let mut failed = self.failed.lock();
        if let Some(error) = &*failed {
            return Err(error.clone());
        }
        // Read now, under the lock: one sync serves all threads that waited for the last one.
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

    /// Makes the commits of other processes durable, in a process that only reads.
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

    /// The WAL that SQLite has open: the same file until the vault is closed.
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
        // The file at the path may belong to another vault.
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
