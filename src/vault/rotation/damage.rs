//! Records that do not open and are in the way of a rotation: named, and counted.

use std::collections::BTreeSet;

use crate::store::Read;

use super::super::VaultError;
use super::super::keys::Key;

/// More are counted, not named.
const MAX_NAMED: usize = 100;

/// What one run has found.
#[derive(Clone, Debug, Default)]
pub(super) struct Damage {
    /// What does not open is given up. Whoever insists on that while a run is under way does so for
    /// the next one: in this one, whole directories wait for an entry that does not open.
    pub(super) despite: bool,
    /// Keys that stay under the old master key.
    left: BTreeSet<Key>,
    /// Number of records and sums.
    pub(super) count: u64,
    /// Some of them, by number.
    pub(super) named: Vec<String>,
    first: Option<VaultError>,
    /// What may be otherwise another time.
    pub(super) passing: Option<VaultError>,
}

impl Damage {
    /// None yet.
    pub(super) fn of_a_run(despite: bool) -> Self {
        Self {
            despite,
            ..Self::default()
        }
    }

    /// A key that cannot be put under the new master key.
    pub(super) fn leave(&mut self, key: Key, error: VaultError) {
        if self.left.insert(key) {
            self.note(key, error);
        }
    }

    /// Anything else that is not as it was stored.
    pub(super) fn note(&mut self, what: impl std::fmt::Display, error: VaultError) {
        self.count += 1;
        if self.named.len() < MAX_NAMED {
            self.named.push(what.to_string());
        }
        self.first.get_or_insert(error);
    }

    /// The first of it.
    pub(super) fn first(&self) -> Option<VaultError> {
        self.first.clone()
    }

    /// How many keys are under another generation than `to`, besides those that are known to stay.
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
            nodes.iter().for_each(|node| known(Key::Node(*node)));
            after = nodes.last().copied();
            if after.is_none() {
                break;
            }
        }
        let mut after = None;
        loop {
            let versions = records.versions_not_under(to, after, BATCH)?;
            let keys = versions.iter().map(|(n, v)| Key::Version(*n, *v));
            keys.for_each(&mut known);
            after = versions.last().copied();
            if after.is_none() {
                return Ok(left);
            }
        }
    }
}
