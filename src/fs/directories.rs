//! Reads directories in the order of the name tags, so that a position stays valid whatever names
//! come and go meanwhile.

mod reading;

use std::collections::HashMap;
use std::sync::Arc;

use crate::store::NodeId;
use crate::sync::{Mutex, MutexGuard, Rank};
use crate::vault::{Kind, ROOT, Vault, VaultError};

use super::budget::UNKNOWN;
use super::closing::Closing;
use super::directory_entry::DirectoryEntry;
use super::errno::directory_of;
use super::failures::Failures;
use super::getattr::Attributes;
use super::nodes::Nodes;
use super::reaping::Reaping;
use super::table::Table;
use super::{Access, Attr, Errno, FileHandle};
use reading::{FIRST_NAME, Found, Reading};

/// Entries opened at a time.
const BATCH: usize = 64;

/// The open directories.
pub(super) struct Directories {
    open: Mutex<HashMap<FileHandle, Arc<Mutex<Reading>>>>,
    vault: Arc<Vault>,
    failures: Arc<Failures>,
    table: Arc<Table>,
    nodes: Arc<Nodes>,
    attributes: Arc<Attributes>,
    reaping: Arc<Reaping>,
    closing: Arc<Closing>,
}

impl Directories {
    pub(super) fn new(
        vault: &Arc<Vault>,
        failures: &Arc<Failures>,
        table: &Arc<Table>,
        nodes: &Arc<Nodes>,
        attributes: &Arc<Attributes>,
        reaping: &Arc<Reaping>,
        closing: &Arc<Closing>,
    ) -> Self {
        Self {
            open: Mutex::new(Rank::OpenDirectories, HashMap::new()),
            vault: Arc::clone(vault),
            failures: Arc::clone(failures),
            table: Arc::clone(table),
            nodes: Arc::clone(nodes),
            attributes: Arc::clone(attributes),
            reaping: Arc::clone(reaping),
            closing: Arc::clone(closing),
        }
    }

    fn lock_open(&self) -> MutexGuard<'_, HashMap<FileHandle, Arc<Mutex<Reading>>>> {
        self.open.lock()
    }

    /// Opens a directory.
    pub(super) fn open(&self, ino: u64) -> Result<FileHandle, Errno> {
        // Register it like a file, so that a directory removed while open stays readable.
        let access = Access {
            read: true,
            write: false,
            append: false,
        };
        let (fh, handle) = self.table.open(ino, access, None, UNKNOWN)?;
        let opened = self.nodes.stored_or_held(ino).and_then(|node| {
            directory_of(&node)?;
            if self.vault.is_read_only() {
                handle.node.lock().remember_opened(node);
            }
            Ok(())
        });
        if let Err(error) = opened {
            self.table.discard(fh);
            self.reaping.tidy(ino);
            return Err(error);
        }
        let reading = Mutex::new(Rank::DirectoryReading, Reading::default());
        self.lock_open().insert(fh, Arc::new(reading));
        Ok(fh)
    }

    /// Closes a directory.
    pub(super) fn release(&self, fh: FileHandle) {
        self.lock_open().remove(&fh);
        self.closing.release(fh);
    }

    /// Passes entries from `position` on to `take`, until the end or until it returns true.
    pub(super) fn read(
        &self,
        ino: u64,
        fh: FileHandle,
        position: u64,
        take: impl FnMut(&DirectoryEntry) -> bool,
    ) -> Result<(), Errno> {
        self.read_entries(ino, fh, position, false, take)
    }

    /// The same for a `take` that asks for the [attributes](Self::entry_attr) of each entry.
    pub(super) fn read_plus(
        &self,
        ino: u64,
        fh: FileHandle,
        position: u64,
        take: impl FnMut(&DirectoryEntry) -> bool,
    ) -> Result<(), Errno> {
        self.read_entries(ino, fh, position, true, take)
    }

    fn read_entries(
        &self,
        ino: u64,
        fh: FileHandle,
        position: u64,
        with_nodes: bool,
        mut take: impl FnMut(&DirectoryEntry) -> bool,
    ) -> Result<(), Errno> {
        let known = self.lock_open().get(&fh).cloned();
        let reading = known.ok_or(Errno(libc::EBADF))?;
        let mut reading = reading.lock();
        if position < FIRST_NAME {
            let parent = match self.nodes.stored_or_held(ino) {
                Ok(node) => directory_of(&node)?.parent,
                Err(_) => ROOT,
            };
            let dots = [(ino, &b"."[..]), (parent, &b".."[..])];
            for (at, (ino, name)) in dots.into_iter().enumerate().skip(position as usize) {
                let position = at as u64 + 1;
                let name = name.to_vec();
                if take(&DirectoryEntry {
                    ino,
                    kind: Kind::Directory,
                    name,
                    position,
                }) {
                    return Ok(());
                }
            }
        }
        reading.seek(position.max(FIRST_NAME));
        loop {
            while let Some(entry) = reading.ahead.pop_front() {
                if !reading.show(&entry, &mut take) {
                    reading.ahead.push_front(entry);
                    return Ok(());
                }
            }
            if reading.is_complete() {
                return Ok(());
            }
            self.read_on(ino, &mut reading, with_nodes)?;
        }
    }

    /// Opens the next batch.
    fn read_on(&self, ino: NodeId, reading: &mut Reading, with_nodes: bool) -> Result<(), Errno> {
        let after = reading.after.as_ref();
        let listing = match self.vault.list(ino, after, BATCH, with_nodes) {
            Ok(listing) => listing,
            // The directory was removed while open: it is empty.
            Err(VaultError::NotFound) => {
                reading.is_gone = true;
                return Ok(());
            }
            Err(error) => return Err(self.failures.errno(&error)),
        };
        let directory = directory_of(&listing.directory)?;
        let found = Found {
            epoch: directory.epoch,
            is_moving: directory.remainder.is_some(),
        };
        reading.note(found);
        reading.after = listing.after;
        let revision = listing.directory.revision;
        if let Some((sum, count, begun)) = &mut reading.whole {
            if *count == 0 {
                *begun = revision;
            }
            *count += listing.entries.len() as u64;
            sum.add(&listing.sum.0);
            if listing.complete
                && !self.vault.is_salvage()
                && *begun == revision
                && (*count != directory.entries || *sum != directory.sum())
            {
                let error = VaultError::Integrity(format!(
                    "directory {ino} does not hold what it should: names were removed, replayed \
                     or inserted"
                ));
                self.vault.note_damage(&error);
                return Err(self.failures.errno(&error));
            }
        }
        for entry in listing.entries {
            let shown = DirectoryEntry {
                ino: entry.node,
                kind: entry.kind,
                position: reading.position_of(&entry.tag),
                name: entry.name,
            };
            reading.ahead.push_back(shown);
        }
        reading.ended = listing.complete.then_some(found);
        Ok(())
    }

    /// The attributes of a directory's entry for readdir, without waiting.
    pub(super) fn entry_attr(&self, directory: u64, entry: &DirectoryEntry) -> Result<Attr, Errno> {
        let node = match self.nodes.stored(entry.ino) {
            // Look up both at once: an entry and its node exist together, or neither does.
            Err(Errno(libc::ESTALE)) => match self.vault.lookup(directory, &entry.name) {
                // The name was removed, or names another node; and a dot is not a name.
                Ok(_) | Err(VaultError::NotFound | VaultError::Invalid) => {
                    return Err(Errno(libc::ESTALE));
                }
                Err(error) => return Err(self.failures.errno(&error)),
            },
            node => node?,
        };
        if node.kind != entry.kind {
            let text = format!(
                "an entry names node {}, which is of another kind",
                entry.ino
            );
            return Err(self.failures.errno(&VaultError::Integrity(text)));
        }
        Ok(self.attributes.attr_of(&node))
    }
}
