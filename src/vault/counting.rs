//! Counting everything and comparing with the sealed sums: shows whether part of the vault was
//! replayed, inserted or deleted.

use bincode::{Decode, Encode};

use crate::store::{KeyedRecord, NodeId, Read};

use super::entry::DirectoryKeys;
use super::node::Node;
use super::{Vault, VaultError};

/// What a data key belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub(super) enum Key {
    Node(NodeId),
    Version(NodeId, u64),
}

impl Key {
    /// The node whose it is; `None` for that of a version.
    pub(super) fn node(self) -> Option<NodeId> {
        match self {
            Key::Node(node) => Some(node),
            Key::Version(..) => None,
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Key::Node(node) => write!(f, "node {node}"),
            Key::Version(node, version) => write!(f, "version {version} of node {node}"),
        }
    }
}

/// The records that carry data keys, in order, those after `after`; none at the end.
pub(super) fn keys_after(
    records: &mut (impl Read + ?Sized),
    after: Option<Key>,
    limit: usize,
) -> Result<Vec<(Key, KeyedRecord)>, VaultError> {
    let (node, version) = match after {
        None => (Some(None), None),
        Some(Key::Node(id)) => (Some(Some(id)), None),
        Some(Key::Version(node, version)) => (None, Some((node, version))),
    };
    if let Some(after) = node {
        let nodes = records.scan_nodes(after, limit)?;
        if !nodes.is_empty() {
            let nodes = nodes.into_iter();
            return Ok(nodes.map(|(id, record)| (Key::Node(id), record)).collect());
        }
    }
    let versions = records.scan_versions(version, limit)?.into_iter();
    let key = |(node, version)| Key::Version(node, version);
    Ok(versions.map(|(id, record)| (key(id), record)).collect())
}

/// Hands all records that carry data keys to `take`, in order.
pub(super) fn for_each_key(
    records: &mut (impl Read + ?Sized),
    mut take: impl FnMut(Key, &KeyedRecord),
) -> Result<(), VaultError> {
    const BATCH: usize = 256;
    let mut after = None;
    loop {
        let batch = records.scan_nodes(after, BATCH)?;
        for (id, record) in &batch {
            take(Key::Node(*id), record);
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
            take(Key::Version(*node, *version), record);
        }
        after = batch.last().map(|(key, _)| *key);
        if batch.len() < BATCH {
            return Ok(());
        }
    }
}

impl Vault {
    /// Counts all records and compares with the sealed state: shows whether part of the vault was
    /// replayed, inserted or deleted.
    ///
    /// # Errors
    /// `Integrity` when it was.
    pub fn recount(&self) -> Result<(), VaultError> {
        self.read(|records| {
            let state = self.stored_state(records)?;
            let system = self.system_in(records)?;
            let mut recount = state.uncounted();
            let elements = system.elements();
            let mut directories = Vec::new();
            for_each_key(records, |key, record| {
                recount.count(&elements.of(key, record), true);
                if let Key::Node(id) = key
                    && Node::says_directory(record)
                {
                    directories.push(id);
                }
            })?;
            state.must_agree_with(&recount)?;
            directories
                .into_iter()
                .try_for_each(|id| self.recount_names(records, id))
        })
    }

    /// Compares a directory's names with what the directory says of them.
    pub(super) fn recount_names(
        &self,
        records: &mut dyn Read,
        id: NodeId,
    ) -> Result<(), VaultError> {
        const BATCH: usize = 256;
        let node = self.read_node(records, id)?;
        let keys = DirectoryKeys::of(self.keyring().vault(), &node)?;
        let said = node.directory()?;
        let mut found = said.uncounted();
        let mut after = None;
        loop {
            let batch = records.entries(id, after.as_ref(), BATCH)?;
            for row in &batch {
                keys.count(&mut found, &row.tag, &row.value, false);
            }
            after = batch.last().map(|row| row.tag);
            if batch.len() < BATCH {
                break;
            }
        }
        if said.agrees_with(&found) {
            return Ok(());
        }
        Err(VaultError::Integrity(format!(
            "names of directory {id} were replayed, inserted or deleted: it should have {} and has \
             {}, and their sums differ; `secretfs check` names what does not fit, `secretfs check --repair` \
             moves it aside",
            said.entries, found.entries,
        )))
    }
}
