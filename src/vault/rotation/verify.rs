//! Showing that nothing is left under the old master key, and that all that there is opens with the
//! new one and is what was stored.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use crate::keyring::{Change, Keyring};
use crate::store::NodeId;

use super::super::counting::keys_after;
use super::super::node::Node;
use super::super::state::{State, SystemKeys};
use super::super::{Failure, Key, Vault, VaultError, Version, content};
use super::crew::Crew;
use super::prepare::Keyed;
use super::search::BATCH;

/// Something to be looked at.
enum Piece {
    Records(Vec<Keyed>),
    Names(NodeId),
}

/// What was found out.
enum Found {
    Counted {
        sums: State,
        directories: Vec<NodeId>,
        /// Those that do not open.
        failed: Vec<(Key, VaultError)>,
    },
    Names(Result<(), VaultError>),
}

impl Vault {
    /// Opens every key with the new master key, and recounts the vault. Names what does not open or
    /// does not fit.
    pub(super) fn verify(
        &self,
        change: &Change,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let keyring = self.keyring();
        let verified = self.read(|records| {
            let state = self.stored_state(records)?;
            let system = self.system_in(records)?;
            let look = |piece| match piece {
                Piece::Records(batch) => {
                    counted(&keyring, &system, change.to, state.uncounted(), &batch)
                }
                Piece::Names(directory) => Found::Names(self.names_agree(directory)),
            };
            Crew::with(&look, |crew, look| {
                let mut after = None;
                let mut recount = state.uncounted();
                let (mut directories, mut names) = (VecDeque::new(), Ok(()));
                let mut ended = false;
                loop {
                    while crew.room() > 0 {
                        if let Some(directory) = directories.pop_front() {
                            crew.give(Piece::Names(directory));
                            continue;
                        }
                        let batch = match ended {
                            true => Vec::new(),
                            false => keys_after(records, after, BATCH)?,
                        };
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
                            for (key, error) in failed {
                                self.verified(key, Err(error))?;
                            }
                        }
                    }
                    if go_on().is_break() {
                        return Ok(None);
                    }
                }
                Ok(Some((state.must_agree_with(&recount), names)))
            })
        })?;
        let Some((sums, names)) = verified else {
            return Ok(ControlFlow::Break(()));
        };
        if sums.is_err() && self.name_what_does_not_open(&keyring, go_on)?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        self.verified("the sums over all records", sums.and(names))?;
        Ok(ControlFlow::Continue(()))
    }

    /// Whether a directory holds the names that it should, as of now.
    fn names_agree(&self, directory: NodeId) -> Result<(), VaultError> {
        match self.read(|records| self.recount_names(records, directory)) {
            // It was removed meanwhile.
            Err(VaultError::NotFound) => Ok(()),
            found => found,
        }
    }

    /// The sums tell that a record is not what was stored, not which: looks for one that does not
    /// authenticate although its key does.
    fn name_what_does_not_open(
        &self,
        keyring: &Keyring,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let mut after = None;
        loop {
            let batch = self.read(|records| keys_after(records, after, BATCH))?;
            after = batch.last().map(|(key, _)| *key).or(after);
            for (key, record) in &batch {
                if record.generation != keyring.active() {
                    continue;
                }
                let (key, opened) = match *key {
                    Key::Node(id) => (*key, Node::open(keyring, id, record).map(drop)),
                    Key::Version(node, version) => {
                        let opened = Version::open(keyring, node, version, record);
                        (*key, opened.map(drop))
                    }
                };
                self.verified(key, opened)?;
            }
            if go_on().is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if batch.is_empty() {
                return Ok(ControlFlow::Continue(()));
            }
        }
    }

    /// Notes an integrity failure, and passes on any other.
    fn verified(
        &self,
        what: impl std::fmt::Display,
        result: Result<(), VaultError>,
    ) -> Result<(), VaultError> {
        match result {
            Err(error) if error.failure() == Failure::Integrity => {
                self.rotation.damage().note(what, error);
                Ok(())
            }
            result => result,
        }
    }
}

/// Counts records, and unwraps the keys of those that are under generation `to`. What else is in a
/// record was authenticated before it was stored, and the sums show that it is what was stored.
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
        if let Key::Node(id) = key
            && Node::says_directory(record)
        {
            directories.push(*id);
        }
        if record.generation != to {
            continue;
        }
        let unwrapped = match *key {
            Key::Node(id) => Node::must_unwrap(keyring, id, record),
            Key::Version(node, version) => content::must_unwrap(keyring, node, version, record),
        };
        if let Err(error) = unwrapped {
            failed.push((*key, error));
        }
    }
    Found::Counted {
        sums,
        directories,
        failed,
    }
}
