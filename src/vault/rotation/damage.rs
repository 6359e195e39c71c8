//! Records that do not open and block a rotation.

use std::collections::BTreeSet;

use crate::store::{Read, ReadRecords as _};

use super::super::VaultError;
use super::super::keys::KeyedId;

/// Limit on named records; more are only counted.
const MAX_NAMED: usize = 100;

/// The damage that one run has found.
#[derive(Clone, Debug, Default)]
pub(super) struct Damage {
    /// Records that do not open are given up. A request for that during a run counts for the next
    /// run: in this one, whole directories wait for an entry that does not open.
    pub(super) despite: bool,
    /// Keys that stay under the old master key.
    left: BTreeSet<KeyedId>,
    /// Number of damaged records and sums.
    pub(super) count: u64,
    /// Some of them, by number.
    pub(super) named: Vec<String>,
    first: Option<VaultError>,
    /// A transient error.
    pub(super) passing: Option<VaultError>,
}

impl Damage {
    /// No damage yet.
    pub(super) fn of_a_run(despite: bool) -> Self {
        Self {
            despite,
            ..Self::default()
        }
    }

    /// Notes a key that cannot be moved to the new master key.
    pub(super) fn leave(&mut self, key: KeyedId, error: VaultError) {
        if self.left.insert(key) {
            self.note(key, error);
        }
    }

    /// Notes any other damage.
    pub(super) fn note(&mut self, what: impl std::fmt::Display, error: VaultError) {
        self.count += 1;
        if self.named.len() < MAX_NAMED {
            self.named.push(what.to_string());
        }
        self.first.get_or_insert(error);
    }

    /// The first damage.
    pub(super) fn first(&self) -> Option<VaultError> {
        self.first.clone()
    }

    /// Number of keys under other generations than `to`, without those that are known to stay.
    pub(super) fn others_left(&self, records: &mut dyn Read, to: u64) -> Result<u64, VaultError> {
        const BATCH: usize = 256;
        let (under, total) = records.keys_under(to)?;
        let mut left = total - under;
        if self.left.is_empty() {
            return Ok(left);
        }
        let mut known = |key| left -= u64::from(self.left.contains(&key));
        let mut after = None;
        loop {
            let nodes = records.nodes_not_under(to, after, BATCH)?;
            nodes.iter().for_each(|node| known(KeyedId::Node(*node)));
            after = nodes.last().copied();
            if after.is_none() {
                break;
            }
        }
        let mut after = None;
        loop {
            let versions = records.versions_not_under(to, after, BATCH)?;
            let keys = versions.iter().map(|(n, v)| KeyedId::Version(*n, *v));
            keys.for_each(&mut known);
            after = versions.last().copied();
            if after.is_none() {
                return Ok(left);
            }
        }
    }
}
