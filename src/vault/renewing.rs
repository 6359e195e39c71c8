//! A transaction on the system node and the state, which stand under each other's keys.

use crate::keyring::Keyring;
use crate::store::{ReadRecords as _, Write, WriteRecords as _};

use super::VaultError;
use super::node::{Node, SYSTEM};
use super::state::{State, SystemKeys};

/// The outcome of a transaction.
pub(super) enum Step<T> {
    /// It changed nothing; its result.
    None(T),
    /// It changed only the state.
    Stored(State, T),
    /// It changed the system node.
    Changed(State, SystemKeys, T),
}

/// A transaction under way.
pub(super) struct Renewing<'a> {
    pub(super) keyring: &'a Keyring,
    pub(super) records: &'a mut dyn Write,
    pub(super) keys: &'a SystemKeys,
    pub(super) state: State,
}

impl Renewing<'_> {
    pub(super) fn begin(mut self, mut node: Node) -> Result<Step<()>, VaultError> {
        node.add_key(self.keyring)?;
        self.exchange(&mut node)?;
        self.state.begin_renewal();
        let keys = SystemKeys::of(&node);
        self.store(&keys)?;
        Ok(Step::Changed(self.state, keys, ()))
    }

    /// Drops the count of an earlier program, which stored its progress.
    pub(super) fn begin_again(mut self) -> Result<Step<()>, VaultError> {
        self.state.begin_renewal();
        self.store(self.keys)?;
        Ok(Step::Stored(self.state, ()))
    }

    pub(super) fn end(
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

    /// Replaces the record of the system node.
    fn exchange(&mut self, node: &mut Node) -> Result<(), VaultError> {
        let missing = || VaultError::tampered("the system node", "is missing");
        let old = self.records.node(SYSTEM)?.ok_or_else(missing)?;
        let new = node.seal(self.keyring.vault())?;
        // No other record has the keys, so open it before it replaces the old one.
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
