//! Replacing the system node's key. The state and all sums over the vault stand under it: it has both
//! keys while all records are counted once more, under both, beside those who write. The count is that
//! by which a rotation is verified.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::keyring::{Change, ChangeKind, Keyring};
use crate::store::{self, Durability, Read as _, Write};

use super::super::cache::Changes;
use super::super::current::Checked;
use super::super::node::{Node, SYSTEM};
use super::super::state::{State, SystemKeys};
use super::super::{Vault, VaultError};

/// What a transaction did.
enum Step<T> {
    /// Nothing; and this is what it found.
    None(T),
    /// It has changed the state alone.
    Stored(State, T),
    /// It has changed the system node.
    Changed(State, SystemKeys, T),
}

impl Vault {
    /// Gives the system node another key, beside the one that it has, unless it was given one in the
    /// course of this change. The state is sealed with that from now on.
    pub(super) fn begin_renewal(&self, change: &Change) -> Result<(), VaultError> {
        self.change_system(|renewing, node| match node.previous {
            Some(_) if renewing.state.renewed_upto().is_some() => renewing.begin_again(),
            Some(_) => Ok(Step::None(())),
            None if self.is_renewed(change, &node) => Ok(Step::None(())),
            None => renewing.begin(node),
        })
    }

    /// Goes on with sums under the new key, over what `counted` has found and what was written since,
    /// and drops the key before. False when that is not known: then all has to be counted again. With
    /// `despite`, what did not fit goes on not to fit.
    pub(super) fn end_renewal(
        &self,
        change: &Change,
        counted: &State,
        despite: bool,
    ) -> Result<bool, VaultError> {
        let done = self.change_system(|renewing, node| match node.previous {
            None => Ok(Step::None(true)),
            Some(_) => renewing.end(node, counted, despite),
        })?;
        if done {
            self.rotation.renewed.store(change.to, Ordering::Relaxed);
        }
        Ok(done)
    }

    /// Whether the system node's key is one of this change. That its key is wrapped by the new master
    /// key does not tell: there were programs whose `rotate` wrapped it anew, and no more. Who did not
    /// see it being replaced replaces it.
    fn is_renewed(&self, change: &Change, node: &Node) -> bool {
        let seen = self.rotation.renewed.load(Ordering::Relaxed) == change.to;
        node.is_under(change.to) && (seen || change.kind == ChangeKind::Reencrypt)
    }

    /// A transaction on the system node and the state.
    fn change_system<T>(
        &self,
        deed: impl Fn(Renewing<'_>, Node) -> Result<Step<T>, VaultError>,
    ) -> Result<T, VaultError> {
        let mut turn = self.commit_queue.turn_to_write()?;
        let (keyring, keys) = (self.keyring(), self.system());
        die_at!("system-before");
        let (mut marks, mut doubt, mut committing) = (Vec::new(), None, None);
        let step = store::write(&self.store, Durability::Soon, |records| {
            let mut checked = Checked::new(&self.current, records);
            let missing = || VaultError::tampered("the system node", "is missing");
            let record = checked
                .node(SYSTEM)
                .inspect_err(|_| doubt = checked.doubt.take())?;
            let record = record.ok_or_else(missing)?;
            let node = Node::open(&keyring, SYSTEM, &record)?;
            let renewing = Renewing {
                keyring: &keyring,
                records: &mut checked,
                keys: &keys,
                state: turn.clone(),
            };
            let step = deed(renewing, node)?;
            die_at!("system-within");
            marks = checked.into_changed();
            committing.get_or_insert_with(|| self.current.committing());
            Ok::<_, VaultError>(step)
        });
        if let Some(doubt) = doubt {
            self.guard.found(&doubt);
        }
        die_at!("system-stored");
        let (changed, done) = match step {
            Ok(Step::None(found)) => return Ok(found),
            Ok(Step::Stored(changed, done)) => (changed, done),
            Ok(Step::Changed(changed, keys, done)) => {
                *self.system.write() = Arc::new(keys);
                self.cache.commit(Changes::forgotten([SYSTEM]));
                (changed, done)
            }
            Err(error) => {
                self.take_system_again();
                self.look_again(&mut turn, marks);
                return Err(error);
            }
        };
        self.current.commit(changed.commit, marks);
        turn.commit(changed);
        drop(committing);
        Ok(done)
    }

    /// An error after the commit leaves open whether it was one.
    fn take_system_again(&self) {
        // Whoever calls has the turn, which a read that is in doubt would wait for.
        if let Ok(keys) = store::read(&self.store, |records| self.system_in(records)) {
            *self.system.write() = keys;
        }
    }
}

/// A transaction.
struct Renewing<'a> {
    keyring: &'a Keyring,
    records: &'a mut dyn Write,
    keys: &'a SystemKeys,
    state: State,
}

impl Renewing<'_> {
    fn begin(mut self, mut node: Node) -> Result<Step<()>, VaultError> {
        node.add_key(self.keyring)?;
        self.exchange(&mut node)?;
        self.state.begin_renewal();
        let keys = SystemKeys::of(&node);
        self.store(&keys)?;
        Ok(Step::Changed(self.state, keys, ()))
    }

    /// Forgets what a program counted that stored how far it had come.
    fn begin_again(mut self) -> Result<Step<()>, VaultError> {
        self.state.begin_renewal();
        self.store(self.keys)?;
        Ok(Step::Stored(self.state, ()))
    }

    fn end(
        mut self,
        mut node: Node,
        counted: &State,
        despite: bool,
    ) -> Result<Step<bool>, VaultError> {
        if !self.state.is_counting() {
            return Ok(Step::None(false));
        }
        node.previous = None;
        self.exchange(&mut node)?;
        self.state.end_renewal(counted, despite)?;
        let keys = SystemKeys::of(&node);
        self.store(&keys)?;
        Ok(Step::Changed(self.state, keys, true))
    }

    /// Puts another record of the system node in the place of the one that is there.
    fn exchange(&mut self, node: &mut Node) -> Result<(), VaultError> {
        let missing = || VaultError::tampered("the system node", "is missing");
        let old = self.records.node(SYSTEM)?.ok_or_else(missing)?;
        let new = node.seal(self.keyring.vault())?;
        // Nothing else has the keys: it is opened before it takes the place of the other.
        Node::open(self.keyring, SYSTEM, &new)?;
        self.state.count(&self.keys.node(SYSTEM, &old), false);
        self.state.count(&self.keys.node(SYSTEM, &new), true);
        self.records.put_node(SYSTEM, &new)?;
        Ok(())
    }

    /// Seals the state with these keys.
    fn store(&mut self, keys: &SystemKeys) -> Result<(), VaultError> {
        self.state.commit += 1;
        let sealed = keys.seal(self.keyring.vault(), &self.state)?;
        self.records.put_state(&sealed)?;
        Ok(())
    }
}
