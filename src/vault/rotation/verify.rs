//! Shows that no record is left under the old master key, and that all records open with the new
//! one and match the sums.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::keyring::{Keyring, Rotation};
use crate::store::{self, MANY_BYTES, NodeId, Read};

use super::super::VaultError;
use super::super::commit::transact::Transactions;
use super::super::content::{self, Version};
use super::super::counting::names::recount_names;
use super::super::crew::Crew;
use super::super::integrity::Guard;
use super::super::keys::{KeyedId, keys_after};
use super::super::node::{Node, SYSTEM};
use super::super::records::Records;
use super::super::state::{State, SystemKeys};
use super::prepare::Keyed;
use super::progress::Standing;
use super::search::BATCH;

/// A piece of work.
enum Piece {
    Records(Vec<Keyed>),
    Names(NodeId),
}

/// The result of a piece.
enum Found {
    Counted {
        sums: Box<State>,
        directories: Vec<NodeId>,
        /// Records that do not open.
        failed: Vec<(KeyedId, VaultError)>,
    },
    Names(Result<(), VaultError>),
}

/// One run of the verification that the module describes.
pub(super) struct Verification<'a> {
    pub(super) records: &'a Records,
    pub(super) transactions: &'a Transactions,
    pub(super) guard: &'a Guard,
    pub(super) standing: &'a Standing,
}

impl Verification<'_> {
    /// Opens every key with the new master key, and recounts the vault, under both keys of the
    /// system node if it has two. Names the records that do not open or do not match.
    pub(super) fn run(
        &self,
        change: &Rotation,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<(), State>, VaultError> {
        let keyring = self.records.keyring();
        self.guard.must_serve()?;
        // Read the store directly: the sums show which records are current. A checked read that met
        // a stale record would wait for the turn, too.
        let verified = store::read(self.records.store(), |records| {
            let (state, system) = self.counted_from(records)?;
            let look = |piece| match piece {
                Piece::Records(batch) => {
                    let nothing = uncounted(&state, &system);
                    counted(&keyring, &system, change.to, nothing, &batch)
                }
                Piece::Names(directory) => Found::Names(self.names_agree(directory)),
            };
            Crew::with(&look, |crew, look| {
                let mut after = None;
                let mut recount = uncounted(&state, &system);
                let (mut directories, mut names) = (VecDeque::new(), Ok(()));
                let (mut ended, mut limit) = (false, at_most());
                let mut broken = BTreeMap::new();
                loop {
                    while crew.room() > 0 {
                        if let Some(directory) = directories.pop_front() {
                            crew.give(Piece::Names(directory));
                            continue;
                        }
                        let batch = match ended {
                            true => Vec::new(),
                            false => keys_after(records, after, limit)?,
                        };
                        limit = as_many(&batch);
                        after = batch.last().map(|(key, _)| *key).or(after);
                        ended = batch.is_empty();
                        if ended {
                            break;
                        }
                        crew.give(Piece::Records(batch));
                    }
                    match crew.take(look) {
                        None => break,
                        Some(Found::Names(found)) => names = names.and(found),
                        Some(Found::Counted {
                            sums,
                            directories: more,
                            failed,
                        }) => {
                            recount.add(&sums);
                            directories.extend(more);
                            broken.extend(failed);
                        }
                    }
                    if go_on().is_break() {
                        return Ok::<_, VaultError>(None);
                    }
                }
                let sums = state.must_agree_with(&recount);
                Ok(Some((recount, sums, names, broken)))
            })
        })?;
        let Some((recount, sums, names, broken)) = verified else {
            return Ok(ControlFlow::Break(()));
        };
        for (key, error) in &broken {
            self.standing.verified(key, Err(error.clone()))?;
        }
        let named = |key: &KeyedId| broken.contains_key(key);
        let search = || self.name_what_does_not_open(&keyring, &named, go_on);
        if sums.is_err() && search()?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let standing = self.standing;
        standing.verified("the sums over all records", sums.and(names))?;
        Ok(ControlFlow::Continue(recount))
    }

    /// The state and its keys in a snapshot taken here. If the system node has two keys, later
    /// writes are counted, too.
    fn counted_from(&self, records: &mut dyn Read) -> Result<(State, Arc<SystemKeys>), VaultError> {
        // Under the lock, no other thread commits.
        let mut now = self.transactions.queue().turn();
        let state = self.records.stored_state(records)?;
        let system = self.records.system_in(records)?;
        if state.commit != now.commit {
            return Err(VaultError::tampered(
                "the state record",
                "is not the one that was stored last",
            ));
        }
        if system.is_renewing() {
            now.begin_counting();
        }
        Ok((state, system))
    }

    /// Checks a directory's names against its sum now.
    fn names_agree(&self, directory: NodeId) -> Result<(), VaultError> {
        let found = self.records.read(|records| {
            let keyring = self.records.keyring();
            recount_names(records, (&keyring, self.records.current()), directory)
        });
        match found {
            // The directory was removed meanwhile.
            Err(VaultError::NotFound) => Ok(()),
            found => found,
        }
    }

    /// Looks for records that do not authenticate although their keys do, besides those that are
    /// `named`: wrong sums do not show which record is damaged.
    fn name_what_does_not_open(
        &self,
        keyring: &Keyring,
        named: &dyn Fn(&KeyedId) -> bool,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let (mut after, mut limit) = (None, BATCH);
        loop {
            let batch = self
                .records
                .read(|records| keys_after(records, after, limit))?;
            after = batch.last().map(|(key, _)| *key).or(after);
            limit = as_many(&batch);
            for (key, record) in &batch {
                if record.generation != keyring.active() || named(key) {
                    continue;
                }
                let (key, opened) = match *key {
                    KeyedId::Node(id) => (*key, Node::open(keyring, id, record).map(drop)),
                    KeyedId::Version(node, version) => {
                        let opened = Version::open(keyring, node, version, record);
                        (*key, opened.map(drop))
                    }
                };
                self.standing.verified(key, opened)?;
            }
            if go_on().is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if batch.is_empty() {
                return Ok(ControlFlow::Continue(()));
            }
        }
    }
}

/// The state with no records counted, for the start of a count.
fn uncounted(state: &State, system: &SystemKeys) -> State {
    let mut uncounted = state.uncounted();
    if system.is_renewing() {
        uncounted.begin_counting();
    }
    uncounted
}

/// Limit on records in one piece.
fn at_most() -> usize {
    fail::fail_point!("keys-at-a-time", |number| {
        number.and_then(|number| number.parse().ok()).unwrap_or(1)
    });
    BATCH
}

/// The number of records like these to read at a time.
fn as_many(batch: &[Keyed]) -> usize {
    let bytes: usize = batch.iter().map(|(_, record)| record.value.len()).sum();
    (batch.len() * MANY_BYTES / bytes.max(1)).clamp(1, at_most())
}

/// Counts records, and unwraps the keys of those under generation `to`. The rest of a record was
/// authenticated before it was stored, and the sums show that it has not changed.
fn counted(
    keyring: &Keyring,
    system: &SystemKeys,
    to: u64,
    mut sums: State,
    batch: &[Keyed],
) -> Found {
    let elements = system.elements();
    let (mut directories, mut failed) = (Vec::new(), Vec::new());
    for (key, record) in batch {
        sums.count(&elements.of(*key, record), true);
        let mut is_whole = false;
        if let KeyedId::Node(id) = key
            && Node::says_directory(record)
        {
            directories.push(*id);
            is_whole = true;
        }
        if record.generation != to {
            continue;
        }
        let unwrapped = match *key {
            // Transactions made these records, and did not open them again.
            KeyedId::Node(id) if is_whole || id == SYSTEM => {
                Node::open(keyring, id, record).map(drop)
            }
            KeyedId::Node(id) => Node::must_unwrap(keyring, id, record),
            KeyedId::Version(node, version) => content::must_unwrap(keyring, node, version, record),
        };
        if let Err(error) = unwrapped {
            failed.push((*key, error));
        }
    }
    Found::Counted {
        sums: Box::new(sums),
        directories,
        failed,
    }
}
