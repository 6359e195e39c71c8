//! The place of a vault on this host: its directory, the lock of the process that writes, and the
//! other processes that read. A store elsewhere has none of that but a directory.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StoreError;
use super::lock::{self, Holder, Lock};
use super::place::{Footprint, Opened, Place};

/// The place of an open vault, as the module describes.
#[derive(Debug)]
pub struct LocalPlace {
    directory: PathBuf,
    /// `None` for a store that has no files here.
    files: Option<Files>,
}

#[derive(Debug)]
struct Files {
    place: Arc<Place>,
    opened: Arc<Opened>,
    /// The lock of a vault open for writing, with its holder.
    lock: Option<(Arc<Lock>, Holder)>,
}

impl LocalPlace {
    /// The place of a vault in files.
    pub(super) fn of_files(
        place: &Arc<Place>,
        opened: &Arc<Opened>,
        lock: Option<(Arc<Lock>, Holder)>,
    ) -> Self {
        Self {
            directory: place.directory.clone(),
            files: Some(Files {
                place: Arc::clone(place),
                opened: Arc::clone(opened),
                lock,
            }),
        }
    }

    /// The place of a vault whose store has no files here.
    #[cfg(test)]
    pub(crate) fn elsewhere(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            files: None,
        }
    }

    /// Writes the holder into the lock. The caller does this after it has verified the vault: until
    /// then nothing in the vault may change. Does nothing for a vault opened for reading.
    ///
    /// # Errors
    /// When the lock's file cannot be written.
    pub fn announce(&self) -> Result<(), StoreError> {
        let Some((files, (lock, holder))) = self.locked() else {
            return Ok(());
        };
        lock.announce(holder).map_err(|error| {
            StoreError::of_file("cannot write into the lock", &files.place.lock, &error)
        })
    }

    /// Takes over the files that a killed writer left: closing the vault tidies them like its own.
    /// The caller does this after it has verified the vault.
    pub fn take_over(&self) {
        if let Some((files, _)) = self.locked()
            && files.place.wal_len() > 0
        {
            files.opened.take_over();
        }
    }

    /// The vault's directory, absolute and without symlinks.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The vault's directory, even if it was moved. No other process writes to it while this one
    /// has it open.
    ///
    /// # Errors
    /// When the vault was opened for reading, or the system has no descriptor left.
    pub fn locked_directory(&self) -> Result<File, StoreError> {
        let Some((_, (lock, _))) = self.locked() else {
            return Err(StoreError::of_reader(&self.directory));
        };
        lock.directory().map_err(|error| {
            StoreError::of_file("cannot use the directory", &self.directory, &error)
        })
    }

    /// Fails if the vault no longer is at its path: other processes would find other files there
    /// than this one reads and writes.
    ///
    /// # Errors
    /// [`Moved`](super::StoreErrorKind::Moved).
    pub fn check_unmoved(&self) -> Result<(), StoreError> {
        match &self.files {
            Some(files) => files.place.check_unmoved(&files.opened),
            None => Ok(()),
        }
    }

    /// The present state of the files, together with the store's number of `changes`. Every change
    /// of a file changes it, whether through the store or not.
    ///
    /// # Errors
    /// When the files cannot be examined.
    pub fn footprint(&self, changes: u64) -> Result<Footprint, StoreError> {
        match &self.files {
            Some(files) => files.place.footprint(changes),
            None => Ok(Footprint::of_changes(changes)),
        }
    }

    /// Whether another process reads the vault beside this writer. True if that is unknown.
    pub fn has_readers(&self) -> bool {
        let of_files = |files: &Files| lock::has_readers(&files.place.lock);
        self.files.as_ref().is_some_and(of_files)
    }

    fn locked(&self) -> Option<(&Files, &(Arc<Lock>, Holder))> {
        let files = self.files.as_ref()?;
        Some((files, files.lock.as_ref()?))
    }
}
