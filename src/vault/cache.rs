//! What was read is kept, so that it need not be had from the store again: nodes opened, contents
//! as they are stored.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::store::{KeyedRecord, NodeId};

use super::node::Node;

/// Most nodes kept: about 10 MB, and never more than four times that.
const CAPACITY: usize = 16 * 1024;
/// Nodes with more bytes of extended attributes are not kept: they bound nothing by number.
const MAX_XATTRS: usize = 2 * 1024;

/// Most bytes of sealed contents kept.
const SEALED_CAPACITY: usize = 6 << 20;
/// Longer first chunks are not kept: what it costs to read them is not the look-up.
const MAX_SEALED: usize = 8 << 10;

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
        drop_an_eighth(nodes);
    }
}

fn drop_an_eighth<K: Copy + Eq + std::hash::Hash, V>(kept: &mut HashMap<K, V>) {
    let victims: Vec<_> = kept.keys().take(kept.len() / 8 + 1).copied().collect();
    for key in victims {
        kept.remove(&key);
    }
}

/// A small version as it is stored: its record and its first chunk.
pub(super) struct SealedVersion {
    pub(super) record: KeyedRecord,
    pub(super) first: Option<Vec<u8>>,
}

impl SealedVersion {
    fn len(&self) -> usize {
        // What the map itself takes is about as much as a small record.
        256 + self.record.value.len() + self.first.as_ref().map_or(0, Vec::len)
    }
}

#[derive(Default)]
struct SealedVersions {
    kept: HashMap<(NodeId, u64), Arc<SealedVersion>>,
    bytes: usize,
}

/// Versions as they are stored: ciphertext, which is opened anew for every reader. A version is
/// never changed but for the key that wraps its own, and the generation of that is asked for.
#[derive(Default)]
pub(super) struct SealedCache(RwLock<SealedVersions>);

impl SealedCache {
    /// A version whose key `generation` wraps.
    pub(super) fn get(
        &self,
        version: (NodeId, u64),
        generation: u64,
    ) -> Option<Arc<SealedVersion>> {
        let versions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let sealed = versions.kept.get(&version)?;
        (sealed.record.generation == generation).then(|| Arc::clone(sealed))
    }

    /// Whether a version is there, under whichever key.
    pub(super) fn holds(&self, version: (NodeId, u64)) -> bool {
        let versions = self.0.read().unwrap_or_else(PoisonError::into_inner);
        versions.kept.contains_key(&version)
    }

    pub(super) fn offer(&self, version: (NodeId, u64), sealed: SealedVersion) {
        if sealed.first.as_ref().map_or(0, Vec::len) > MAX_SEALED {
            return;
        }
        let mut versions = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if versions.bytes >= SEALED_CAPACITY {
            drop_an_eighth(&mut versions.kept);
            versions.bytes = versions.kept.values().map(|sealed| sealed.len()).sum();
        }
        versions.bytes += sealed.len();
        if let Some(older) = versions.kept.insert(version, Arc::new(sealed)) {
            versions.bytes = versions.bytes.saturating_sub(older.len());
        }
    }
}
