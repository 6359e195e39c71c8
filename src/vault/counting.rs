//! Counts all records and compares them with the sealed sums, which shows whether an attacker has
//! replayed, inserted or deleted part of the vault. The marks of counted records that the sums
//! confirm are the vault's current state from then on.

pub(super) mod names;

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::keyring::KeyringError;
use crate::store::{self, EntryRow, NodeId, Read, ReadRecords as _, Record};

use super::VaultError;
use super::commit::transact::Transactions;
use super::crew::{Crew, MOST};
use super::current::{Current, Names};
use super::entry::DirectoryKeys;
use super::integrity::Guard;
use super::keys::{BATCH, KeyedId, keys_after};
use super::node::{DirectoryBody, Node};
use super::records::Records;
use super::state::{State, SystemKeys};
use names::must_agree;

/// Up to this many nodes and versions, one thread counts as fast as several.
pub(super) const FEW: u64 = 2000;
/// Number of directories that are counted at a time: the keys of each take locked memory.
const DIRECTORIES: usize = 32;

/// Some names of a directory.
struct SomeNames {
    directory: NodeId,
    keys: Arc<DirectoryKeys>,
    /// The count so far: nothing.
    found: DirectoryBody,
    rows: Vec<EntryRow>,
}

/// The count of some names, and their marks.
struct CountedNames {
    directory: NodeId,
    found: DirectoryBody,
    marks: Vec<(u64, u64)>,
}

/// A piece of work for any free thread.
enum Piece {
    Records(Vec<(KeyedId, Record)>),
    Names(Vec<SomeNames>),
}

/// The result of a piece.
enum Found {
    Records(Box<Result<(State, Vec<NodeId>), VaultError>>),
    Names(Vec<CountedNames>),
}

/// A directory whose names are being counted.
struct Counting {
    record: Record,
    said: DirectoryBody,
    found: DirectoryBody,
    names: Names,
    /// Number of pieces that are not done yet.
    pieces: usize,
    /// Whether all its names were read.
    is_read: bool,
}

impl Counting {
    fn is_done(&self) -> bool {
        self.is_read && self.pieces == 0
    }
}

type Work<'w> = &'w (dyn Fn(Piece) -> Found + Sync);

/// Counts the records of a vault, as the module describes.
pub(super) struct Counter {
    pub(super) records: Arc<Records>,
    pub(super) transactions: Arc<Transactions>,
    pub(super) guard: Arc<Guard>,
}

impl Counter {
    /// Counts a vault again that another process may have written. If it does not match its sums,
    /// the mount serves nothing more.
    ///
    /// # Errors
    /// When it is not, or could not be counted.
    pub(super) fn count_afresh(&self) -> Result<(), VaultError> {
        // The cached pages may differ from the files.
        self.records.store().drop_caches();
        match self.count(&|| self.guard.go_on()) {
            Ok(counted) => {
                if let Some(state) = counted.continue_value() {
                    self.guard.note_verified(state.commit);
                }
                Ok(())
            }
            Err(error) => {
                if error.is_damage() {
                    self.guard.condemn(&error);
                }
                Err(error)
            }
        }
    }

    /// Whether the vault is again as this process has last written it.
    pub(super) fn is_right_again(&self) -> bool {
        let counted = self.count(&|| self.guard.go_on());
        let counted = counted.ok().and_then(ControlFlow::continue_value);
        counted.is_some_and(|state| state.commit == self.transactions.queue().turn().commit)
    }

    /// Counts all records on all processors, as long as `go_on` says so. Returns the state that the
    /// sums confirm.
    pub(super) fn count(
        &self,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), State>, VaultError> {
        let records = &*self.records;
        // The count may miss commits after this one, but none before it.
        let floor = records.seen().commit;
        let counted = loop {
            if !records.is_salvage() {
                let _quiet = self.transactions.queue().turn();
                records.current().begin();
            }
            let before = records.keyring().body().sequence;
            let read = |found: &mut dyn Read| self.count_in(found, floor, go_on);
            match store::read(records.store(), read) {
                Err(VaultError::Keyring(KeyringError::UnknownGeneration(..)))
                    if records.has_newer_keyring(before)? => {}
                other => break other,
            }
        };
        match &counted {
            Ok(ControlFlow::Continue(state)) if !records.is_salvage() => {
                // Under this lock, this process's commits come before or after.
                let now = self.transactions.queue().turn();
                if !records.is_read_only() && now.commit < state.commit {
                    records.current().give_up();
                    return Err(VaultError::went_back(state.commit, now.commit));
                }
                records.current().confirm(state.commit, state.next_node);
                // Records cached before were compared with nothing.
                records.forget_all();
                if records.is_read_only() {
                    records.has_come_to(state);
                }
            }
            Ok(_) | Err(_) => records.current().give_up(),
        }
        counted
    }

    fn count_in(
        &self,
        records: &mut dyn Read,
        floor: u64,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), State>, VaultError> {
        let state = self.records.stored_state(records)?;
        if state.commit < floor {
            return Err(VaultError::went_back(floor, state.commit));
        }
        let system = self.records.system_in(records)?;
        let current = self.records.current();
        current.reserve(state.nodes.saturating_add(state.versions));
        let work = |piece| match piece {
            Piece::Records(batch) => Found::Records(Box::new(count_records(
                current,
                &system,
                state.uncounted(),
                &batch,
            ))),
            Piece::Names(batches) => Found::Names(count_names(current, batches)),
        };
        let threads = match state.nodes.saturating_add(state.versions) <= FEW {
            true => 1,
            false => MOST,
        };
        Crew::with_at_most(threads, &work, |crew, work| {
            let directories = match count_keys(records, (crew, work), &state, go_on)? {
                ControlFlow::Continue(directories) => directories,
                ControlFlow::Break(()) => return Ok(ControlFlow::Break(())),
            };
            let names = self.count_all_names(records, (crew, work), directories, go_on)?;
            Ok(match names {
                ControlFlow::Continue(()) => ControlFlow::Continue(state.clone()),
                ControlFlow::Break(()) => ControlFlow::Break(()),
            })
        })
    }

    fn count_all_names(
        &self,
        records: &mut dyn Read,
        (crew, work): (&Crew<Piece, Found>, Work<'_>),
        directories: Vec<NodeId>,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let mut counting = HashMap::new();
        let take = |counting: &mut HashMap<NodeId, Counting>| {
            let Some(Found::Names(found)) = crew.take(work) else {
                return Ok(false);
            };
            for counted in found {
                let id = counted.directory;
                let Some(directory) = counting.get_mut(&id) else {
                    continue;
                };
                directory.found.add(&counted.found);
                let marks = counted.marks.into_iter();
                marks.for_each(|mark| directory.names.add(mark));
                directory.pieces -= 1;
                if directory.is_done() {
                    self.accept_names(id, counting.remove(&id))?;
                }
            }
            Ok::<_, VaultError>(true)
        };
        let mut piece = Vec::new();
        let mut rows_in_piece = 0;
        for id in directories {
            if go_on().is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let record = records.node(id)?.ok_or(VaultError::NotFound)?;
            let keyring = self.records.keyring();
            let node = Node::open(&keyring, id, &record)?;
            let keys = Arc::new(DirectoryKeys::of(keyring.vault(), &node)?);
            let said = node.directory()?.clone();
            let (found, names) = (said.uncounted(), Names::with_room(said.entries));
            counting.insert(
                id,
                Counting {
                    record,
                    said: said.clone(),
                    found,
                    names,
                    pieces: 0,
                    is_read: false,
                },
            );
            let mut after = None;
            loop {
                let rows = records.entries(id, after.as_ref(), BATCH)?;
                after = rows.last().map(|row| row.tag);
                let is_last = rows.len() < BATCH;
                let Some(directory) = counting.get_mut(&id) else {
                    break;
                };
                directory.is_read = is_last;
                directory.pieces += 1;
                rows_in_piece += rows.len();
                piece.push(SomeNames {
                    directory: id,
                    keys: Arc::clone(&keys),
                    found: said.uncounted(),
                    rows,
                });
                if rows_in_piece >= BATCH || piece.len() >= DIRECTORIES {
                    while crew.room() == 0 && take(&mut counting)? {}
                    crew.give(Piece::Names(std::mem::take(&mut piece)));
                    rows_in_piece = 0;
                }
                if is_last {
                    break;
                }
                if go_on().is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        crew.give(Piece::Names(piece));
        while take(&mut counting)? {}
        Ok(ControlFlow::Continue(()))
    }

    /// Accepts the names of a directory if they match its sum.
    fn accept_names(&self, id: NodeId, counted: Option<Counting>) -> Result<(), VaultError> {
        let Some(counted) = counted else {
            return Ok(());
        };
        must_agree(id, &counted.said, &counted.found)?;
        let current = self.records.current();
        current.adopt(id, &counted.record, counted.names, false);
        Ok(())
    }
}

/// Counts all nodes and versions; returns the directories among them.
fn count_keys(
    records: &mut dyn Read,
    (crew, work): (&Crew<Piece, Found>, Work<'_>),
    state: &State,
    go_on: &dyn Fn() -> ControlFlow<()>,
) -> Result<ControlFlow<(), Vec<NodeId>>, VaultError> {
    let (mut recount, mut directories) = (state.uncounted(), Vec::new());
    let (mut after, mut ended) = (None, false);
    loop {
        while !ended && crew.room() > 0 {
            let batch = keys_after(records, after, BATCH)?;
            after = batch.last().map(|(key, _)| *key).or(after);
            ended = batch.is_empty();
            if !ended {
                crew.give(Piece::Records(batch));
            }
        }
        let Some(found) = crew.take(work) else { break };
        if let Found::Records(found) = found {
            let (part, more) = (*found)?;
            recount.add(&part);
            directories.extend(more);
        }
        if go_on().is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    state.must_agree_with(&recount)?;
    Ok(ControlFlow::Continue(directories))
}

fn count_records(
    current: &Current,
    system: &SystemKeys,
    mut sums: State,
    batch: &[(KeyedId, Record)],
) -> Result<(State, Vec<NodeId>), VaultError> {
    let taken = current.counted(batch);
    taken.map_err(|doubt| VaultError::Integrity(doubt.to_string()))?;
    let elements = system.elements();
    let mut directories = Vec::new();
    for (key, record) in batch {
        sums.count(&elements.of(*key, record), true);
        if let KeyedId::Node(id) = key
            && Node::says_directory(record)
        {
            directories.push(*id);
        }
    }
    Ok((sums, directories))
}

fn count_names(current: &Current, batches: Vec<SomeNames>) -> Vec<CountedNames> {
    let count = |batch: SomeNames| {
        let mut found = batch.found;
        for row in &batch.rows {
            batch.keys.count(&mut found, &row.tag, &row.value, false);
        }
        CountedNames {
            directory: batch.directory,
            found,
            marks: batch.rows.iter().map(|row| current.name(row)).collect(),
        }
    };
    batches.into_iter().map(count).collect()
}
