//! Re-wrapping every data key, and showing that none is left.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::keyring::Change;
use crate::store::{Durability, NodeId};

use super::super::node::{Node, SYSTEM};
use super::super::{Job, Key, Tx, Vault, VaultError, content};

/// Keys looked for in one read.
const BATCH: usize = 256;
/// How long a transaction may keep others from writing.
const SLICE: Duration = Duration::from_millis(20);

impl Key {
    fn migrate(self, tx: &mut Tx<'_>) -> Result<(), VaultError> {
        match self {
            Key::Node(node) => tx.migrate_node(node),
            Key::Version(node, version) => tx.migrate_version(node, version),
        }
    }
}

impl Vault {
    /// Re-wraps what the old key wraps. Finds it by asking for it, from the beginning: what was
    /// done before, by whomever, is not found.
    pub(super) fn migrate(
        &self,
        change: &Change,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let (under, total) = self.read(|records| Ok(records.keys_under(change.to)?))?;
        {
            let mut figures = self.rotation.figures();
            (figures.done, figures.total) = (under, total);
            figures.since = Some((Instant::now(), under));
        }
        let mut failed = None;
        let mut after = None;
        loop {
            let nodes = self.read(|r| Ok(r.nodes_not_under(change.to, after, BATCH)?))?;
            // Sums over everything stand under the system node's key: it is replaced last.
            let waits = |node: &&NodeId| **node == SYSTEM && self.keyring().renews_data_keys();
            let now = nodes.iter().filter(|node| !waits(node));
            let keys: Vec<_> = now.map(|node| Key::Node(*node)).collect();
            if self.rewrap_all(&keys, &mut failed, go_on)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            after = nodes.last().copied();
            if after.is_none() {
                break;
            }
        }
        let mut after = None;
        loop {
            let versions = self.read(|r| Ok(r.versions_not_under(change.to, after, BATCH)?))?;
            let keys: Vec<_> = versions
                .iter()
                .map(|(node, version)| Key::Version(*node, *version))
                .collect();
            if self.rewrap_all(&keys, &mut failed, go_on)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            after = versions.last().copied();
            if after.is_none() {
                break;
            }
        }
        self.sync()?;
        if let Some(error) = failed {
            // All others are done: one bad record keeps no more than itself under the old key.
            return Err(error);
        }
        if self.keyring().renews_data_keys() {
            self.renew_system(change.to)?;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Re-wraps `keys` in transactions that end in time. What does not authenticate is passed over;
    /// `failed` keeps the first of that.
    fn rewrap_all(
        &self,
        keys: &[Key],
        failed: &mut Option<VaultError>,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let mut rest = keys;
        while !rest.is_empty() {
            if go_on().is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let (begun, taken) = (Cell::new(Instant::now()), Cell::new(0));
            // Each a job of its own: one that fails leaves nothing half done.
            let mut jobs: Vec<_> = rest
                .iter()
                .enumerate()
                .map(|(at, key)| {
                    let (begun, taken) = (&begun, &taken);
                    move |tx: &mut Tx<'_>| {
                        if at == 0 {
                            begun.set(Instant::now());
                        } else if begun.get().elapsed() > SLICE {
                            return Ok(());
                        }
                        taken.set(at + 1);
                        die_at!("migrate-within");
                        key.migrate(tx)
                    }
                })
                .collect();
            let mut jobs: Vec<Job<'_>> = jobs.iter_mut().map(|job| job as Job<'_>).collect();
            die_at!("migrate-before");
            let outcomes = self.transact(Durability::Soon, &mut jobs)?;
            die_at!("migrate-after");
            if let Some(Err(error)) = outcomes.into_iter().find(Result::is_err) {
                // Once in a batch: somebody may have forged them all.
                tracing::error!("a key cannot be replaced: {error}");
                failed.get_or_insert(error);
            }
            let taken = taken.get();
            rest = &rest[taken..];
            self.rotation.figures().done += taken as u64;
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Opens every key with the new master key, and recounts the vault.
    pub(super) fn verify(
        &self,
        change: &Change,
        go_on: &dyn Fn() -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, VaultError> {
        let keyring = self.keyring();
        let mut after = None;
        loop {
            let batch = self.read(|records| Ok(records.scan_nodes(after, BATCH)?))?;
            for (id, record) in &batch {
                if record.generation == change.to {
                    Node::open(&keyring, *id, record)?;
                }
            }
            after = batch.last().map(|(id, _)| *id);
            if after.is_none() {
                break;
            }
            if go_on().is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        let mut after = None;
        loop {
            let batch = self.read(|records| Ok(records.scan_versions(after, BATCH)?))?;
            for ((node, version), record) in &batch {
                if record.generation == change.to {
                    content::must_unwrap(&keyring, *node, *version, record)?;
                }
            }
            after = batch.last().map(|(key, _)| *key);
            if after.is_none() {
                break;
            }
            if go_on().is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        self.recount()?;
        Ok(ControlFlow::Continue(()))
    }
}
