//! Marks of the current records: a mark in memory for each node, version and entry shows whether a
//! record from the store is the current one.
//!
//! The marks come from a count of the whole vault that the sealed sums have confirmed. From then on
//! a mount for writing, the only writer, updates them with every commit and compares every record
//! that it reads: it serves exactly the last commit. A read-only mount cannot know what the writer
//! has done since. It refuses records older than those it has counted or read: authenticated fields
//! of a node and a version say how old they are. A name that differs from the counted one is
//! accepted once all names of its directory were counted again, against the sum in the directory.
//!
//! This module must never take up the mark of a record that is not authentic, nor let a mark go
//! back.

mod checked;
mod mark;
mod place;
mod table;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use crate::store::{EntryRow, NameTag, NodeId, Record};
use crate::sync::{Mutex, Rank, RwLock, RwLockWriteGuard};

use super::keys::KeyedId;
use super::node::Node;
pub(super) use checked::{Checked, Following};
use mark::{Age, Mark, SEEN};
use place::key_of;
pub(super) use place::{Doubt, Place};
use table::Table;

/// Number of parts, each with a lock of its own.
const PARTS: usize = 64;
/// Bytes at the end of a record that tell it from all others: they include the tag of its last
/// seal, and in a node with two keys the wrap of the new one.
const END: usize = 128;

/// The new mark at a record's place after a transaction; `None` if the record is gone.
pub(super) type Changed = (Place, Option<Mark>);

/// There are no marks, and nothing is compared.
const OFF: u8 = 0;
/// A count is under way: commits meanwhile are kept for its end.
const FILLING: u8 = 1;
/// The marks are complete, and every record is compared.
const ON: u8 = 2;

/// The marks of the current records, as the module describes.
pub(super) struct Current {
    phase: AtomicU8,
    hashing: RandomState,
    records: [RwLock<Table>; PARTS],
    /// The names by directory.
    names: [RwLock<HashMap<NodeId, Table>>; PARTS],
    /// The commits since a count began, with their changes.
    meanwhile: Mutex<Vec<(u64, Vec<Changed>)>>,
    /// The round of counting. Each mark has its lowest bit.
    round: AtomicU64,
    /// Nodes with a lower number are not new.
    next_node: AtomicU64,
    /// Shared by readers that take up marks; held alone by one that must not be overtaken.
    following: RwLock<()>,
    /// Odd while a commit and its marks are under way.
    commits: AtomicU64,
}

/// Marks a commit as under way until dropped.
pub(super) struct Committing<'a>(&'a Current);

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        self.0.commits.fetch_add(1, Ordering::AcqRel);
    }
}

impl Current {
    /// Without marks.
    pub(super) fn new() -> Self {
        Self {
            phase: AtomicU8::new(OFF),
            hashing: RandomState::new(),
            records: std::array::from_fn(|_| RwLock::new(Rank::MarkedRecords, Table::default())),
            names: std::array::from_fn(|_| RwLock::new(Rank::MarkedNames, HashMap::new())),
            meanwhile: Mutex::new(Rank::Meanwhile, Vec::new()),
            round: AtomicU64::new(0),
            next_node: AtomicU64::new(0),
            following: RwLock::new(Rank::Following, ()),
            commits: AtomicU64::new(0),
        }
    }

    fn is_on(&self) -> bool {
        self.phase.load(Ordering::Acquire) == ON
    }

    fn is_off(&self) -> bool {
        self.phase.load(Ordering::Acquire) == OFF
    }

    /// Whether a node with this number that has no mark is gone for good.
    fn was_given_out(&self, id: NodeId) -> bool {
        id < self.next_node.load(Ordering::Acquire)
    }

    /// Takes up the mark of a record by the writer, unless a newer one is known by now.
    fn take_up(&self, place: &Place, mark: Mark, alone: bool) {
        let Ok(key) = key_of(place) else { return };
        let _following = (!alone).then(|| self.following.read());
        let (part, key) = self.at(key);
        let mut table = self.records[part].write();
        let is_news = |known| mark.age_beside(Mark::kept(known)) == Age::Newer;
        if table.get(key).is_none_or(is_news) {
            table.set(key, self.seen(mark));
        }
    }

    /// The bytes of the marks, and their number.
    pub(super) fn size(&self) -> (u64, u64) {
        let (mut bytes, mut count) = (0, 0);
        let mut add = |table: &Table| {
            bytes += table.bytes() as u64;
            count += table.len() as u64;
        };
        self.records.iter().for_each(|part| add(&part.read()));
        for part in &self.names {
            part.read().values().for_each(&mut add);
        }
        (bytes, count)
    }

    // --- marks -------------------------------------------------------------------------------

    fn hash_of(&self, value: &[u8]) -> u64 {
        let from = value.len().saturating_sub(END);
        self.hashing.hash_one(&value[from..])
    }

    fn mark_of(&self, place: &Place, record: &Record) -> Mark {
        self.mark_of_value(place, record.generation, &record.value)
    }

    fn mark_of_value(&self, place: &Place, generation: u64, value: &[u8]) -> Mark {
        let revision = match place {
            Place::Node(_) => Node::revision_in(value),
            Place::Version(..) => 0,
            Place::Entry(..) => return self.mark_of_entry(value),
        };
        Mark::aged(revision, generation, self.hash_of(value))
    }

    fn mark_of_entry(&self, value: &[u8]) -> Mark {
        Mark::of_entry(self.hash_of(value))
    }

    /// The place of a record's mark: the part, and its key there.
    fn at(&self, key: KeyedId) -> (usize, u64) {
        let hash = match key {
            KeyedId::Node(node) => self.hashing.hash_one((0u8, node, 0u64)),
            KeyedId::Version(node, version) => self.hashing.hash_one((1u8, node, version)),
        };
        // The table uses the highest bits.
        ((hash % PARTS as u64) as usize, hash.max(1))
    }

    fn of_name(&self, tag: &NameTag) -> u64 {
        self.hashing.hash_one(tag).max(1)
    }

    fn names_of(&self, directory: NodeId) -> &RwLock<HashMap<NodeId, Table>> {
        &self.names[(directory % PARTS as u64) as usize]
    }

    fn known(&self, place: &Place) -> Option<Mark> {
        match key_of(place) {
            Ok(key) => {
                let (part, key) = self.at(key);
                self.records[part].read().get(key).map(Mark::kept)
            }
            Err((directory, tag)) => {
                let names = self.names_of(directory).read();
                names
                    .get(&directory)?
                    .get(self.of_name(&tag))
                    .map(Mark::kept)
            }
        }
    }

    fn set(&self, place: &Place, mark: Option<Mark>) {
        match key_of(place) {
            Ok(key) => {
                let (part, key) = self.at(key);
                let mut table = self.records[part].write();
                match mark {
                    Some(mark) => table.set(key, self.seen(mark)),
                    None => table.remove(key),
                }
            }
            Err((directory, tag)) => {
                let mut names = self.names_of(directory).write();
                let tag = self.of_name(&tag);
                match mark {
                    Some(mark) => names
                        .entry(directory)
                        .or_default()
                        .set(tag, mark.seen_in(0)),
                    None => {
                        if let Some(table) = names.get_mut(&directory) {
                            table.remove(tag);
                            if table.len() == 0 {
                                names.remove(&directory);
                            }
                        }
                    }
                }
            }
        }
    }

    /// The mark, as seen in this round.
    fn seen(&self, mark: Mark) -> u64 {
        mark.seen_in(self.round.load(Ordering::Relaxed))
    }

    // --- counting ----------------------------------------------------------------------------

    /// Begins a count. Callers do this before they take its snapshot, and while nothing is
    /// committed.
    pub(super) fn begin(&self) {
        self.round.fetch_add(1, Ordering::AcqRel);
        let _ = self
            .phase
            .compare_exchange(OFF, FILLING, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Reserves room for the marks of `records` nodes and versions.
    pub(super) fn reserve(&self, records: u64) {
        // The number comes from the authentic state record. By chance, most parts get no more than
        // this.
        let records = usize::try_from(records).unwrap_or(0) / PARTS;
        for part in &self.records {
            part.write().reserve(records + records.isqrt());
        }
    }

    /// Takes up the marks of counted nodes and versions. The end of the count decides whether they
    /// hold.
    ///
    /// # Errors
    /// When a record differs from the known one of the same age.
    pub(super) fn counted(&self, records: &[(KeyedId, Record)]) -> Result<(), Doubt> {
        if self.is_off() {
            return Ok(());
        }
        let _following = self.following.read();
        for (key, record) in records {
            let place = Place::from(*key);
            let mark = self.mark_of(&place, record);
            let (part, key) = self.at(*key);
            let mut table = self.records[part].write();
            let known = table.get(key).map(Mark::kept).filter(|_| self.is_on());
            match known.map(|known| (known, mark.age_beside(known))) {
                // The record was read since the count began.
                Some((known, Age::Older)) => table.set(key, self.seen(known)),
                // The same rule as for a read. About versions the sums decide.
                Some((known, Age::Same))
                    if !known.is(mark) && !matches!(place, Place::Version(..)) =>
                {
                    return Err(Doubt::new(&place, "is another than was read before"));
                }
                Some((_, Age::Neither)) => {
                    return Err(Doubt::new(
                        &place,
                        "is newer and older than what was read before",
                    ));
                }
                None | Some((_, Age::Same | Age::Newer)) => table.set(key, self.seen(mark)),
            }
        }
        Ok(())
    }

    /// The key and the mark of a name in a [`Names`].
    pub(super) fn name(&self, row: &EntryRow) -> (u64, u64) {
        (
            self.of_name(&row.tag),
            self.mark_of_entry(&row.value).seen_in(0),
        )
    }

    /// Takes up the marks of all names of a directory, which were counted against the sum in
    /// `record`. Does nothing if a newer record of the directory is known by now.
    pub(super) fn adopt(&self, directory: NodeId, record: &Record, names: Names, alone: bool) {
        if self.is_off() {
            return;
        }
        let _alone = (!alone).then(|| self.following.write());
        let mark = self.mark_of(&Place::Node(directory), record);
        let newer = self
            .known(&Place::Node(directory))
            .is_some_and(|known| mark.age_beside(known) == Age::Older);
        if newer && self.is_on() {
            return;
        }
        let mut all = self.names_of(directory).write();
        match names.0.len() {
            0 => drop(all.remove(&directory)),
            _ => drop(all.insert(directory, names.0)),
        }
    }

    /// Ends a count that the sums have confirmed, of commit `commit`, in which `next_node` was the
    /// next free node. This process must not commit meanwhile.
    pub(super) fn confirm(&self, commit: u64, next_node: NodeId) {
        let _following = self.following.write();
        let _committing = self.committing();
        let mut meanwhile = self.meanwhile.lock();
        for (_, changed) in meanwhile.drain(..).filter(|(at, _)| *at > commit) {
            self.apply(changed);
        }
        self.next_node.fetch_max(next_node, Ordering::AcqRel);
        if self.phase.swap(ON, Ordering::AcqRel) == ON {
            self.sweep();
        }
    }

    /// Ends a count that was not confirmed, or not finished.
    pub(super) fn give_up(&self) {
        let given_up =
            self.phase
                .compare_exchange(FILLING, OFF, Ordering::AcqRel, Ordering::Acquire);
        if given_up.is_ok() {
            self.records
                .iter()
                .for_each(|part| *part.write() = Table::default());
            self.names.iter().for_each(|part| part.write().clear());
            let mut meanwhile = self.meanwhile.lock();
            meanwhile.clear();
        }
    }

    /// Drops the marks that were not seen in this round: their records are gone.
    fn sweep(&self) {
        let round = self.round.load(Ordering::Acquire) & SEEN;
        for part in &self.records {
            part.write().retain(|mark| mark & SEEN == round);
        }
        for part in &self.names {
            part.write()
                .retain(|directory, _| self.known(&Place::Node(*directory)).is_some());
        }
    }

    // --- commits -----------------------------------------------------------------------------

    /// Applies the changes of this process's commit `commit`.
    pub(super) fn commit(&self, commit: u64, changed: Vec<Changed>) {
        match self.phase.load(Ordering::Acquire) {
            ON => self.apply(changed),
            FILLING => {
                let mut meanwhile = self.meanwhile.lock();
                meanwhile.push((commit, changed));
            }
            _ => {}
        }
    }

    fn apply(&self, changed: Vec<Changed>) {
        for (place, mark) in changed {
            self.set(&place, mark);
        }
    }

    /// Begins a commit. The caller drops the guard when the marks are taken up, or the commit has
    /// failed. There must be one at a time.
    pub(super) fn committing(&self) -> Committing<'_> {
        self.commits.fetch_add(1, Ordering::AcqRel);
        Committing(self)
    }

    /// A number that changes with each commit, and is odd while one is under way. A record that was
    /// read between two equal even numbers was compared with the marks that belong to it.
    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Acquire)
    }

    /// While a thread holds this guard, no other takes up marks.
    pub(super) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.following.write()
    }
}

/// The marks of a directory's names during a count.
pub(super) struct Names(Table);

impl Names {
    /// With room for `count` names.
    pub(super) fn with_room(count: u64) -> Self {
        // A directory's own number is not trusted before the count.
        let count = usize::try_from(count).unwrap_or(0).min(1 << 20);
        Self(Table::with_room(count))
    }

    /// Adds a name, by its [mark](Current::name).
    pub(super) fn add(&mut self, (key, mark): (u64, u64)) {
        self.0.set(key, mark);
    }
}
