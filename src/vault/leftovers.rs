//! The remains of deleted files and replaced contents: nodes on the list for reaping, and nodes
//! that an attacker has taken off that list, which would otherwise stay for ever.

use std::sync::Arc;

use crate::store::{Durability, NodeId, Read, ReadRecords as _};

use super::VaultError;
use super::commit::transact::Transactions;
use super::integrity::Guard;
use super::node::{Node, NodeBody, ROOT};
use super::ops::NothingOpen;
use super::records::Records;
use super::tx::Tx;

/// Number of nodes in one transaction.
const BATCH: usize = 256;

/// The remains in a vault, as the module describes.
pub(super) struct Leftovers {
    pub(super) records: Arc<Records>,
    pub(super) transactions: Arc<Transactions>,
    pub(super) guard: Arc<Guard>,
}

impl Leftovers {
    /// At most `limit` nodes registered for reaping, after `after`.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn listed(
        &self,
        after: Option<NodeId>,
        limit: usize,
    ) -> Result<Vec<NodeId>, VaultError> {
        self.records
            .read(|records| Ok(records.orphans(after, limit)?))
    }

    /// Nodes that have no name, or stored versions that nothing refers to, and are not on the list
    /// for reaping: an attacker has removed them from it. Notes them as findings. The caller, who
    /// knows which nodes are open, reaps them.
    ///
    /// # Errors
    /// When the store fails, or a node does not authenticate.
    pub(super) fn find(&self) -> Result<Vec<NodeId>, VaultError> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let (last, more) = self.records.read(|records| {
                let nodes = records.scan_nodes(after, BATCH)?;
                let mut more = Vec::new();
                for (id, record) in &nodes {
                    let node = Node::open(&self.records.keyring(), *id, record)?;
                    if is_left_over(records, &node)? && !is_listed(records, *id)? {
                        more.push(*id);
                    }
                }
                Ok((nodes.last().map(|(id, _)| *id), more))
            })?;
            for id in &more {
                let what = format!(
                    "node {id} has left-overs but is not on the orphan list: it was taken off that list"
                );
                tracing::error!("{what}");
                self.guard.note_finding(what);
            }
            found.extend(more);
            if last.is_none() || self.guard.go_on().is_break() {
                return Ok(found);
            }
            after = last;
        }
    }

    /// Reaps all nodes on the list. Callers do this while no node is open: before a mount is
    /// served, and after it ends.
    ///
    /// # Errors
    /// When the store fails.
    pub(super) fn reap(&self) -> Result<(), VaultError> {
        let mut after: Option<NodeId> = None;
        loop {
            let batch = self.listed(after, 64)?;
            let Some(last) = batch.last() else { break };
            after = Some(*last);
            for node in &batch {
                let mut job = |tx: &mut Tx<'_>| tx.reap(*node, &[], &NothingOpen);
                for outcome in self
                    .transactions
                    .transact(Durability::Soon, &mut [&mut job])?
                {
                    // A damaged node must not prevent the mount of the others.
                    if let Err(error) = outcome {
                        tracing::error!("cannot reap node {node}: {error}");
                    }
                }
            }
        }
        self.records.sync()
    }
}

/// Whether a node is without a name, or has versions besides the current one.
fn is_left_over(records: &mut dyn Read, node: &Node) -> Result<bool, VaultError> {
    if node.id <= ROOT {
        return Ok(false);
    }
    if node.attributes.links == 0 {
        return Ok(true);
    }
    let NodeBody::File(file) = &node.attributes.body else {
        return Ok(false);
    };
    let versions = records.versions_of(node.id)?;
    Ok(versions.iter().any(|version| *version != file.version))
}

/// Whether a node is on the list for reaping.
pub(super) fn is_listed(
    records: &mut (impl Read + ?Sized),
    id: NodeId,
) -> Result<bool, VaultError> {
    let first = records.orphans(id.checked_sub(1), 1)?;
    Ok(first == [id])
}
