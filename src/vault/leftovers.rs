//! What is left over of files and replaced contents: what is on the list of what is to be reaped, and
//! what somebody has taken off that list, so that nobody would ever remove it.

use std::sync::Arc;

use crate::store::{Durability, NodeId, Read};

use super::VaultError;
use super::commit::transact::Transactions;
use super::integrity::Guard;
use super::node::{Body, Node, ROOT};
use super::ops::NothingOpen;
use super::records::Records;
use super::tx::Tx;

/// Nodes looked at in one transaction.
const BATCH: usize = 256;

/// See the module.
pub(super) struct Leftovers {
    records: Arc<Records>,
    transactions: Arc<Transactions>,
    guard: Arc<Guard>,
}

impl Leftovers {
    pub(super) fn new(
        records: &Arc<Records>,
        transactions: &Arc<Transactions>,
        guard: &Arc<Guard>,
    ) -> Self {
        Self {
            records: Arc::clone(records),
            transactions: Arc::clone(transactions),
            guard: Arc::clone(guard),
        }
    }

    /// Nodes registered for reaping: at most `limit` of those after `after`.
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

    /// Nodes of which something is kept that nothing names, and that are not on the list of what is to
    /// be reaped: somebody has taken them off it. They are noted as findings; to reap them is left to
    /// the caller, who knows what is open.
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
                    "node {id} has left-overs that are not on the list of what is to be reaped: it was \
                     taken off that list"
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

    /// Removes what is on the list of what is to be reaped, when nothing is open: before a mount is
    /// served, and when it has ended.
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
                    // A damaged node must not keep the others from being mounted.
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
    let Body::File(file) = &node.attributes.body else {
        return Ok(false);
    };
    let versions = records.versions_of(node.id)?;
    Ok(versions.iter().any(|version| *version != file.version))
}

/// Whether a node is on the list of what is to be reaped.
pub(super) fn is_listed(
    records: &mut (impl Read + ?Sized),
    id: NodeId,
) -> Result<bool, VaultError> {
    let first = records.orphans(id.checked_sub(1), 1)?;
    Ok(first == [id])
}
