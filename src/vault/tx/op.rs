//! What a transaction has of nodes, and what is left to be stored of it.

use std::sync::Arc;

use crate::store::{KeyedRecord, NameTag, NodeId};

use super::super::node::Node;

/// A node as the transaction has it; `None` once it is deleted.
#[derive(Clone)]
pub(super) struct Slot {
    pub(super) node: Option<Arc<Node>>,
    pub(super) changed: bool,
    /// Whether the store has a record of it that the sum counts.
    pub(super) stored: bool,
}

impl Slot {
    /// A node that is new.
    pub(super) fn made(node: Node) -> Self {
        Self {
            node: Some(Arc::new(node)),
            changed: true,
            stored: false,
        }
    }
}

/// What a successful job leaves to be stored.
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
        record: KeyedRecord,
        chunks: Vec<Vec<u8>>,
    },
    /// A version whose chunks come afterwards.
    BeginVersion {
        node: NodeId,
        version: u64,
        record: KeyedRecord,
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
        old: KeyedRecord,
        new: KeyedRecord,
    },
    ReplaceVersion {
        node: NodeId,
        version: u64,
        old: KeyedRecord,
        new: KeyedRecord,
        chunks: Vec<Vec<u8>>,
    },
    DeleteVersion {
        node: NodeId,
        version: u64,
        /// Nothing of its content is to stay as it stood.
        erased: bool,
    },
    PutOrphan(NodeId),
    DeleteOrphan(NodeId),
    /// A node that does not open.
    DiscardNode(NodeId),
}

/// Whether a version that is there is one that the node does not name yet.
pub(super) fn is_begun(node: &Node, version: u64) -> bool {
    node.file().is_ok_and(|file| version > file.version)
}
