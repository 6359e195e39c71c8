//! Reading directories: in the order of the name tags, so that a position stays valid whatever is
//! made and removed meanwhile.
//!
//! When a directory's key is replaced, all its tags are others. A listing under way then begins
//! anew, and leaves out what it has shown: of each name that was shown a hash is kept.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use crate::crypto::SetSum;
use crate::store::{NameTag, NodeId};
use crate::vault::{Entry, Kind, ROOT, VaultError};

use super::control;
use super::handles::Access;
use super::{Attr, Errno, FileHandle, FileSystem};

/// Entries opened at a time.
const BATCH: usize = 64;

/// A name in a directory, as readdir shows it.
#[derive(Clone, Debug)]
pub struct DirectoryEntry {
    /// The node.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// The name.
    pub name: Vec<u8>,
    /// Where to go on after it.
    pub position: u64,
}

/// An open directory.
#[derive(Debug, Default)]
struct Reading {
    /// Entries opened and not yet passed on.
    ahead: VecDeque<DirectoryEntry>,
    /// The position that `ahead` begins at.
    position: u64,
    /// Where the store goes on after `ahead`; `None` at the end.
    after: Option<NameTag>,
    complete: bool,
    /// For comparing what was read with what the directory should hold: sum, count, and the
    /// revision in which reading began. `None` once somebody has sought.
    whole: Option<(SetSum, u64, u64)>,
    /// Key epoch of the directory that positions and tags are of.
    epoch: Option<u32>,
    /// What was shown since reading began, in this epoch: position and hash of the name.
    shown: Vec<(u64, u64)>,
    /// What was shown in earlier epochs.
    earlier: HashSet<u64>,
    /// The position that was gone on from when this epoch was entered: it is of the one before.
    turned_at: Option<u64>,
}

impl Reading {
    /// Goes on from a position: at the beginning, where it is, or somewhere else.
    fn seek(&mut self, position: u64) {
        if position == FIRST_NAME {
            *self = Self {
                position,
                whole: Some((SetSum::default(), 0, 0)),
                ..Self::default()
            };
        } else if position != self.position {
            self.ahead.clear();
            (self.complete, self.whole) = (false, None);
            if self.turned_at == Some(position) {
                self.after = None;
                self.shown.clear();
            } else {
                self.after = Some(tag_at(position));
                self.shown.retain(|(shown, _)| *shown <= position);
            }
            self.position = position;
        }
    }

    /// Begins anew among the tags of another key, leaving out what was shown.
    fn turn(&mut self) {
        self.earlier
            .extend(self.shown.drain(..).map(|(_, hash)| hash));
        self.turned_at = Some(self.position);
        (self.after, self.whole) = (None, None);
    }
}

fn hash_of(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(name);
    hasher.finish()
}

/// All open directories.
#[derive(Default)]
pub(super) struct DirectoryHandles {
    open: Mutex<HashMap<FileHandle, Arc<Mutex<Reading>>>>,
}

/// `.` and `..` come first.
const FIRST_NAME: u64 = 2;

/// The position after the entry filed under `tag`: 63 bits of a keyed hash, and never one of the
/// first positions.
fn position_of(tag: &NameTag) -> u64 {
    let (first, _) = tag.split_at(8);
    let number = first
        .iter()
        .fold(0u64, |sum, byte| sum << 8 | u64::from(*byte));
    (number >> 1).max(FIRST_NAME + 1)
}

/// The last tag at a position.
fn tag_at(position: u64) -> NameTag {
    let mut tag = [0xff; 32];
    tag[..8].copy_from_slice(&(position << 1 | 1).to_be_bytes());
    tag
}

impl FileSystem {
    /// Opens a directory.
    pub fn open_directory(&self, ino: u64) -> Result<FileHandle, Errno> {
        if control::is_control(ino) {
            return Ok(0);
        }
        // Registered like a file, so that a directory that is removed while open stays readable.
        let access = Access {
            read: true,
            write: false,
            append: false,
        };
        let (fh, _) = self.table.open(ino, access, None)?;
        if let Err(error) = self
            .node(ino)
            .and_then(|node| Ok(node.directory().map(drop)?))
        {
            self.table.discard(fh);
            self.tidy(ino);
            return Err(error);
        }
        let reading = Arc::new(Mutex::new(Reading::default()));
        self.directories
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(fh, reading);
        Ok(fh)
    }

    /// Closes a directory.
    pub fn release_directory(self: &Arc<Self>, fh: FileHandle) {
        self.directories
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&fh);
        self.release(fh);
    }

    /// Passes entries from `position` on to `take`, until there are no more or it returns true.
    pub fn read_directory(
        &self,
        ino: u64,
        fh: FileHandle,
        position: u64,
        take: impl FnMut(&DirectoryEntry) -> bool,
    ) -> Result<(), Errno> {
        self.read_entries(ino, fh, position, false, take)
    }

    /// The same for a `take` that asks for the [attributes](Self::entry_attr) of each.
    pub fn read_directory_plus(
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
        if control::is_control(ino) {
            return self.read_control_directory(position, take);
        }
        let known = self
            .directories
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&fh)
            .cloned();
        let reading = known.ok_or(Errno(libc::EBADF))?;
        let mut reading = reading.lock().unwrap_or_else(PoisonError::into_inner);
        if position < FIRST_NAME {
            let parent = match self.node(ino) {
                Ok(node) => node.directory()?.parent,
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
                let hash = hash_of(&entry.name);
                if reading.earlier.contains(&hash) {
                    continue;
                }
                if take(&entry) {
                    reading.ahead.push_front(entry);
                    return Ok(());
                }
                reading.position = entry.position;
                reading.shown.push((entry.position, hash));
            }
            if reading.complete {
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
            // Removed while it is open: nothing is in it.
            Err(VaultError::NotFound) => {
                reading.complete = true;
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let epoch = listing.directory.directory()?.epoch;
        if reading.epoch.replace(epoch).is_some_and(|of| of != epoch) {
            reading.turn();
            return Ok(());
        }
        if let Some(last) = listing.entries.last() {
            reading.after = Some(last.tag);
        }
        reading.complete = listing.complete;
        let revision = listing.directory.revision;
        if let Some((sum, count, begun)) = &mut reading.whole {
            if *count == 0 {
                *begun = revision;
            }
            *count += listing.entries.len() as u64;
            sum.add(&listing.sum.0);
            let directory = listing.directory.directory()?;
            if listing.complete
                && !self.vault.is_salvage()
                && *begun == revision
                && (*count != directory.entries || *sum != directory.sum())
            {
                return Err(VaultError::Integrity(format!(
                    "directory {ino} does not hold what it should: names were removed, replayed \
                     or inserted"
                ))
                .into());
            }
        }
        reading.ahead.extend(listing.entries.into_iter().map(shown));
        Ok(())
    }

    /// The attributes of an entry for readdir, without waiting for anything.
    pub fn entry_attr(&self, entry: &DirectoryEntry) -> Result<Attr, Errno> {
        if control::is_control(entry.ino) {
            return Ok(self.control_attr(entry.ino));
        }
        let node = self.node(entry.ino)?;
        if node.kind != entry.kind {
            let text = format!(
                "an entry names node {}, which is of another kind",
                entry.ino
            );
            return Err(VaultError::Integrity(text).into());
        }
        Ok(self.attr_of(&node))
    }
}

fn shown(entry: Entry) -> DirectoryEntry {
    DirectoryEntry {
        ino: entry.node,
        kind: entry.kind,
        position: position_of(&entry.tag),
        name: entry.name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_tags_have_the_same_order() {
        let mut tag = [0u8; 32];
        for first in [0u64, 1, 2, 5, 6, 7, 1 << 40, u64::MAX - 1, u64::MAX] {
            tag[..8].copy_from_slice(&first.to_be_bytes());
            let position = position_of(&tag);
            assert!(position > FIRST_NAME && position <= i64::MAX as u64);
            assert!(
                tag_at(position) >= tag,
                "going on after an entry must not repeat it"
            );
        }
    }
}
