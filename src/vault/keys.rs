//! The records that carry data keys, of nodes and of versions, in one order.

use bincode::{Decode, Encode};

use crate::store::{NodeId, Read, ReadRecords as _, Record};

use super::VaultError;

/// Number of rows read at a time: enough that passing them on takes little time beside counting
/// them.
pub(super) const BATCH: usize = 1024;

/// The owner of a data key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(super) enum KeyedId {
    Node(NodeId),
    Version(NodeId, u64),
}

impl KeyedId {
    /// The node; `None` for a version.
    pub(super) fn node(self) -> Option<NodeId> {
        match self {
            KeyedId::Node(node) => Some(node),
            KeyedId::Version(..) => None,
        }
    }
}

impl std::fmt::Display for KeyedId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KeyedId::Node(node) => write!(f, "node {node}"),
            KeyedId::Version(node, version) => write!(f, "version {version} of node {node}"),
        }
    }
}

/// The next records that carry data keys after `after`, in order; empty at the end.
pub(super) fn keys_after(
    records: &mut (impl Read + ?Sized),
    after: Option<KeyedId>,
    limit: usize,
) -> Result<Vec<(KeyedId, Record)>, VaultError> {
    let (node, version) = match after {
        None => (Some(None), None),
        Some(KeyedId::Node(id)) => (Some(Some(id)), None),
        Some(KeyedId::Version(node, version)) => (None, Some((node, version))),
    };
    if let Some(after) = node {
        let nodes = records.scan_nodes(after, limit)?;
        if !nodes.is_empty() {
            let nodes = nodes.into_iter();
            return Ok(nodes
                .map(|(id, record)| (KeyedId::Node(id), record))
                .collect());
        }
    }
    let versions = records.scan_versions(version, limit)?.into_iter();
    let key = |(node, version)| KeyedId::Version(node, version);
    Ok(versions.map(|(id, record)| (key(id), record)).collect())
}

/// Passes all records that carry data keys to `take`, in order.
pub(super) fn for_each_key(
    records: &mut (impl Read + ?Sized),
    mut take: impl FnMut(KeyedId, &Record),
) -> Result<(), VaultError> {
    let mut after = None;
    loop {
        let batch = records.scan_nodes(after, BATCH)?;
        for (id, record) in &batch {
            take(KeyedId::Node(*id), record);
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
            take(KeyedId::Version(*node, *version), record);
        }
        after = batch.last().map(|(key, _)| *key);
        if batch.len() < BATCH {
            return Ok(());
        }
    }
}
