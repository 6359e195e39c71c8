//! Replacing the system node's key. All sums over the vault stand under it: they are made anew record
//! by record, a few in each transaction, beside the sum that holds meanwhile.

use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use crate::keyring::Keyring;
use crate::store::{self, Durability, Write};

use super::super::cache::Changes;
use super::super::counting::keys_after;
use super::super::current::Checked;
use super::super::node::{Node, SYSTEM};
use super::super::state::{State, SystemKeys};
use super::super::{Vault, VaultError};
use super::migrate::SLICE;

/// Records counted at a time.
fn at_most() -> usize {
    fail::fail_point!("keys-at-a-time", |number| {
        number.and_then(|number| number.parse().ok()).unwrap_or(1)
    });
    256
}

/// What a transaction did.
enum Step {
    /// Nothing: the key is the new one, and the only one.
    None,
    /// It has counted.
    Counted(State),
    /// It has changed the system node.
    Changed(State, SystemKeys),
}

impl Vault {
    /// Replaces the system node's key, and with it all sums over the vault. What is there must be
    /// what they say. With `despite`, what did not fit goes on not to fit.
    pub(super) fn renew_system(
        &self,
        generation: u64,
        despite: bool,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        loop {
            if go_on().is_break() {
                return Ok(ControlFlow::Break(()));
            }
            self.turns.give_way();
            let mut state = self.lock_state();
            let (keyring, keys) = (self.keyring(), self.system());
            die_at!("system-before");
            let mut marks = Vec::new();
            let step = store::write(&self.store, Durability::Soon, |records| {
                let mut checked = Checked::new(&self.current, records);
                let step = self.renew_some(
                    (&keyring, &keys),
                    &mut checked,
                    &state,
                    (generation, despite),
                );
                marks = checked.into_changed();
                step
            });
            die_at!("system-stored");
            let (changed, is_last) = match step {
                Ok(Step::None) => return Ok(ControlFlow::Continue(())),
                Ok(Step::Counted(counted)) => (counted, false),
                Ok(Step::Changed(changed, keys)) => {
                    let is_last = !keys.is_renewing();
                    *self.system.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
                    self.cache.commit(Changes::forgotten([SYSTEM]));
                    (changed, is_last)
                }
                Err(error) => {
                    self.take_system_again();
                    self.look_again(&mut state, marks);
                    return Err(error);
                }
            };
            self.current.commit(changed.commit, marks);
            self.show(&changed);
            *state = changed;
            drop(state);
            if is_last {
                self.sync()?;
            }
        }
    }

    /// One transaction.
    fn renew_some(
        &self,
        (keyring, keys): (&Keyring, &SystemKeys),
        records: &mut dyn Write,
        state: &State,
        (generation, despite): (u64, bool),
    ) -> Result<Step, VaultError> {
        let record = records
            .node(SYSTEM)?
            .ok_or_else(|| VaultError::tampered("the system node", "is missing"))?;
        let node = Node::open(keyring, SYSTEM, &record)?;
        if node.is_under(generation) {
            return Ok(Step::None);
        }
        let mut renewing = Renewing {
            keyring,
            records,
            keys,
            state: state.clone(),
        };
        let step = match &node.previous {
            None => renewing.begin(node)?,
            Some(_) if renewing.count()? => renewing.end(node, despite)?,
            Some(_) => renewing.stored(None)?,
        };
        die_at!("system-within");
        Ok(step)
    }

    /// An error after the commit leaves open whether it was one.
    fn take_system_again(&self) {
        // Whoever calls holds the state, which a read that is in doubt would wait for.
        if let Ok(keys) = store::read(&self.store, |records| self.system_in(records)) {
            *self.system.write().unwrap_or_else(PoisonError::into_inner) = keys;
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
    /// Gives the system node its new key. The state is sealed with that from now on.
    fn begin(mut self, mut node: Node) -> Result<Step, VaultError> {
        node.add_key(self.keyring)?;
        self.exchange(&mut node)?;
        self.state.begin_renewal();
        self.stored(Some(SystemKeys::of(&node)))
    }

    /// Counts what follows, as much as there is time for; whether that was all.
    fn count(&mut self) -> Result<bool, VaultError> {
        let (begun, limit) = (Instant::now(), at_most());
        let elements = self.keys.elements();
        loop {
            let batch = keys_after(self.records, self.state.renewed_upto(), limit)?;
            if batch.is_empty() {
                return Ok(true);
            }
            for (key, record) in &batch {
                self.state.renew(&elements.of(*key, record));
            }
            if limit < 256 || begun.elapsed() > SLICE {
                return Ok(false);
            }
        }
    }

    /// Goes on with the new sum, and drops the key of the one before.
    fn end(mut self, mut node: Node, despite: bool) -> Result<Step, VaultError> {
        node.previous = None;
        self.exchange(&mut node)?;
        self.state.end_renewal(despite)?;
        self.stored(Some(SystemKeys::of(&node)))
    }

    /// Puts another record of the system node in the place of the one that is there.
    fn exchange(&mut self, node: &mut Node) -> Result<(), VaultError> {
        let missing = || VaultError::tampered("the system node", "is missing");
        let old = self.records.node(SYSTEM)?.ok_or_else(missing)?;
        let new = node.seal(self.keyring.vault())?;
        self.state.count(&self.keys.node(SYSTEM, &old), false);
        self.state.count(&self.keys.node(SYSTEM, &new), true);
        self.records.put_node(SYSTEM, &new)?;
        Ok(())
    }

    /// Seals the state, with other keys if they have changed.
    fn stored(mut self, keys: Option<SystemKeys>) -> Result<Step, VaultError> {
        self.state.commit += 1;
        let vault = self.keyring.vault();
        let sealed = keys
            .as_ref()
            .unwrap_or(self.keys)
            .seal(vault, &self.state)?;
        self.records.put_state(&sealed)?;
        Ok(match keys {
            None => Step::Counted(self.state),
            Some(keys) => Step::Changed(self.state, keys),
        })
    }
}
