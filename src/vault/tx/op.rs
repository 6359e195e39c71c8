//! The nodes of a transaction, and the operations left to store.

use std::sync::Arc;

use crate::store::{NameTag, NodeId, Record};

use super::super::node::Node;

/// A node in the transaction; `None` once it is deleted.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) node: Option<Arc<Node>>,
    pub(super) changed: bool,
    /// Whether the store has a record of it, which the sum counts.
    pub(super) stored: bool,
}

impl Slot {
    /// A new node.
    pub(super) fn made(node: Node) -> Self {
        Self {
            node: Some(Arc::new(node)),
            changed: true,
            stored: false,
        }
    }
}

/// An operation that a successful job leaves to store.
pub(super) enum Op {
    PutEntry {
        directory: NodeId,
        tag: NameTag,
        record: Vec<u8>,
    },
    DeleteEntry {
        directory: NodeId,
        tag: NameTag,
    },
    PutVersion {
        node: NodeId,
        version: u64,
        record: Record,
        chunks: Vec<Vec<u8>>,
    },
    /// A version whose chunks follow later.
    BeginVersion {
        node: NodeId,
        version: u64,
        record: Record,
        chunks: u32,
    },
    PutChunks {
        node: NodeId,
        version: u64,
        index: u32,
        chunks: Vec<Vec<u8>>,
    },
    RewrapVersion {
        node: NodeId,
        version: u64,
        old: Record,
        new: Record,
    },
    ReplaceVersion {
        node: NodeId,
        version: u64,
        old: Record,
        new: Record,
        chunks: Vec<Vec<u8>>,
    },
    DeleteVersion {
        node: NodeId,
        version: u64,
        /// Its content must be overwritten.
        erased: bool,
    },
    PutOrphan(NodeId),
    DeleteOrphan(NodeId),
    /// Removes a node that does not open.
    DiscardNode(NodeId),
}

/// Whether a stored version is one that the node does not name yet.
pub(super) fn is_begun(node: &Node, version: u64) -> bool {
    node.file().is_ok_and(|file| version > file.version)
}
