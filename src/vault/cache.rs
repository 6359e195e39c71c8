//! Opened nodes, kept so that a request decrypts nothing that the last one has decrypted.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::store::NodeId;

use super::node::Node;

/// Most nodes kept: about 10 MB, and never more than four times that.
const CAPACITY: usize = 16 * 1024;
/// Nodes with more bytes of extended attributes are not kept: they bound nothing by number.
const MAX_XATTRS: usize = 2 * 1024;

fn is_small(node: &Node) -> bool {
    let xattrs = node.attributes.xattrs.iter();
    xattrs
        .map(|(name, value)| name.len() + value.len())
        .sum::<usize>()
        <= MAX_XATTRS
}

/// A bounded map of nodes as of the last commit.
#[derive(Default)]
pub(super) struct NodeCache {
    nodes: RwLock<HashMap<NodeId, Arc<Node>>>,
    /// Raised whenever something was committed: what was read before then may be stale.
    epoch: AtomicU64,
}

impl NodeCache {
    pub(super) fn get(&self, id: NodeId) -> Option<Arc<Node>> {
        self.nodes
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    /// To be taken before reading from the store what will be offered to [`offer`](Self::offer).
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Takes a node that was read, unless something was committed since `epoch`.
    pub(super) fn offer(&self, epoch: u64, node: &Arc<Node>) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        if self.epoch() == epoch && is_small(node) {
            make_room(&mut nodes);
            nodes.insert(node.id, Arc::clone(node));
        }
    }

    /// Takes what a transaction has changed; `None` for nodes that are gone.
    pub(super) fn commit(&self, changed: impl Iterator<Item = (NodeId, Option<Arc<Node>>)>) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        for (id, node) in changed {
            match node {
                Some(node) if is_small(&node) => {
                    make_room(&mut nodes);
                    nodes.insert(id, node);
                }
                Some(_) | None => {
                    nodes.remove(&id);
                }
            }
        }
    }

    /// Forgets everything: somebody else has written.
    pub(super) fn clear(&self) {
        let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        nodes.clear();
    }
}

/// Drops an eighth of the nodes, whichever the hash puts first, when the map is full.
fn make_room(nodes: &mut HashMap<NodeId, Arc<Node>>) {
    if nodes.len() >= CAPACITY {
        let victims: Vec<_> = nodes.keys().take(CAPACITY / 8).copied().collect();
        for id in victims {
            nodes.remove(&id);
        }
    }
}
