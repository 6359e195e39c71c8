//! Finds the keys that are not under a generation, a few at a time.

use std::time::Duration;

use crate::store::{Read, ReadRecords as _, Record};

use super::super::VaultError;
use super::super::keys::KeyedId;

/// Limit on keys in one read, and in one transaction if it does not take too long.
pub(super) const BATCH: usize = 256;

/// Limit on the time that a transaction keeps others from writing.
const SLICE: Duration = Duration::from_millis(20);

pub(super) fn slice() -> Duration {
    fail::fail_point!("slice", |_| Duration::from_secs(3600));
    SLICE
}

/// A search through the nodes, and then the versions.
pub(super) struct Search {
    /// Skip records under this generation.
    but: u64,
    after: Option<KeyedId>,
    /// All nodes are done.
    past_nodes: bool,
    /// All records are done.
    ended: bool,
}

impl Search {
    /// A search for all records under other generations.
    pub(super) fn for_all_but(generation: u64) -> Self {
        Self {
            but: generation,
            after: None,
            past_nodes: false,
            ended: false,
        }
    }

    /// Continues after `key`.
    pub(super) fn after(&mut self, key: KeyedId) {
        self.past_nodes |= key.node().is_none();
        self.after = Some(key);
    }

    /// The next keys with their records; empty at the end.
    pub(super) fn with_records(
        &mut self,
        records: &mut dyn Read,
    ) -> Result<Vec<(KeyedId, Option<Record>)>, VaultError> {
        if self.ended {
            return Ok(Vec::new());
        }
        if !self.past_nodes {
            let nodes = records.node_records_not_under(self.but, self.node(), BATCH)?;
            self.past_nodes = nodes.is_empty();
            if !self.past_nodes {
                let keyed = |(id, record)| (KeyedId::Node(id), Some(record));
                return Ok(nodes.into_iter().map(keyed).collect());
            }
        }
        let versions = records.version_records_not_under(self.but, self.version(), BATCH)?;
        self.ended = versions.is_empty();
        let keyed = |((node, version), record)| (KeyedId::Version(node, version), Some(record));
        Ok(versions.into_iter().map(keyed).collect())
    }

    /// The next keys without their records.
    pub(super) fn without_records(
        &mut self,
        records: &mut dyn Read,
    ) -> Result<Vec<KeyedId>, VaultError> {
        if !self.past_nodes {
            let nodes = records.nodes_not_under(self.but, self.node(), BATCH)?;
            self.past_nodes = nodes.is_empty();
            if !self.past_nodes {
                return Ok(nodes.into_iter().map(KeyedId::Node).collect());
            }
        }
        let versions = records.versions_not_under(self.but, self.version(), BATCH)?;
        self.ended = versions.is_empty();
        let key = |(node, version)| KeyedId::Version(node, version);
        Ok(versions.into_iter().map(key).collect())
    }

    fn node(&self) -> Option<u64> {
        match self.after {
            Some(KeyedId::Node(node)) => Some(node),
            _ => None,
        }
    }

    fn version(&self) -> Option<(u64, u64)> {
        match self.after {
            Some(KeyedId::Version(node, version)) => Some((node, version)),
            _ => None,
        }
    }
}
