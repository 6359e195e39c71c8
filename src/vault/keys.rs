//! The records that carry data keys, of nodes and of versions, in one order.

use bincode::{Decode, Encode};

use crate::store::{KeyedRecord, NodeId, Read};

use super::VaultError;

/// Number of rows read at a time: enough that passing them on takes little time beside counting
/// them.
pub(super) const BATCH: usize = 1024;

/// The owner of a data key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(super) enum RecordId {
    Node(NodeId),
    Version(NodeId, u64),
}

impl RecordId {
    /// The node; `None` for a version.
    pub(super) fn node(self) -> Option<NodeId> {
        match self {
            RecordId::Node(node) => Some(node),
            RecordId::Version(..) => None,
        }
    }
}

impl std::fmt::Display for RecordId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RecordId::Node(node) => write!(f, "node {node}"),
            RecordId::Version(node, version) => write!(f, "version {version} of node {node}"),
        }
    }
}

/// The next records that carry data keys after `after`, in order; empty at the end.
pub(super) fn keys_after(
    records: &mut (impl Read + ?Sized),
    after: Option<RecordId>,
    limit: usize,
) -> Result<Vec<(RecordId, KeyedRecord)>, VaultError> {
    let (node, version) = match after {
        None => (Some(None), None),
        Some(RecordId::Node(id)) => (Some(Some(id)), None),
        Some(RecordId::Version(node, version)) => (None, Some((node, version))),
    };
    if let Some(after) = node {
        let nodes = records.scan_nodes(after, limit)?;
        if !nodes.is_empty() {
            let nodes = nodes.into_iter();
            return Ok(nodes
                .map(|(id, record)| (RecordId::Node(id), record))
                .collect());
        }
    }
    let versions = records.scan_versions(version, limit)?.into_iter();
    let key = |(node, version)| RecordId::Version(node, version);
    Ok(versions.map(|(id, record)| (key(id), record)).collect())
}

/// Passes all records that carry data keys to `take`, in order.
pub(super) fn for_each_key(
    records: &mut (impl Read + ?Sized),
    mut take: impl FnMut(RecordId, &KeyedRecord),
) -> Result<(), VaultError> {
    let mut after = None;
    loop {
        let batch = records.scan_nodes(after, BATCH)?;
        for (id, record) in &batch {
            take(RecordId::Node(*id), record);
        }
        after = batch.last().map(|(id, _)| *id);
        if batch.len() < BATCH {
            break;
        }
    }
    let mut after = None;
    loop {
        let batch = records.scan_versions(after, BATCH)?;
        for ((node, version), record) in &batch {
            take(RecordId::Version(*node, *version), record);
        }
        after = batch.last().map(|(key, _)| *key);
        if batch.len() < BATCH {
            return Ok(());
        }
    }
}
