//! Write transactions: several jobs, one commit, one new state record.
//!
//! A job reads and changes nodes in memory and notes what is to be stored; when it fails, all it
//! did is forgotten and the other jobs of the transaction go on. Nodes are sealed once, when the
//! transaction ends, however often they were changed.

mod directory;
mod exchange;
mod mend;
mod op;
mod stage;

use std::collections::HashMap;
use std::sync::Arc;

use crate::crypto::Nonces;
use crate::keyring::{EventRow, Keyring};
use crate::store::{KeyedRecord, NameTag, NodeId, StoreErrorKind, Write};

use super::VaultError;
use super::cache::{ChangedEntry, Changes, RecordCache};
use super::content;
use super::entry::{DirectoryKeys, Entry};
use super::node::{Attributes, Kind, Node, Timestamp};
use super::state::{State, SystemKeys};
pub(super) use directory::Migrated;
pub(super) use exchange::Exchange;
pub use stage::{PIECE, pieces_of};

use op::{Op, Slot, is_begun};

/// A job of a write transaction. It may be run more than once.
pub type Job<'j> = &'j mut dyn FnMut(&mut Tx<'_>) -> Result<(), VaultError>;

/// A write transaction under way.
pub struct Tx<'a> {
    pub(super) keyring: &'a Keyring,
    pub(super) now: Timestamp,
    system: &'a SystemKeys,
    cache: &'a RecordCache,
    pub(super) records: &'a mut dyn Write,
    state: State,
    nodes: HashMap<NodeId, Slot>,
    /// What the current job found, to be put back if it fails.
    undo: HashMap<NodeId, Option<Slot>>,
    ops: Vec<Op>,
    /// Nodes of which another record was put in the place of the one that was there.
    exchanged: Vec<NodeId>,
    /// Entries that were stored and deleted.
    entries: Vec<ChangedEntry>,
    touched: bool,
}

impl<'a> Tx<'a> {
    pub(super) fn new(
        keyring: &'a Keyring,
        system: &'a SystemKeys,
        cache: &'a RecordCache,
        records: &'a mut dyn Write,
        state: State,
    ) -> Self {
        Self {
            keyring,
            now: Timestamp::now(),
            system,
            cache,
            records,
            state,
            nodes: HashMap::new(),
            undo: HashMap::new(),
            ops: Vec::new(),
            exchanged: Vec::new(),
            entries: Vec::new(),
            touched: false,
        }
    }

    /// Runs one job; what it did stays only if it succeeds. The outer error is the transaction's.
    pub(super) fn run(
        &mut self,
        job: &mut dyn FnMut(&mut Tx<'_>) -> Result<(), VaultError>,
    ) -> Result<Result<(), VaultError>, VaultError> {
        self.undo.clear();
        self.ops.clear();
        let outcome = job(self);
        match &outcome {
            Ok(()) => {
                self.touched |= !self.undo.is_empty() || !self.ops.is_empty();
                for op in std::mem::take(&mut self.ops) {
                    self.execute(op)?;
                }
            }
            // The store's failures are the transaction's own; not what it has found in a record.
            Err(VaultError::Store(error)) if error.kind != StoreErrorKind::Corrupt => {
                return Err(error.clone().into());
            }
            Err(_) => {
                for (id, slot) in std::mem::take(&mut self.undo) {
                    match slot {
                        Some(slot) => self.nodes.insert(id, slot),
                        None => self.nodes.remove(&id),
                    };
                }
            }
        }
        Ok(outcome)
    }

    /// Whether there is anything to commit.
    pub(super) fn is_touched(&self) -> bool {
        self.touched
    }

    fn execute(&mut self, op: Op) -> Result<(), VaultError> {
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

    /// Seals what has changed and the state; returns the new state and what has changed.
    pub(super) fn finish(mut self) -> Result<(State, Changes), VaultError> {
        // What is known of these is not what is stored any more.
        let mut changed = Changes::forgotten(std::mem::take(&mut self.exchanged));
        changed.entries = std::mem::take(&mut self.entries);
        for (id, slot) in std::mem::take(&mut self.nodes) {
            if !slot.changed {
                continue;
            }
            if slot.stored {
                let old = self.records.node(id)?.ok_or_else(|| {
                    VaultError::tampered(format_args!("node {id}"), "has disappeared")
                })?;
                self.state.count(&self.system.node(id, &old), false);
            }
            match slot.node {
                Some(mut node) => {
                    let sealed = Arc::make_mut(&mut node);
                    sealed.rewrap(self.keyring)?;
                    let record = sealed.seal(self.keyring.vault())?;
                    self.put_node(id, &record)?;
                    changed.nodes.push((id, Some(node)));
                }
                None => {
                    self.records.delete_node(id)?;
                    changed.nodes.push((id, None));
                }
            }
        }
        self.state.commit += 1;
        self.state.keyring = self.keyring.body().sequence;
        let sealed = self.system.seal(self.keyring.vault(), &self.state)?;
        self.records.put_state(&sealed)?;
        Ok((self.state, changed))
    }

    fn put_node(&mut self, id: NodeId, record: &KeyedRecord) -> Result<(), VaultError> {
        self.state.count(&self.system.node(id, record), true);
        self.records.put_node(id, record)?;
        Ok(())
    }

    // --- nodes -------------------------------------------------------------------------------

    /// A node as the transaction sees it.
    pub(super) fn node(&mut self, id: NodeId) -> Result<Arc<Node>, VaultError> {
        if let Some(slot) = self.nodes.get(&id) {
            return slot.node.clone().ok_or(VaultError::NotFound);
        }
        let node = match self.cache.get(id) {
            Some(node) => node,
            None => {
                let record = self.records.node(id)?.ok_or(VaultError::NotFound)?;
                Arc::new(Node::open(self.keyring, id, &record)?)
            }
        };
        let slot = Slot {
            node: Some(Arc::clone(&node)),
            changed: false,
            stored: true,
        };
        self.nodes.insert(id, slot);
        Ok(node)
    }

    /// A node to be changed.
    pub(super) fn change(&mut self, id: NodeId) -> Result<&mut Node, VaultError> {
        self.node(id)?;
        self.remember(id);
        let slot = self.nodes.get_mut(&id).ok_or(VaultError::NotFound)?;
        slot.changed = true;
        slot.node
            .as_mut()
            .map(Arc::make_mut)
            .ok_or(VaultError::NotFound)
    }

    /// A new node.
    pub(super) fn create_node(
        &mut self,
        kind: Kind,
        attributes: Attributes,
    ) -> Result<NodeId, VaultError> {
        let id = self.state.next_node;
        if id >= crate::store::MAX_ID {
            return Err(VaultError::OutOfNodes);
        }
        self.state.next_node += 1;
        let node = Node::create(self.keyring, id, kind, attributes)?;
        self.remember(id);
        self.nodes.insert(id, Slot::made(node));
        Ok(id)
    }

    /// Deletes a node and all its versions: nothing is left of it to be reaped.
    pub(super) fn delete_node(&mut self, id: NodeId) -> Result<(), VaultError> {
        self.node(id)?;
        self.remember(id);
        self.delete_orphan(id);
        for version in self.records.versions_of(id)? {
            self.delete_version(id, version);
        }
        if let Some(slot) = self.nodes.get_mut(&id) {
            slot.node = None;
            slot.changed = true;
        }
        Ok(())
    }

    fn remember(&mut self, id: NodeId) {
        if !self.undo.contains_key(&id) {
            self.undo.insert(id, self.nodes.get(&id).cloned());
        }
    }

    // --- entries -----------------------------------------------------------------------------

    pub(super) fn directory_keys(
        &mut self,
        directory: NodeId,
    ) -> Result<DirectoryKeys, VaultError> {
        let node = self.node(directory)?;
        DirectoryKeys::of(self.keyring.vault(), &node)
    }

    /// Finds a name; returns the entry and its record.
    pub(super) fn find(
        &mut self,
        directory: NodeId,
        name: &[u8],
    ) -> Result<Option<(Entry, Vec<u8>)>, VaultError> {
        let keys = self.directory_keys(directory)?;
        keys.find(&mut *self.records, name)
    }

    /// Files a name, which must be free or taken out by this job.
    pub(super) fn put_entry(
        &mut self,
        directory: NodeId,
        name: &[u8],
        node: NodeId,
        kind: Kind,
    ) -> Result<NameTag, VaultError> {
        let keys = self.directory_keys(directory)?;
        let tag = keys.tag(name)?;
        let record = keys.seal(&Entry {
            tag,
            node,
            kind,
            name: name.to_vec(),
        })?;
        let now = self.now;
        let parent = self.change(directory)?;
        let body = parent.directory_mut()?;
        keys.count(body, &tag, &record, kind == Kind::Directory);
        (parent.attributes.modified, parent.attributes.changed) = (now, now);
        self.ops.push(Op::PutEntry {
            directory,
            tag,
            record,
        });
        Ok(tag)
    }

    /// Takes out a name that [`find`](Self::find) found.
    pub(super) fn take_entry(
        &mut self,
        directory: NodeId,
        (entry, record): &(Entry, Vec<u8>),
    ) -> Result<(), VaultError> {
        let keys = self.directory_keys(directory)?;
        let now = self.now;
        let parent = self.change(directory)?;
        let body = parent.directory_mut()?;
        keys.discount(body, &entry.tag, record, entry.kind == Kind::Directory);
        (parent.attributes.modified, parent.attributes.changed) = (now, now);
        self.ops.push(Op::DeleteEntry {
            directory,
            tag: entry.tag,
        });
        Ok(())
    }

    // --- versions and orphans ----------------------------------------------------------------

    /// Stores a content, which lies in `parts`, as a new version.
    pub(super) fn put_version(
        &mut self,
        node: NodeId,
        version: u64,
        parts: &[&[u8]],
    ) -> Result<(), VaultError> {
        let (record, chunks) = content::seal(self.keyring, node, version, parts)?;
        self.ops.push(Op::PutVersion {
            node,
            version,
            record,
            chunks,
        });
        Ok(())
    }

    pub(super) fn delete_version(&mut self, node: NodeId, version: u64) {
        self.ops.push(Op::DeleteVersion {
            node,
            version,
            erased: false,
        });
    }

    /// Has a version stand under the active master key: its content key is wrapped anew, or its
    /// content sealed under another one.
    pub(super) fn migrate_version(&mut self, node: NodeId, version: u64) -> Result<(), VaultError> {
        if !self.keyring.renews_data_keys() {
            return self.rewrap_version(node, version);
        }
        let old = match self.records.version(node, version)? {
            Some(old) if old.generation != self.keyring.active() => old,
            _ => return Ok(()),
        };
        // Not whole yet: whoever stores it begins anew, with another key.
        if self.node(node).is_ok_and(|node| is_begun(&node, version)) {
            self.ops.push(Op::DeleteVersion {
                node,
                version,
                erased: true,
            });
            return Ok(());
        }
        let (new, chunks) = content::reencrypt(self.keyring, self.records, node, version, &old)?;
        self.ops.push(Op::ReplaceVersion {
            node,
            version,
            old,
            new,
            chunks,
        });
        Ok(())
    }

    fn rewrap_version(&mut self, node: NodeId, version: u64) -> Result<(), VaultError> {
        let Some(old) = self.records.version(node, version)? else {
            return Ok(());
        };
        if old.generation != self.keyring.active() {
            let mut nonces = Nonces::draw(1)?;
            let new = content::rewrap(self.keyring, &mut nonces, node, version, &old)?;
            self.ops.push(Op::RewrapVersion {
                node,
                version,
                old,
                new,
            });
        }
        Ok(())
    }

    pub(super) fn put_orphan(&mut self, node: NodeId) {
        self.ops.push(Op::PutOrphan(node));
    }

    pub(super) fn delete_orphan(&mut self, node: NodeId) {
        self.ops.push(Op::DeleteOrphan(node));
    }

    // --- keyring -----------------------------------------------------------------------------

    /// Stores a keyring that has changed, and what it has to say.
    pub(super) fn put_keyring(&mut self, events: &[EventRow]) -> Result<(), VaultError> {
        self.touched = true;
        for (sequence, event) in events {
            self.records.insert_event(*sequence, event)?;
        }
        self.records.put_keyring(&self.keyring.encode())?;
        Ok(())
    }

    /// Puts the system node and the root directory into an empty vault.
    pub(super) fn found(&mut self, system: Node, root: Attributes) -> Result<(), VaultError> {
        self.touched = true;
        self.state.next_node = super::node::ROOT;
        self.nodes.insert(super::node::SYSTEM, Slot::made(system));
        self.create_node(Kind::Directory, root)?;
        Ok(())
    }
}
