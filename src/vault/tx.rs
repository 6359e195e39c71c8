//! Write transactions: several jobs, one commit, one new state record.
//!
//! A job reads and changes nodes in memory, and notes what to store. If it fails, its changes are
//! dropped, and the other jobs of the transaction go on. Nodes are sealed once, when the
//! transaction ends, however often they were changed.

pub(super) mod directory;
mod exchange;
mod ledger;
mod op;
pub(super) mod repair_tx;
mod stage;

use std::collections::HashMap;
use std::sync::Arc;

use crate::crypto::Nonces;
use crate::keyring::{EventRow, Keyring};
use crate::store::{
    NameTag, NodeId, ReadRecords as _, Record, StoreErrorKind, Write, WriteRecords as _,
};

use super::VaultError;
use super::cache::{Changes, RecordCache};
use super::content;
use super::entry::{DirectoryKeys, Entry};
use super::node::{Attributes, Kind, Node, Timestamp};
use super::state::{State, SystemKeys};
pub(super) use exchange::Exchange;
pub use stage::{PIECE, pieces_of, publish_staged, stage_piece};

use ledger::Ledger;
use op::{Op, Slot, is_begun};

/// A job of a write transaction, which may run more than once.
pub type Job<'j> = &'j mut dyn FnMut(&mut Tx<'_>) -> Result<(), VaultError>;

/// A write transaction under way.
pub struct Tx<'a> {
    pub(super) keyring: &'a Keyring,
    pub(super) now: Timestamp,
    cache: &'a RecordCache,
    ledger: Ledger<'a>,
    nodes: HashMap<NodeId, Slot>,
    /// The values before the current job, which are restored if it fails.
    undo: HashMap<NodeId, Option<Slot>>,
    ops: Vec<Op>,
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
            cache,
            ledger: Ledger::new(system, records, state),
            nodes: HashMap::new(),
            undo: HashMap::new(),
            ops: Vec::new(),
            touched: false,
        }
    }

    /// Runs one job, whose changes stay only if it succeeds. The outer error ends the transaction.
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
                    self.ledger.execute(op)?;
                }
            }
            // A failure of the store ends the transaction; damage in a record does not.
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

    /// Seals the changed nodes and the state; returns the new state and the changes.
    pub(super) fn finish(self) -> Result<(State, Changes), VaultError> {
        let Self {
            keyring,
            mut ledger,
            nodes,
            ..
        } = self;
        let mut changed = ledger.changes();
        for (id, slot) in nodes {
            if !slot.changed {
                continue;
            }
            if slot.stored {
                ledger.discount_node(id)?;
            }
            match slot.node {
                Some(mut node) => {
                    let sealed = Arc::make_mut(&mut node);
                    sealed.rewrap(keyring)?;
                    let record = sealed.seal(keyring.vault())?;
                    ledger.put_node(id, &record)?;
                    changed.nodes.push((id, Some(node)));
                }
                None => {
                    ledger.delete_node(id)?;
                    changed.nodes.push((id, None));
                }
            }
        }
        Ok((ledger.seal(keyring)?, changed))
    }

    // --- what is stored ----------------------------------------------------------------------

    /// The records as this transaction has changed them by now.
    pub(super) fn records(&mut self) -> &mut (dyn Write + 'a) {
        self.ledger.records()
    }

    /// Notes a change to store if the job succeeds.
    fn push(&mut self, op: Op) {
        self.ops.push(op);
    }

    /// Number of write transactions before this one.
    fn commits(&self) -> u64 {
        self.ledger.commits()
    }

    /// Replaces the original record. If that has changed meanwhile, the writer has put it under the
    /// active key, and nothing is left to do.
    pub(super) fn exchange(&mut self, exchange: &Exchange) -> Result<(), VaultError> {
        self.touched |= self.ledger.exchange(exchange)?;
        Ok(())
    }

    /// Counts all that is there, and goes on from that: for a repair. Whether it was what the state said.
    pub(super) fn recount(&mut self) -> Result<bool, VaultError> {
        self.ledger.recount()
    }

    /// Makes sure that no new node gets a number up to `id`.
    pub(super) fn has_seen(&mut self, id: NodeId) {
        self.ledger.has_seen(id);
    }

    // --- nodes -------------------------------------------------------------------------------

    /// A node in the transaction.
    pub(super) fn node(&mut self, id: NodeId) -> Result<Arc<Node>, VaultError> {
        if let Some(slot) = self.nodes.get(&id) {
            return slot.node.clone().ok_or(VaultError::NotFound);
        }
        let node = match self.cache.get(id) {
            Some(node) => node,
            None => {
                let record = self.records().node(id)?.ok_or(VaultError::NotFound)?;
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

    /// A node to change.
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

    /// Creates a node.
    pub(super) fn create_node(
        &mut self,
        kind: Kind,
        attributes: Attributes,
    ) -> Result<NodeId, VaultError> {
        let id = self.ledger.next_node()?;
        let node = Node::create(self.keyring, id, kind, attributes)?;
        self.insert_node(node);
        Ok(id)
    }

    /// A node that was made under a number that is its own.
    fn insert_node(&mut self, node: Node) {
        self.remember(node.id);
        self.nodes.insert(node.id, Slot::made(node));
    }

    /// Deletes a node and all its versions, so that nothing is left to reap.
    pub(super) fn delete_node(&mut self, id: NodeId) -> Result<(), VaultError> {
        self.node(id)?;
        self.remember(id);
        self.delete_orphan(id);
        for version in self.records().versions_of(id)? {
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
        keys.find(self.records(), name)
    }

    /// Files a name, which must be free, or removed by this job.
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
        self.push(Op::PutEntry {
            directory,
            tag,
            record,
        });
        Ok(tag)
    }

    /// Removes a name that [`find`](Self::find) found.
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
        self.push(Op::DeleteEntry {
            directory,
            tag: entry.tag,
        });
        Ok(())
    }

    // --- versions and orphans ----------------------------------------------------------------

    /// Stores the content in `parts` as a new version.
    pub(super) fn put_version(
        &mut self,
        node: NodeId,
        version: u64,
        parts: &[&[u8]],
    ) -> Result<(), VaultError> {
        let (record, chunks) = content::seal(self.keyring, node, version, parts)?;
        self.push(Op::PutVersion {
            node,
            version,
            record,
            chunks,
        });
        Ok(())
    }

    pub(super) fn delete_version(&mut self, node: NodeId, version: u64) {
        self.push(Op::DeleteVersion {
            node,
            version,
            erased: false,
        });
    }

    /// Moves a version to the active master key: wraps its content key again, or seals its content
    /// under a new one.
    pub(super) fn migrate_version(&mut self, node: NodeId, version: u64) -> Result<(), VaultError> {
        if !self.keyring.renews_data_keys() {
            return self.rewrap_version(node, version);
        }
        let old = match self.records().version(node, version)? {
            Some(old) if old.generation != self.keyring.active() => old,
            _ => return Ok(()),
        };
        // The version is incomplete: its writer starts again, with another key.
        if self.node(node).is_ok_and(|node| is_begun(&node, version)) {
            self.push(Op::DeleteVersion {
                node,
                version,
                erased: true,
            });
            return Ok(());
        }
        let sealed = content::reencrypt(self.keyring, self.ledger.records(), node, version, &old)?;
        self.replace_version(node, version, old, sealed);
        Ok(())
    }

    /// Replaces a version by the same number, sealed again as a record and its chunks.
    fn replace_version(
        &mut self,
        node: NodeId,
        version: u64,
        old: Record,
        (new, chunks): (Record, Vec<Vec<u8>>),
    ) {
        self.push(Op::ReplaceVersion {
            node,
            version,
            old,
            new,
            chunks,
        });
    }

    fn rewrap_version(&mut self, node: NodeId, version: u64) -> Result<(), VaultError> {
        let Some(old) = self.records().version(node, version)? else {
            return Ok(());
        };
        if old.generation != self.keyring.active() {
            let mut nonces = Nonces::draw(1)?;
            let new = content::rewrap(self.keyring, &mut nonces, node, version, &old)?;
            self.push(Op::RewrapVersion {
                node,
                version,
                old,
                new,
            });
        }
        Ok(())
    }

    pub(super) fn put_orphan(&mut self, node: NodeId) {
        self.push(Op::PutOrphan(node));
    }

    pub(super) fn delete_orphan(&mut self, node: NodeId) {
        self.push(Op::DeleteOrphan(node));
    }

    // --- keyring -----------------------------------------------------------------------------

    /// Stores a changed keyring and its events.
    pub(super) fn put_keyring(&mut self, events: &[EventRow]) -> Result<(), VaultError> {
        self.touched = true;
        for (sequence, event) in events {
            self.records().insert_event(*sequence, event)?;
        }
        let encoded = self.keyring.encode();
        self.records().put_keyring(&encoded)?;
        Ok(())
    }

    /// Puts the system node and the root directory into an empty vault.
    pub(super) fn write_genesis(
        &mut self,
        system: Node,
        root: Attributes,
    ) -> Result<(), VaultError> {
        self.touched = true;
        self.ledger.begin_at(super::node::ROOT);
        self.nodes.insert(super::node::SYSTEM, Slot::made(system));
        self.create_node(Kind::Directory, root)?;
        Ok(())
    }
}
