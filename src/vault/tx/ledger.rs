//! The ledger of a transaction: it counts each record that comes or goes in the state.

use crate::keyring::Keyring;
use crate::store::{MAX_ID, NodeId, ReadRecords as _, Record, Write, WriteRecords as _};

use super::super::VaultError;
use super::super::cache::{ChangedEntry, Changes};
use super::super::keys::{KeyedId, for_each_key};
use super::super::state::{State, SystemKeys};
use super::exchange::Exchange;
use super::op::Op;

/// The ledger of a transaction.
pub(super) struct Ledger<'a> {
    system: &'a SystemKeys,
    records: &'a mut dyn Write,
    state: State,
    /// Nodes whose record was replaced.
    exchanged: Vec<NodeId>,
    /// Entries that were stored or deleted.
    entries: Vec<ChangedEntry>,
}

impl<'a> Ledger<'a> {
    pub(super) fn new(system: &'a SystemKeys, records: &'a mut dyn Write, state: State) -> Self {
        Self {
            system,
            records,
            state,
            exchanged: Vec::new(),
            entries: Vec::new(),
        }
    }

    pub(super) fn records(&mut self) -> &mut (dyn Write + 'a) {
        self.records
    }

    /// Number of write transactions before this one.
    pub(super) fn commits(&self) -> u64 {
        self.state.commit
    }

    // --- numbers -----------------------------------------------------------------------------

    /// Allocates the number of a new node.
    pub(super) fn next_node(&mut self) -> Result<NodeId, VaultError> {
        let id = self.state.next_node;
        if id >= MAX_ID {
            return Err(VaultError::OutOfNodes);
        }
        self.state.next_node += 1;
        Ok(id)
    }

    /// Sets the first number that a new vault allocates.
    pub(super) fn begin_at(&mut self, id: NodeId) {
        self.state.next_node = id;
    }

    /// Makes sure that no new node gets a number up to `id`.
    pub(super) fn has_seen(&mut self, id: NodeId) {
        self.state.next_node = self.state.next_node.max(id + 1);
    }

    // --- records -----------------------------------------------------------------------------

    pub(super) fn execute(&mut self, op: Op) -> Result<(), VaultError> {
        match op {
            Op::PutEntry {
                directory,
                tag,
                record,
            } => {
                self.records.put_entry(directory, &tag, &record)?;
                self.entries.push(((directory, tag), Some(record)));
            }
            Op::DeleteEntry { directory, tag } => {
                self.records.delete_entry(directory, &tag)?;
                self.entries.push(((directory, tag), None));
            }
            Op::PutVersion {
                node,
                version,
                record,
                chunks,
            } => {
                self.state
                    .count(&self.system.version(node, version, &record), true);
                let mut chunks = chunks.into_iter();
                self.records
                    .insert_version(node, version, &record, &mut chunks)?;
            }
            Op::BeginVersion {
                node,
                version,
                record,
                chunks,
            } => {
                self.state
                    .count(&self.system.version(node, version, &record), true);
                self.records.begin_version(node, version, &record, chunks)?;
            }
            Op::PutChunks {
                node,
                version,
                index,
                chunks,
            } => {
                let mut chunks = chunks.into_iter();
                self.records.put_chunks(node, version, index, &mut chunks)?;
            }
            Op::RewrapVersion {
                node,
                version,
                old,
                new,
            } => {
                let element = |record| self.system.version(node, version, record);
                self.state.count(&element(&old), false);
                self.state.count(&element(&new), true);
                self.records.rewrap_version(node, version, &new)?;
            }
            Op::ReplaceVersion {
                node,
                version,
                old,
                new,
                chunks,
            } => {
                let element = |record| self.system.version(node, version, record);
                self.state.count(&element(&old), false);
                self.state.count(&element(&new), true);
                let mut chunks = chunks.into_iter();
                self.records
                    .replace_version(node, version, &new, &mut chunks)?;
            }
            Op::DeleteVersion {
                node,
                version,
                erased,
            } => {
                if let Some(record) = self.records.version(node, version)? {
                    self.state
                        .count(&self.system.version(node, version, &record), false);
                    match erased {
                        true => self.records.erase_version(node, version)?,
                        false => self.records.delete_version(node, version)?,
                    }
                }
            }
            Op::PutOrphan(node) => self.records.put_orphan(node)?,
            Op::DeleteOrphan(node) => self.records.delete_orphan(node)?,
            Op::DiscardNode(id) => {
                if let Some(record) = self.records.node(id)? {
                    self.state.count(&self.system.node(id, &record), false);
                    self.records.delete_node(id)?;
                }
            }
        }
        Ok(())
    }

    /// Subtracts a node's record, which is about to go or be replaced.
    pub(super) fn discount_node(&mut self, id: NodeId) -> Result<(), VaultError> {
        let old = self
            .records
            .node(id)?
            .ok_or_else(|| VaultError::tampered(format_args!("node {id}"), "has disappeared"))?;
        self.state.count(&self.system.node(id, &old), false);
        Ok(())
    }

    /// Stores and counts a node's record; none must be counted for the node.
    pub(super) fn put_node(&mut self, id: NodeId, record: &Record) -> Result<(), VaultError> {
        self.state.count(&self.system.node(id, record), true);
        self.records.put_node(id, record)?;
        Ok(())
    }

    /// Removes a node's record; none must be counted for the node.
    pub(super) fn delete_node(&mut self, id: NodeId) -> Result<(), VaultError> {
        Ok(self.records.delete_node(id)?)
    }

    /// Replaces the record that the new one was made from, if it is still there; returns whether it
    /// was.
    pub(super) fn exchange(&mut self, exchange: &Exchange) -> Result<bool, VaultError> {
        let is_done = exchange.store(self.records)?;
        if is_done {
            let [old, new] = exchange.elements();
            self.state.count(old, false);
            self.state.count(new, true);
            if let KeyedId::Node(id) = exchange.key {
                self.exchanged.push(id);
            }
        }
        Ok(is_done)
    }

    // --- the end -----------------------------------------------------------------------------

    /// Counts all records, and continues with that count. Returns whether it matched the state.
    pub(super) fn recount(&mut self) -> Result<bool, VaultError> {
        let mut found = self.state.uncounted();
        let elements = self.system.elements();
        for_each_key(&mut *self.records, |key, record| {
            found.count(&elements.of(key, record), true);
        })?;
        let agrees = self.state.agrees_with(&found);
        self.state = found;
        Ok(agrees)
    }

    /// The records whose marks and cached copies are stale after this transaction.
    pub(super) fn changes(&mut self) -> Changes {
        let mut changed = Changes::forgotten(std::mem::take(&mut self.exchanged));
        changed.entries = std::mem::take(&mut self.entries);
        changed
    }

    /// Stores the state, sealed for `keyring`.
    pub(super) fn seal(mut self, keyring: &Keyring) -> Result<State, VaultError> {
        self.state.commit += 1;
        self.state.keyring = keyring.body().sequence;
        let sealed = self.system.seal(keyring.vault(), &self.state)?;
        self.records.put_state(&sealed)?;
        Ok(self.state)
    }
}
