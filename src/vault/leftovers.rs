//! Looking again at a vault that is open: what a mount that only reads has to count anew since another
//! process writes it, and what a mount for writing finds left over that nobody would ever remove.

use std::sync::Arc;

use crate::store::{Durability, NodeId, Read, Store as _};

use super::node::{Body, Node, ROOT};
use super::ops::NothingOpen;
use super::tx::Tx;
use super::{Vault, VaultError};

/// Nodes looked at in one transaction.
const BATCH: usize = 256;

/// How the files of a vault were when they were counted. They cannot be changed and be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Footprint(crate::store::Footprint);

/// What has become of a node.
#[derive(Debug)]
pub enum Since {
    /// It has the revision that it had.
    Same,
    /// It has another. The node comes without its extended attributes: many are asked about at once, and
    /// those of a few hundred would be megabytes.
    Changed(Arc<Node>),
    /// There is none.
    Gone,
}

impl Vault {
    /// A number that changes whenever another process has committed. Cheap.
    ///
    /// # Errors
    /// The store's.
    pub fn changes_of_others(&self) -> Result<u64, VaultError> {
        Ok(self.store.foreign_changes()?)
    }

    /// What has become of nodes since they had these revisions: in one transaction, and without
    /// opening those that have them still.
    ///
    /// # Errors
    /// When the store fails, or a node does not authenticate.
    pub fn since(&self, nodes: &[(NodeId, Option<u64>)]) -> Result<Vec<Since>, VaultError> {
        self.read(|records| {
            let nodes = nodes.iter();
            nodes
                .map(|(id, revision)| match records.node(*id)? {
                    None => Ok(Since::Gone),
                    Some(record) if Some(Node::revision_of(&record)) == *revision => {
                        Ok(Since::Same)
                    }
                    Some(record) => {
                        let node = Node::open(&self.keyring(), *id, &record)?;
                        Ok(Since::Changed(Arc::new(node.without_xattrs())))
                    }
                })
                .collect()
        })
    }

    /// How the files are now.
    ///
    /// # Errors
    /// When they cannot be looked at.
    pub fn footprint(&self) -> Result<Footprint, VaultError> {
        Ok(Footprint(self.store.footprint()?))
    }

    /// Counts a vault that another process may have written since, and serves nothing more of it if it
    /// is not what its sums say.
    ///
    /// # Errors
    /// When it is not, or could not be counted.
    pub fn count_afresh(&self) -> Result<(), VaultError> {
        // Its pages may have been changed under those that were read before.
        self.store.forget_pages();
        match self.count(&|| self.guard.go_on()) {
            Ok(counted) => {
                if let Some(state) = counted.continue_value() {
                    self.guard.note_verified(state.commit);
                }
                Ok(())
            }
            Err(error) => {
                if error.is_damage() {
                    self.condemn(&error);
                }
                Err(error)
            }
        }
    }

    /// Nodes of which something is kept that nothing names, and that are not on the list of what is to
    /// be reaped: somebody has taken them off it. They are noted as findings; to reap them is left to
    /// the caller, who knows what is open.
    ///
    /// # Errors
    /// When the store fails, or a node does not authenticate.
    pub fn left_over(&self) -> Result<Vec<NodeId>, VaultError> {
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let (last, more) = self.read(|records| {
                let nodes = records.scan_nodes(after, BATCH)?;
                let mut more = Vec::new();
                for (id, record) in &nodes {
                    let node = Node::open(&self.keyring(), *id, record)?;
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
}

impl Vault {
    /// Removes what is on the list of what is to be reaped, when nothing is open: before a mount is
    /// served, and when it has ended.
    ///
    /// # Errors
    /// When the store fails.
    pub fn reap_orphans(&self) -> Result<(), VaultError> {
        let mut after: Option<NodeId> = None;
        loop {
            let batch = self.orphans(after, 64)?;
            let Some(last) = batch.last() else { break };
            after = Some(*last);
            for node in &batch {
                let mut job = |tx: &mut Tx<'_>| tx.reap(*node, &[], &NothingOpen);
                for outcome in self.transact(Durability::Soon, &mut [&mut job])? {
                    // A damaged node must not keep the others from being mounted.
                    if let Err(error) = outcome {
                        tracing::error!("cannot reap node {node}: {error}");
                    }
                }
            }
        }
        self.sync()
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
